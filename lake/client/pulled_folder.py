"""The folder that a pull writes: claimed by one process, listed, resumed, and finished as an export.

`.lakeloop-pull/` in it has the version's tag and the list of files until the end. The module knows nothing of requests.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lake import whole_file
from lake.client.json_requests import RequestFailed
from lake.version import VERSION

STATE = ".lakeloop-pull"
MANIFEST, HASHES, ROWS = "lakeloop-export.json", "lakeloop-export.sha256", "metadata.jsonl"
_IN_NO_NAME = {"\0", "\\", "\n", "\r", ":"}


class PulledFile(NamedTuple):
    """A file of an image: its path below the folder; its size and hash; its place in the stream of all images."""

    path: str
    bytes: int
    sha256: str
    start: int


class PulledFolder:
    """The folder `target` for the version that `first`, the first page of its manifest, describes."""

    def __init__(self, target: Path, first: Mapping[str, Any]) -> None:
        self.target = target
        self.first = first
        self._state = target / STATE
        self._folders: set[str] = set()

    def finished(self) -> dict[str, Any] | None:
        """The manifest of a pull that was finished before; None if there is none.

        Raises ValueError if another version or format is there, RequestFailed if the content has changed since.
        """
        if not (self.target / MANIFEST).is_file():
            return None
        try:
            manifest: dict[str, Any] = json.loads((self.target / MANIFEST).read_text("utf-8"))
            self._check_job(manifest, "has")
        except (ValueError, KeyError, TypeError) as error:
            if type(error) is ValueError:
                raise
            raise ValueError(f"{self.target} has an export that is not a pull; give another folder") from None
        return manifest

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the folder for this pull. Raises ValueError if it has other files, or another process pulls into it."""
        if not self._state.is_dir():
            if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
                raise ValueError(f"{self.target} exists and is not an empty folder")
            self._state.mkdir(parents=True)
        with (self._state / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is pulling into {self.target}") from None
            job = self._state / "job.json"
            if job.is_file():
                self._check_job(json.loads(job.read_text("utf-8")), "has a part of")
            else:
                whole_file.replace(job, json.dumps({key: self.first[key] for key in ("slice", "format", "tag")}))
            yield

    def changed(self) -> RequestFailed:
        """The error for a version whose content is not the one that the folder was begun with."""
        return RequestFailed(
            f"the content of {self.first['slice']} is not the one that {self.target} was begun with: images were erased"
            " or deleted since; pull into another folder",
            412,
            "changed",
        )

    # The list -----------------------------------------------------------------------------------------------

    def listing(self) -> dict[str, Any] | None:
        """What is known of the version beside its files: `left_out` and `unsaid`. None until all files are listed."""
        path = self._state / "listed.json"
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None

    def list(self, pages: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Keeps the entries of a manifest's pages in a file, while it yields them; `listing` is known at the end.

        Raises RequestFailed for an entry that could be a file outside the folder, or if the content has changed.
        """
        left_out: list[dict[str, str]] = []
        unsaid: dict[str, int] = {}
        with (self._state / "files.jsonl").open("w", encoding="utf-8") as out:
            for page in pages:
                if page["tag"] != self.first["tag"]:
                    raise self.changed()
                for description, count in page["unsaid"].items():
                    unsaid[description] = unsaid.get(description, 0) + count
                for entry in page["items"]:
                    if "left_out" in entry:
                        left_out.append({"image_id": entry["left_out"], "reason": entry["reason"]})
                    else:
                        out.write(json.dumps(_checked(entry), ensure_ascii=False) + "\n")
                        yield entry
            out.flush()
            os.fsync(out.fileno())
        whole_file.replace(self._state / "listed.json", json.dumps({"left_out": left_out, "unsaid": unsaid}))

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries that were listed."""
        with (self._state / "files.jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    # The files ----------------------------------------------------------------------------------------------

    def has(self, file: PulledFile) -> bool:
        """Whether the file is there, with its size and hash. Makes its folder; raises ValueError if that is a link."""
        folder = file.path.partition("/")[0]
        if folder not in self._folders:
            (self.target / folder).mkdir(exist_ok=True)
            if (self.target / folder).is_symlink():
                raise ValueError(f"{self.target / folder} is a link; remove it")
            self._folders.add(folder)
        try:
            descriptor = os.open(self.target / file.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        with os.fdopen(descriptor, "rb") as content:
            if os.fstat(content.fileno()).st_size != file.bytes:
                return False
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256

    def write(self, file: PulledFile, content: memoryview) -> None:
        """Writes a file that `has` was asked for. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(self.target / file.path, flags, 0o666), "wb") as out:
            out.write(content)

    def finish(self, files: Sequence[PulledFile], url: str) -> dict[str, Any]:
        """Writes the files that all images share; the manifest last, when everything is on disk. Returns it."""
        count, size = len(files), sum(file.bytes for file in files)
        with (self._state / "hashes").open("w", encoding="utf-8") as hashes:
            hashes.writelines(f"{file.sha256}  {file.path}\n" for file in files)
            if self.first["format"] == "jsonl" and files:
                digest = hashlib.sha256()
                with (self.target / ROWS).open("wb") as rows:
                    for entry in self.entries():
                        line = f"{entry['row']}\n".encode()
                        digest.update(line)
                        rows.write(line)
                    size += rows.tell()
                count += 1
                hashes.write(f"{digest.hexdigest()}  {ROWS}\n")
        (self._state / "hashes").rename(self.target / HASHES)
        os.sync()
        same = ("slice", "format", "version", "definition", "predictions_version", "erased_before", "tag")
        manifest = {
            **{key: self.first[key] for key in same},
            "predictions": None,
            "state": "complete",
            "lakeloop": VERSION,
            "lake": url,
            "images": len(files),
            "files": count,
            "bytes": size,
            **(self.listing() or {}),
            "hashes": {"file": HASHES, "sha256": hashlib.sha256((self.target / HASHES).read_bytes()).hexdigest()},
        }
        if self.first["format"] == "imagefolder":
            classes = {entry["path"].partition("/")[0]: entry["label"] for entry in self.entries()}
            manifest["classes"] = {"_unlabelled": None, **classes}
        whole_file.replace(self.target / MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1))
        shutil.rmtree(self._state)
        return manifest

    def _check_job(self, job: Mapping[str, Any], verb: str) -> None:
        tag = job["tag"]
        if (job["slice"], job["format"]) != (self.first["slice"], self.first["format"]):
            raise ValueError(f"{self.target} {verb} {job['slice']} as {job['format']}; give another folder")
        if tag != self.first["tag"]:
            raise self.changed()


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, if it can only be a file in a folder of the target. Raises RequestFailed."""
    parts = str(entry["path"]).split("/")
    good = len(parts) == 2 and all(part and not part.startswith(".") and not _IN_NO_NAME & set(part) for part in parts)
    if not good or type(entry["bytes"]) is not int or entry["bytes"] < 0 or "\n" in entry.get("row", ""):
        detail = f"the server's manifest has the file {entry['path']!r:.200}, which is refused"
        raise RequestFailed(detail, 422, "bad_path")
    return entry
