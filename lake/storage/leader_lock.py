"""The lock that lets one process at a time maintain a lake, back it up or erase from it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    file = os.open(lake.folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
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
