"""Pulls a frozen slice version into a folder: the files of an export, from a server, resumable after any end.

The folder equals `lakeloop slice export` of the same version and format: every file, and `lakeloop-export.sha256`, byte
for byte. During the pull `.lakeloop-pull/` has the version's tag and the list of files; every file that is there
already is hashed, and only what is missing is fetched. A version whose content changed meanwhile is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from lake.client.json_requests import Pauses, RequestFailed
from lake.version import VERSION

if TYPE_CHECKING:
    from lake.client.json_requests import JsonRequests

STATE = ".lakeloop-pull"
MANIFEST, HASHES, ROWS = "lakeloop-export.json", "lakeloop-export.sha256", "metadata.jsonl"
FORMATS = ("jsonl", "imagefolder")
PAGE = 1_000
# Bytes that are read at once, and the parts of them that wait for being hashed and written.
PART_BYTES = 4 << 20
WRITERS, MOST_PARTS = 2, 4
# How often an image may arrive with other bytes than its hash says.
MOST_WRONG = 2


class PulledFile(NamedTuple):
    """A file of an image: its path below the folder; its size and hash; its place in the stream of all images."""

    path: str
    bytes: int
    sha256: str
    start: int


@dataclass
class PullReport:
    """What a pull wrote. `images` with their `bytes`; `left_out`: images without bytes, with the reason; `resumed`:
    images that an earlier pull had written; `already`: the pull was finished before.
    """

    slice: str
    folder: str
    format: str
    images: int = 0
    bytes: int = 0
    left_out: list[dict[str, str]] = field(default_factory=list)
    resumed: int = 0
    already: bool = False
    seconds: float = 0.0


def pull(
    requests: JsonRequests,
    name: str,
    folder: str | os.PathLike[str],
    format: str = "jsonl",
    progress: Callable[[int], None] | None = None,
) -> PullReport:
    """Writes the images and labels of the frozen version NAME, NAME@VERSION or NAME@TAG to `folder`.

    `progress` is called with the number of images just written. The same call again continues after any end. Raises
    ValueError for an unknown format and for a folder with other files; RequestFailed, also when the content of the
    version has changed since the pull began (`reason` is changed).
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    started = time.monotonic()
    target = Path(folder)
    path = f"/v1/slices/{quote(name, safe='@')}"
    first = requests.get(f"{path}/manifest", {"format": format, "limit": PAGE})
    report = PullReport(first["slice"], str(target), format)
    if (target / MANIFEST).is_file():
        return _finished(target, first, report)
    with _claimed(target, first):
        _Pull(requests, target, first, report, progress or (lambda count: None)).run()
    report.seconds = time.monotonic() - started
    return report


def _finished(target: Path, first: dict[str, Any], report: PullReport) -> PullReport:
    try:
        manifest = json.loads((target / MANIFEST).read_text("utf-8"))
        tag = manifest["tag"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{target} has an export that is not a pull; give another folder") from None
    if (manifest["slice"], manifest["format"]) != (first["slice"], first["format"]):
        raise ValueError(f"{target} has {manifest['slice']} as {manifest['format']}; give another folder")
    if tag != first["tag"]:
        raise _changed(first["slice"], target)
    report.images, report.bytes, report.left_out = manifest["images"], first["bytes"], manifest["left_out"]
    report.already = True
    return report


@contextmanager
def _claimed(target: Path, first: dict[str, Any]) -> Iterator[None]:
    """Holds the folder for this pull. Raises ValueError if it has other files, or another process pulls into it."""
    state = target / STATE
    if not state.is_dir():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target} exists and is not an empty folder")
        state.mkdir(parents=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is pulling into {target}") from None
        job = {key: first[key] for key in ("slice", "format", "tag")}
        known = _document(state / "job.json")
        if known is None:
            _replace(state / "job.json", json.dumps(job))
        elif (known["slice"], known["format"]) != (job["slice"], job["format"]):
            raise ValueError(f"{target} has a part of {known['slice']} as {known['format']}; give another folder")
        elif known["tag"] != job["tag"]:
            raise _changed(job["slice"], target)
        yield


class _Pull:
    def __init__(
        self,
        requests: JsonRequests,
        target: Path,
        first: dict[str, Any],
        report: PullReport,
        progress: Callable[[int], None],
    ) -> None:
        self.requests, self.target, self.first, self.report, self.progress = requests, target, first, report, progress
        self.path = f"/v1/slices/{first['slice']}"
        self.state = target / STATE
        self.wrong: dict[str, int] = {}

    def run(self) -> None:
        if not (self.state / "listed.json").is_file():
            self.list_files()
        listed = _document(self.state / "listed.json") or {}
        files = self.files()
        self.report.images, self.report.bytes = len(files), self.first["bytes"]
        self.report.left_out = listed["left_out"]
        for folder in sorted({file.path.partition("/")[0] for file in files}):
            (self.target / folder).mkdir(exist_ok=True)
            if (self.target / folder).is_symlink():
                raise ValueError(f"{self.target / folder} is a link; remove it")
        with ThreadPoolExecutor(WRITERS, "pull") as pool:
            there = pool.map(lambda file: _as_listed(self.target / file.path, file), files)
            missing = [file for file, found in zip(files, there, strict=True) if not found]
            self.report.resumed = len(files) - len(missing)
            self.fetch(pool, missing)
        self.finish(files, listed)

    # The list -----------------------------------------------------------------------------------------------

    def list_files(self) -> None:
        """Writes the manifest's entries to a file, and what else is known of the version to another, as its end."""
        left_out: list[dict[str, str]] = []
        unsaid: dict[str, int] = {}
        page = self.first
        with (self.state / "files.jsonl").open("w", encoding="utf-8") as out:
            while True:
                for entry in page["items"]:
                    if "left_out" in entry:
                        left_out.append({"image_id": entry["left_out"], "reason": entry["reason"]})
                    else:
                        out.write(json.dumps(_checked(entry), ensure_ascii=False) + "\n")
                for description, count in page["unsaid"].items():
                    unsaid[description] = unsaid.get(description, 0) + count
                if page["next"] is None:
                    break
                query = {"format": self.first["format"], "limit": PAGE, "cursor": page["next"]}
                page = self.requests.get(f"{self.path}/manifest", query)
                if page["tag"] != self.first["tag"]:
                    raise _changed(self.first["slice"], self.target)
            out.flush()
            os.fsync(out.fileno())
        _replace(self.state / "listed.json", json.dumps({"left_out": left_out, "unsaid": unsaid}))

    def entries(self) -> Iterator[dict[str, Any]]:
        with (self.state / "files.jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def files(self) -> list[PulledFile]:
        files, start = [], 0
        for entry in self.entries():
            files.append(PulledFile(entry["path"], entry["bytes"], entry["sha256"], start))
            start += entry["bytes"]
        return files

    # The images ---------------------------------------------------------------------------------------------

    def fetch(self, pool: ThreadPoolExecutor, missing: list[PulledFile]) -> None:
        """Fetches the files, one stream for each run of neighbours, until none is missing."""
        pauses = Pauses()
        while missing:
            run = _neighbours(missing)
            written: set[str] = set()
            try:
                self.fetch_run(pool, run, written)
            except (OSError, HTTPException) as error:
                failure = RequestFailed(f"{self.requests.url} broke off: {error or type(error).__name__}")
            except RequestFailed as error:
                failure = error
            else:
                failure = RequestFailed(f"{self.requests.url} sent other bytes than the hashes of its images say")
            missing = [file for file in missing if file.path not in written]
            if written:
                pauses = Pauses()
            if missing and len(written) < len(run):
                if failure.reason == "changed":
                    raise _changed(self.first["slice"], self.target) from failure
                if failure.status not in (0, 408, 425, 429, 500, 502, 503, 504):
                    raise failure
                pauses.wait(failure)

    def fetch_run(self, pool: ThreadPoolExecutor, run: Sequence[PulledFile], written: set[str]) -> None:
        """Streams neighbouring files; adds the paths of those that were written to `written`."""
        end = run[-1].start + run[-1].bytes
        headers = {"If-Match": f'"{self.first["tag"]}"', "Accept": "*/*"}
        if end > run[0].start:
            headers["Range"] = f"bytes={run[0].start}-{end - 1}"
        waiting: list[Future[list[str]]] = []

        def settle(most: int) -> None:
            while len(waiting) > most:
                paths = waiting.pop(0).result()
                written.update(paths)
                self.progress(len(paths))

        try:
            with self.requests.stream(f"{self.path}/images", headers) as response:
                for part in _parts(run):
                    size = sum(file.bytes for file in part)
                    data = response.read(size) if size else b""
                    if len(data) < size:
                        raise ConnectionError("the stream ended early")
                    waiting.append(pool.submit(self.write, part, data))
                    settle(MOST_PARTS)
        finally:
            settle(0)

    def write(self, part: Sequence[PulledFile], data: bytes) -> list[str]:
        """Writes the files whose hash is right; returns their paths. Raises RequestFailed if one is wrong again."""
        view, paths = memoryview(data), []
        for file in part:
            start = file.start - part[0].start
            content = view[start : start + file.bytes]
            if hashlib.sha256(content).hexdigest() != file.sha256:
                self.wrong[file.path] = self.wrong.get(file.path, 0) + 1
                if self.wrong[file.path] > MOST_WRONG:
                    raise RequestFailed(
                        f"the server's bytes of {file.path} are not those of its hash", 422, "wrong_bytes"
                    )
                continue
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with os.fdopen(os.open(self.target / file.path, flags, 0o666), "wb", 0) as out:
                out.write(content)
            paths.append(file.path)
        return paths

    # The end ------------------------------------------------------------------------------------------------

    def finish(self, files: Sequence[PulledFile], listed: dict[str, Any]) -> None:
        """Writes the files that all images share; the manifest last, when everything is on disk."""
        count, size = len(files), sum(file.bytes for file in files)
        with (self.state / "hashes").open("w", encoding="utf-8") as hashes:
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
        (self.state / "hashes").rename(self.target / HASHES)
        os.sync()
        same = ("slice", "format", "version", "definition", "predictions_version", "erased_before", "tag")
        facts = {
            **{key: self.first[key] for key in same},
            "predictions": None,
            "state": "complete",
            "lakeloop": VERSION,
            "lake": self.requests.url,
            "images": len(files),
            "files": count,
            "bytes": size,
            **listed,
            "hashes": {"file": HASHES, "sha256": hashlib.sha256((self.target / HASHES).read_bytes()).hexdigest()},
        }
        if self.first["format"] == "imagefolder":
            classes = {entry["path"].partition("/")[0]: entry["label"] for entry in self.entries()}
            facts["classes"] = {"_unlabelled": None, **classes}
        _replace(self.target / MANIFEST, json.dumps(facts, ensure_ascii=False, indent=1))
        shutil.rmtree(self.state)


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, if it can only be a file in a folder of the target. Raises RequestFailed."""
    parts = str(entry["path"]).split("/")
    good = len(parts) == 2 and all(
        part and not part.startswith(".") and not set(part) & {"\0", "\\", "\n", "\r", ":"} for part in parts
    )
    if not good or type(entry["bytes"]) is not int or entry["bytes"] < 0 or "\n" in entry.get("row", ""):
        raise RequestFailed(
            f"the server's manifest has the file {entry['path']!r:.200}, which is refused", 422, "bad_path"
        )
    return entry


def _as_listed(path: Path, file: PulledFile) -> bool:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as content:
            if os.fstat(content.fileno()).st_size != file.bytes:
                return False
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def _neighbours(missing: Sequence[PulledFile]) -> Sequence[PulledFile]:
    """The first files whose bytes follow each other in the stream."""
    for index in range(1, len(missing)):
        if missing[index].start != missing[index - 1].start + missing[index - 1].bytes:
            return missing[:index]
    return missing


def _parts(run: Sequence[PulledFile]) -> Iterator[Sequence[PulledFile]]:
    """The files in parts of about `PART_BYTES`."""
    first, size = 0, 0
    for index, file in enumerate(run):
        if size + file.bytes > PART_BYTES and index > first:
            yield run[first:index]
            first, size = index, 0
        size += file.bytes
    yield run[first:]


def _changed(slice_id: str, target: Path) -> RequestFailed:
    return RequestFailed(
        f"the content of {slice_id} is not the one that {target} was begun with: images were erased or deleted since;"
        " pull into another folder",
        412,
        "changed",
    )


def _document(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None


def _replace(path: Path, text: str) -> None:
    """Writes a file completely or not at all, also after a power loss."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
