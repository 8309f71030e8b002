"""Files that keep events for a server that does not answer, and for the process that comes after a killed one.

    <folder>/<nanoseconds>-<pid>-<n>.spill     records, appended by one process, read from the front, never rewritten

A living process holds flock on its files, and the system lets go of it when the process dies: a file that can be locked
belongs to nobody, and whoever locks it sends it. How far a file has been read is in memory only, so a successor sends
it from its beginning and is told `known` for what had arrived. Where the folder is and when to write, others decide.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path

from lake.client.events import Batch, Event, Kind

# magic, kind, lengths of head and image, CRC-32 of both
_RECORD = struct.Struct(">4scIII")
_MAGIC = b"LLsp"
_KINDS: dict[bytes, Kind] = {b"p": "prediction", b"f": "feedback"}

# A file goes when all of it was delivered: small enough that a successor repeats little.
SEGMENT_BYTES = 8 << 20
# Each holds a file descriptor for its lock. What is beyond is adopted later.
MOST_ADOPTED = 64
_counter = itertools.count()


class SpillFull(OSError):
    """The folder holds what it may."""


class Segment:
    """One file, locked by this process. Events in `read` to `end` are still to be delivered: `waiting` of them."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.read = self.end = self.waiting = 0
        self._descriptor = descriptor

    def append(self, event: Event) -> None:
        """Writes one event behind the others. On OSError the file is as before."""
        kind = b"p" if event.kind == "prediction" else b"f"
        checksum = zlib.crc32(event.image, zlib.crc32(event.head))
        header = _RECORD.pack(_MAGIC, kind, len(event.head), len(event.image), checksum)
        record = memoryview(b"".join((header, event.head, event.image)))
        written = 0
        try:
            while written < len(record):
                written += os.pwrite(self._descriptor, record[written:], self.end + written)
        except OSError:
            os.ftruncate(self._descriptor, self.end)
            raise
        self.end += written
        self.waiting += 1

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def scan(self) -> None:
        """Counts what a dead process left. A last record it did not finish was never kept and is no event."""
        size = os.fstat(self._descriptor).st_size
        while header := self._header(self.end, size):
            self.end += _RECORD.size + header[1] + header[2]
            self.waiting += 1

    def peek(self, most: int, most_bytes: int) -> tuple[Batch, int, int]:
        """The next events, how many records they take, and where the one after them begins.

        Records the disk has spoiled are counted among the records and are not in the batch.
        """
        batch, records, at = Batch(), 0, self.read
        while records < self.waiting:
            header = self._header(at, self.end)
            if header is None:
                return batch, self.waiting, self.end
            kind, head_length, image_length, checksum = header
            body = os.pread(self._descriptor, head_length + image_length, at + _RECORD.size)
            head, image = body[:head_length], body[head_length:]
            event = Event(kind, head, image, time.monotonic())
            if zlib.crc32(image, zlib.crc32(head)) == checksum and not batch.take(event, most, most_bytes):
                break
            records += 1
            at += _RECORD.size + head_length + image_length
        return batch, records, at

    def advance(self, records: int, at: int) -> None:
        self.read = at
        self.waiting -= records

    def remove(self) -> None:
        # What cannot be removed is sent again by whoever finds it, and is known by then.
        with suppress(OSError):
            self.path.unlink()
        self.leave()

    def leave(self) -> None:
        """Lets go of the lock. Other processes' copies of the descriptor are theirs to close."""
        os.close(self._descriptor)

    def _header(self, at: int, end: int) -> tuple[Kind, int, int, int] | None:
        data = os.pread(self._descriptor, _RECORD.size, at)
        if len(data) < _RECORD.size:
            return None
        magic, kind, head_length, image_length, checksum = _RECORD.unpack(data)
        if magic != _MAGIC or kind not in _KINDS or at + _RECORD.size + head_length + image_length > end:
            return None
        return _KINDS[kind], head_length, image_length, checksum


class Spill:
    """The files of this process in one folder, oldest first. At most `most_bytes` lie in the folder.

    Several processes may share a folder; each counts the others' files whenever it begins one of its own, so together
    they may exceed the bound by one file each. Not thread-safe: `Line` holds a lock around every call.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder = folder
        self._most = most_bytes
        self._segment_bytes = max(1, min(SEGMENT_BYTES, most_bytes // 8))
        self._segments: list[Segment] = []
        self._open: Segment | None = None
        self._others = 0

    def waiting(self) -> int:
        return sum(segment.waiting for segment in self._segments)

    def left_behind(self) -> bool:
        """Whether there are files to look at; also True when the folder cannot be read, so that somebody says so."""
        try:
            return bool(self._files())
        except OSError:
            return True

    def append(self, event: Event) -> None:
        """Keeps one event. Raises SpillFull, or OSError as the disk says it."""
        if self._open is None or self._open.end >= self._segment_bytes:
            self.sync()
            self._open = self._begin()
        self._check_room(event)
        self._open.append(event)

    def append_apart(self, batch: Batch) -> Segment:
        """Keeps a batch in a file of its own, which the next event goes behind."""
        self.sync()
        segment = self._begin()
        try:
            for event in batch.events:
                self._check_room(event)
                segment.append(event)
        except OSError:
            self._remove(segment)
            raise
        self._open = segment
        return segment

    def sync(self) -> None:
        """What was appended survives the machine's end, not only the process'."""
        if self._open is not None:
            self._open.sync()

    def next(self) -> Segment | None:
        """The file to deliver from. Files that are done are removed."""
        while self._segments and self._segments[0].waiting <= 0:
            self._remove(self._segments[0])
        return self._segments[0] if self._segments else None

    def adopt(self) -> int:
        """Takes over what dead processes left; returns the number of events. Raises the first OSError at its end."""
        own = {segment.path for segment in self._segments}
        found, trouble = 0, None
        for path in self._files():
            if path in own:
                continue
            if len(self._segments) >= MOST_ADOPTED:
                break
            try:
                segment = _locked(path)
                if segment is None:
                    continue
                segment.scan()
            except OSError as error:
                trouble = trouble or error
                continue
            if segment.waiting:
                self._segments.append(segment)
                found += segment.waiting
            else:
                segment.remove()
        if trouble is not None:
            raise trouble
        return found

    def leave(self) -> None:
        """Lets go of every file; what is in them waits for whoever comes."""
        for segment in self._segments:
            segment.leave()
        self._segments, self._open = [], None

    def _begin(self) -> Segment:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = {segment.path for segment in self._segments}
        self._others = sum(_size(path) for path in self._files() if path not in own)
        while True:
            name = f"{time.time_ns():020d}-{os.getpid()}-{next(_counter)}.spill"
            path = self.folder / name
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            # Before this lock another process may take the empty file for an orphan and remove it.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)
        _sync_folder(self.folder)
        segment = Segment(path, descriptor)
        self._segments.append(segment)
        return segment

    def _check_room(self, event: Event) -> None:
        held = self._others + sum(segment.end for segment in self._segments)
        if held + event.held_bytes > self._most:
            raise SpillFull(f"{self.folder} holds {held:,} bytes; {self._most:,} are the most (spill_bytes)")

    def _remove(self, segment: Segment) -> None:
        self._segments.remove(segment)
        if segment is self._open:
            self._open = None
        segment.remove()

    def _files(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".spill")
        except FileNotFoundError:
            return []


def _locked(path: Path) -> Segment | None:
    """The file, if it belongs to nobody."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return Segment(path, descriptor)
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
