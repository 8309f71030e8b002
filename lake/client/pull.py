"""Pulls a frozen slice version into a folder: the files of an export, from a server, resumable after any end.

The folder equals `lakeloop slice export` of the same version and format: every file, and `lakeloop-export.sha256`, byte
for byte. Every file that is there already is hashed, and only what is missing is fetched. A version whose content
changed meanwhile is refused.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.client.json_requests import Pauses, RequestFailed, in_path
from lake.client.pulled_folder import PulledFile, PulledFolder

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from lake.client.json_requests import JsonRequests

FORMATS = ("jsonl", "imagefolder")
PAGE = 1_000
# Bytes that are read at once, and the parts of them that wait for being hashed and written.
PART_BYTES = 4 << 20
WRITERS, MOST_PARTS = 2, 4
# How often an image may arrive with other bytes than its hash says.
MOST_WRONG = 2
_LATER = (0, 408, 425, 429, 500, 502, 503, 504)


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
    ValueError for an unknown format and for a folder with other files; OSError if the disk refuses; RequestFailed, also
    when the content of the version has changed since the pull began (`reason` is changed).
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    started = time.monotonic()
    path = f"/v1/slices/{in_path(name, 'slice', '@')}"
    first = requests.get(f"{path}/manifest", {"format": format, "limit": PAGE})
    target = PulledFolder(Path(folder), first)
    report = PullReport(first["slice"], str(folder), format, bytes=first["bytes"])
    manifest = target.finished()
    report.already = manifest is not None
    if manifest is None:
        with target.claimed():
            manifest = _Pull(requests, target, report, progress or (lambda count: None)).run()
        report.seconds = time.monotonic() - started
    report.images, report.left_out = manifest["images"], manifest["left_out"]
    return report


class _Pull:
    def __init__(
        self, requests: JsonRequests, target: PulledFolder, report: PullReport, progress: Callable[[int], None]
    ) -> None:
        self.requests, self.target, self.report, self.progress = requests, target, report, progress
        self.path = f"/v1/slices/{target.first['slice']}"
        self.files: list[PulledFile] = []
        self.wrong: dict[str, int] = {}
        self.failure: RequestFailed | None = None
        self.not_written: Exception | None = None

    def run(self) -> dict[str, Any]:
        with ThreadPoolExecutor(WRITERS, "pull") as pool:
            missing = self.fetch(pool, self.missing(pool))
            pauses = Pauses()
            while missing:
                before, failure = len(missing), self.failure
                assert failure is not None
                if failure.status not in _LATER:
                    raise failure
                pauses.wait(failure)
                missing = self.fetch(pool, iter(missing))
                if len(missing) < before:
                    pauses = Pauses()
        if self.target.listing() is None:  # the manifest broke off
            assert self.failure is not None
            raise self.failure
        return self.target.finish(self.files, self.requests.url)

    def missing(self, pool: ThreadPoolExecutor) -> Iterator[PulledFile]:
        """The files that are not there yet, while they are listed. Adds every file to `files`."""
        start = 0
        listed = self.target.listing() is not None
        for entry in self.target.entries() if listed else self.target.list(self.pages(pool)):
            file = PulledFile(entry["path"], entry["bytes"], entry["sha256"], start)
            start += file.bytes
            self.files.append(file)
            if self.target.has(file):
                self.report.resumed += 1
            else:
                yield file

    def pages(self, pool: ThreadPoolExecutor) -> Iterator[Any]:
        """The manifest's pages; each is fetched while the one before it is in work."""
        page = self.target.first
        while True:
            query = {"format": page["format"], "limit": PAGE, "cursor": page["next"]}
            following = pool.submit(self.requests.get, f"{self.path}/manifest", query) if page["next"] else None
            yield page
            if following is None:
                return
            page = following.result()

    def fetch(self, pool: ThreadPoolExecutor, missing: Iterator[PulledFile]) -> list[PulledFile]:
        """Fetches the files; returns those that were not written, and leaves the last reason in `failure`."""
        failed: list[PulledFile] = []
        ahead = _Ahead(missing)
        while ahead.file is not None:
            asked: list[PulledFile] = []
            written: set[str] = set()
            self.failure = RequestFailed(f"{self.requests.url} sent other bytes than the hashes of its images say")
            broke_off = True
            try:
                self.fetch_run(pool, ahead, asked, written)
                broke_off = False
            except (OSError, HTTPException) as error:
                if error is self.not_written:
                    raise
                self.failure = RequestFailed(f"{self.requests.url} broke off: {error or type(error).__name__}")
            except RequestFailed as error:
                self.failure = error
                if error.reason == "changed":
                    raise self.target.changed() from error
            failed += [file for file in asked if file.path not in written]
            failed += ahead.rest() if broke_off else []
        return failed

    def fetch_run(self, pool: ThreadPoolExecutor, ahead: _Ahead, asked: list[PulledFile], written: set[str]) -> None:
        """Streams files from `ahead` as long as each follows the one before it in the stream.

        Adds them to `asked` and, once they are written, their paths to `written`.
        """
        assert ahead.file is not None
        position = ahead.file.start
        headers = {"If-Match": f'"{self.target.first["tag"]}"', "Accept": "*/*"}
        if position:
            headers["Range"] = f"bytes={position}-"
        waiting: list[tuple[Future[list[str]], bytearray]] = []
        # New memory for each part costs as much system time as receiving it.
        free = [bytearray(PART_BYTES) for _ in range(MOST_PARTS + 1)]

        def settle(most: int) -> None:
            while len(waiting) > most:
                future, buffer = waiting.pop(0)
                try:
                    paths = future.result()
                except OSError as error:
                    self.not_written = error
                    raise
                if len(buffer) == PART_BYTES:  # not that of an image larger than a part
                    free.append(buffer)
                written.update(paths)
                self.progress(len(paths))

        try:
            with self.requests.stream(f"{self.path}/images", headers) as response:
                while part := ahead.part(position):
                    asked += part
                    size = sum(file.bytes for file in part)
                    buffer = free.pop() if size <= len(free[-1]) else bytearray(size)
                    _read_into(response, memoryview(buffer)[:size])
                    position += size
                    waiting.append((pool.submit(self.write, part, buffer), buffer))
                    settle(MOST_PARTS)
        finally:
            settle(0)

    def write(self, part: Sequence[PulledFile], data: bytearray) -> list[str]:
        """Writes the files whose hash is right; returns their paths. Raises RequestFailed if one is wrong again."""
        view, paths = memoryview(data), []
        for file in part:
            start = file.start - part[0].start
            content = view[start : start + file.bytes]
            if hashlib.sha256(content).hexdigest() == file.sha256:
                self.target.write(file, content)
                paths.append(file.path)
                continue
            self.wrong[file.path] = self.wrong.get(file.path, 0) + 1
            if self.wrong[file.path] > MOST_WRONG:
                detail = f"the server's bytes of {file.path} are not those of its hash"
                raise RequestFailed(detail, 422, "wrong_bytes")
        return paths


def _read_into(response: HTTPResponse, view: memoryview) -> None:
    """Fills the view. Raises ConnectionError if the stream ends early."""
    filled = 0
    while filled < len(view):
        count = response.readinto(view[filled:])
        if not count:
            raise ConnectionError("the stream ended early")
        filled += count


class _Ahead:
    """Files to fetch; `file` is the next one, None at the end."""

    def __init__(self, files: Iterator[PulledFile]) -> None:
        self._files = files
        self.file = next(files, None)

    def part(self, position: int) -> list[PulledFile]:
        """Takes the files from this position of the stream on, up to a gap or `PART_BYTES`."""
        part: list[PulledFile] = []
        size = 0
        while self.file is not None and self.file.start == position + size:
            if part and size + self.file.bytes > PART_BYTES:
                break
            part.append(self.file)
            size += self.file.bytes
            self.file = next(self._files, None)
        return part

    def rest(self) -> list[PulledFile]:
        """Takes all."""
        file, self.file = self.file, None
        return [] if file is None else [file, *self._files]
