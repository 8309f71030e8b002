"""The lock that lets one process at a time maintain a lake, back it up or erase from it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lake.errors import LakeBusy

if TYPE_CHECKING:
    from lake.storage.store import Lake

LOCK = "maintenance.lock"


@contextmanager
def leader(lake: Lake, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock for as long as the block lasts. The system releases it when the process dies.

    Raises LakeBusy if another process still holds it after `wait` seconds. Object storage has no such lock: there,
    run maintenance in one process only.
    """
    if lake.folder is None:
        yield
        return
    file = _opened(lake.folder / LOCK)
    if file is None:
        yield
        return
    deadline = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LakeBusy(
                        f"{lake.uri} is being maintained, backed up or erased from by another process; try again later"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(file)


def _opened(path: Path) -> int | None:
    """The file of the lock; None if this process can only read the lake, and nobody has made the file yet."""
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # it can be locked, too
    except FileNotFoundError:
        return None
