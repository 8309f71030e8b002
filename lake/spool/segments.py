"""Append-only files that hold image bytes between their acknowledgement and the lake.

A writer appends to a file of its own, under a lock that ends with its process. It seals a large or old file and begins
another. Nothing is written twice, so a power loss can damage only bytes that were not yet acknowledged. Files that no
event refers to are removed whole. The module knows nothing of events.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

SEAL_BYTES = 64 << 20
# A file can be removed once it is sealed and drained, so this bounds how long its bytes outlive the drain.
SEAL_SECONDS = 20.0
SUFFIX = ".seg"
_MOST_BUFFERS = os.sysconf("SC_IOV_MAX")


class ByteRange(NamedTuple):
    """The position of an image's bytes: the file's name in the folder, and the range in it."""

    segment: str
    offset: int
    length: int


class SegmentWriter:
    """The open file of one writer. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        self._name = ""
        self._size = 0
        self._started = 0.0
        self._count = 0

    def append(self, blobs: Sequence[bytes]) -> list[ByteRange]:
        """Writes the blobs, syncs them to disk, and returns their positions.

        Raises OSError, for instance if the disk is full; then nothing of `blobs` counts as written.
        """
        if self._file is None or self._size >= SEAL_BYTES:
            self.seal()
            self._begin()
        assert self._file is not None
        start = self._size
        try:
            for first in range(0, len(blobs), _MOST_BUFFERS):
                self._write_all(blobs[first : first + _MOST_BUFFERS])
            os.fdatasync(self._file)
        except OSError:
            # After a failed sync the kernel may have dropped the pages: nothing more goes into this file.
            self.seal()
            raise
        ranges = []
        for blob in blobs:
            ranges.append(ByteRange(self._name, start, len(blob)))
            start += len(blob)
        return ranges

    def seal_if_old(self) -> None:
        """Seals the current file if it holds bytes and is older than SEAL_SECONDS."""
        if self._size and time.monotonic() - self._started > SEAL_SECONDS:
            self.seal()

    def seal(self) -> None:
        """Closes the current file; the next `append` begins another."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self._size = 0

    def _begin(self) -> None:
        while True:
            self._count += 1
            name = f"{time.time_ns():x}-{os.getpid()}-{self._count}{SUFFIX}"
            file = os.open(
                self._folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:  # it was not removed before it was locked
                break
            os.close(file)
        sync_folder(self._folder)
        self._file, self._name, self._size, self._started = file, name, 0, time.monotonic()

    def _write_all(self, blobs: Sequence[bytes]) -> None:
        assert self._file is not None
        written = os.writev(self._file, blobs)
        self._size += written
        rest = sum(map(len, blobs)) - written
        if rest:  # a short write: the rest goes out in one piece
            tail = memoryview(b"".join(blobs))[written:]
            while tail:
                done = os.write(self._file, tail)
                self._size += done
                tail = tail[done:]


def read(folder: Path, at: ByteRange) -> bytes:
    """The bytes of the range; fewer if the disk lost some. Raises OSError if the file is gone."""
    file = os.open(folder / at.segment, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(file, at.length, at.offset)
    finally:
        os.close(file)


def erase(folder: Path, at: ByteRange) -> None:
    """Overwrites the bytes with zeros and syncs them. Does nothing if the file is gone."""
    try:
        file = os.open(folder / at.segment, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _overwrite(file, at.offset, at.length)
        os.fdatasync(file)
    finally:
        os.close(file)


def erase_between(folder: Path, name: str, used: Callable[[str], Sequence[tuple[int, int]]]) -> bool:
    """Overwrites everything but the ranges `used(name)` (offset, length) of a file that no living writer holds.

    Returns False if a writer holds it; True for a file that is gone.
    """
    try:
        file = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        end = os.fstat(file).st_size
        at = 0
        for offset, length in [*sorted(used(name)), (end, 0)]:
            _overwrite(file, at, offset - at)
            at = max(at, offset + length)
        os.fdatasync(file)
        return True
    finally:
        os.close(file)


def _overwrite(file: int, at: int, rest: int) -> None:
    while rest > 0:
        done = os.pwrite(file, bytes(min(rest, 1 << 20)), at)
        rest, at = rest - done, at + done


def remove_unused(folder: Path, used: Callable[[str], bool]) -> int:
    """Removes the files that no living writer holds and for which `used(name)` is false; returns their number."""
    removed = 0
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Check under the lock: before it, the writer might still have been about to refer to the file.
            if not used(path.name):
                path.unlink(missing_ok=True)
                removed += 1
        except BlockingIOError:
            pass
        finally:
            os.close(file)
    return removed


def size(folder: Path) -> int:
    """Total bytes of the files in the folder."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
    return total


def sync_folder(folder: Path) -> None:
    """Syncs the folder's entries to disk: without that a power loss can lose the name of a new file."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
