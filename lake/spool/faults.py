"""Tells faults of the machine, which pass, from faults of an event's content; finds an event that ends its drainer."""

from __future__ import annotations

import errno
import json
import re
import sqlite3
from pathlib import Path

from lake.errors import LakeloopError

# Of the disk, the network, the limits of the process: the same write may succeed later.
_PASSING = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR,
        errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENODEV,
        errno.ETIMEDOUT, errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH,
        errno.ENETUNREACH, errno.ENETDOWN,
    }
)  # fmt: skip
# Lance has no error numbers: they stand in its text, as do the stores' errors. `Not found` is a lost or removed file.
_NUMBER = re.compile(r"\(os error (\d+)\)")
_STORE = re.compile(r"Generic (?:S3|GCS|MicrosoftAzure|HTTP\w*) error|timed out|Not found", re.IGNORECASE)


def may_pass(error: BaseException) -> bool:
    """Whether the same write may succeed later. If not, the content of what was to be written is at fault."""
    if isinstance(error, OSError):
        if error.errno is not None:
            return error.errno in _PASSING
        numbers = {int(number) for number in _NUMBER.findall(str(error))}
        return bool(numbers & _PASSING) or _STORE.search(str(error)) is not None
    if isinstance(error, LakeloopError | MemoryError | sqlite3.Error):
        return True
    # Lance's panics reach Python as a BaseException of their own.
    return not isinstance(error, Exception) and type(error).__name__ != "PanicException"


class BatchFile:
    """Says which batch a drainer is writing. It is left behind if the drainer does not survive it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "drain.batch"

    def begin(self, size: int, last: int, deaths: int) -> None:
        """`size`: the number of events; `last`: the `seq` of the last one; `deaths`: drainers that it ended alone."""
        self._path.write_text(json.dumps({"size": size, "last": last, "deaths": deaths}))

    def end(self) -> None:
        self._path.unlink(missing_ok=True)

    def left(self) -> tuple[int, int, int] | None:
        """(size, last, deaths) of the batch in which the last drainer ended; None if it ended between batches."""
        try:
            facts = json.loads(self._path.read_text())
            return int(facts["size"]), int(facts["last"]), int(facts.get("deaths", 0))
        except (OSError, ValueError, KeyError, TypeError):
            return None
