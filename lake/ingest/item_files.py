"""The files that items and rows name: regular ones of bounded size, relative to the folder of their log."""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lake.errors import BadInput
from lake.formats.item import MAX_FILE_BYTES, Item

Draft = TypeVar("Draft")


def item_path(item: Item, path: str) -> Path:
    """A path in a row: relative to the log's folder, or absolute."""
    if "\0" in path:
        raise BadInput(f"{path!r} is not a path")
    if "://" in path:
        raise BadInput(f"{path!r} is a URL; lakeloop fetches nothing: download it and give the path")
    return Path(path) if item.folder is None else item.folder / path


def file_bytes(path: Path) -> bytes:
    """The contents of a regular file. Raises BadInput for another kind of file or one that is too large, OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
        raise BadInput("not a regular file")
    size = status.st_size
    if size > MAX_FILE_BYTES:
        raise BadInput(f"the file is {size >> 20} MiB; the limit is {MAX_FILE_BYTES >> 20} MiB")
    return path.read_bytes()


def no_file(path: str) -> bytes:
    raise BadInput(f"{path!r}: a mask in a file is not supported in a data set, only in a prediction log")


def read_ahead(items: Iterable[Item], read: Callable[[Item], Draft], readers: ThreadPoolExecutor) -> Iterator[Draft]:
    """`read` of each item, in order; reads a few items ahead, so that reading and hashing overlap with decoding."""
    pending: deque[Future[Draft]] = deque()
    for item in items:
        pending.append(readers.submit(read, item))
        if len(pending) > 8:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
