"""Files on disk that keep events while the server does not respond, even if the process dies.

    <folder>/<nanoseconds>-<pid>-<n>.spill     records, appended by one process, read from the front, never rewritten

A living process holds flock on its files, and the system releases it when the process dies: a file that can be locked
has no owner, and the process that locks it sends it. The position of reading is in memory only, so a successor sends a
file from its beginning, and the server reports `known` for what had arrived. Callers choose the folder and the time.
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

from lake.client.events import EventBatch, Kind, QueuedEvent

# magic, kind, lengths of head and image, CRC-32 of both
_RECORD = struct.Struct(">4scIII")
_MAGIC = b"LLsp"
_KINDS: dict[bytes, Kind] = {b"p": "prediction", b"f": "feedback"}

# A file is removed when all of it was delivered: small enough that a successor repeats little.
SEGMENT_BYTES = 8 << 20
# Each adopted file holds a descriptor for its lock. Further files are adopted later.
MOST_ADOPTED = 64
_counter = itertools.count()


class SpillFull(OSError):
    """The folder has reached its limit."""


class Segment:
    """One file, locked by this process. The bytes from `read` to `end` hold the `waiting` events to deliver."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.read = self.end = self.waiting = 0
        self._descriptor = descriptor

    def append(self, event: QueuedEvent) -> None:
        """Appends one event. On OSError the file is as before."""
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
        """Counts the events that a dead process left. An unfinished last record does not count."""
        size = os.fstat(self._descriptor).st_size
        while header := self._header(self.end, size):
            self.end += _RECORD.size + header[1] + header[2]
            self.waiting += 1

    def peek(self, most: int, most_bytes: int) -> tuple[EventBatch, int, int]:
        """The next events, the number of their records, and the position after them.

        Records that the disk has damaged are counted but are not in the batch.
        """
        batch, records, at = EventBatch(), 0, self.read
        while records < self.waiting:
            header = self._header(at, self.end)
            if header is None:
                return batch, self.waiting, self.end
            kind, head_length, image_length, checksum = header
            body = os.pread(self._descriptor, head_length + image_length, at + _RECORD.size)
            head, image = body[:head_length], body[head_length:]
            event = QueuedEvent(kind, head, image, time.monotonic())
            if zlib.crc32(image, zlib.crc32(head)) == checksum and not batch.take(event, most, most_bytes):
                break
            records += 1
            at += _RECORD.size + head_length + image_length
        return batch, records, at

    def advance(self, records: int, at: int) -> None:
        self.read = at
        self.waiting -= records

    def remove(self) -> None:
        # A file that cannot be removed is sent again by the next process; the server knows its events then.
        with suppress(OSError):
            self.path.unlink()
        self.leave()

    def leave(self) -> None:
        """Releases the lock. Other processes close their own copies of the descriptor."""
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
    """The files of this process in one folder, oldest first. The folder holds at most `most_bytes`.

    Several processes may share a folder. Each counts the others' files whenever it begins a file of its own, so
    together they may exceed the limit by one file each. Not thread-safe: `EventQueue` locks around every call.
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
        """Whether there are files to adopt; also True if the folder cannot be read, so that the caller reports it."""
        try:
            return bool(self._files())
        except OSError:
            return True

    def append(self, event: QueuedEvent) -> None:
        """Writes one event. Raises SpillFull, or the OSError of the disk."""
        if self._open is None or self._open.end >= self._segment_bytes:
            self.sync()
            self._open = self._begin()
        self._check_room(event)
        self._open.append(event)

    def append_apart(self, batch: EventBatch) -> Segment:
        """Writes a batch to a new file, to which the next event is appended."""
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
        """Syncs what was appended, so that it survives a crash of the machine, not only of the process."""
        if self._open is not None:
            self._open.sync()

    def next(self) -> Segment | None:
        """The file to deliver from, or None. Removes files that are delivered."""
        while self._segments and self._segments[0].waiting <= 0:
            self._remove(self._segments[0])
        return self._segments[0] if self._segments else None

    def adopt(self) -> int:
        """Takes over the files of dead processes; returns the number of events. Raises the first OSError at the end."""
        own = {segment.path for segment in self._segments}
        adopted, first_error = 0, None
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
                first_error = first_error or error
                continue
            if segment.waiting:
                self._segments.append(segment)
                adopted += segment.waiting
            else:
                segment.remove()
        if first_error is not None:
            raise first_error
        return adopted

    def leave(self) -> None:
        """Releases every file; their events wait for the next process."""
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
            # Before this lock another process may mistake the empty file for an orphan and remove it.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)
        _sync_folder(self.folder)
        segment = Segment(path, descriptor)
        self._segments.append(segment)
        return segment

    def _check_room(self, event: QueuedEvent) -> None:
        size = self._others + sum(segment.end for segment in self._segments)
        if size + event.held_bytes > self._most:
            raise SpillFull(f"{self.folder} holds {size:,} bytes; the limit is {self._most:,} (spill_bytes)")

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
    """The file, locked; None if another process holds it or it is gone."""
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
