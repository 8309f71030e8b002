"""What a format writes into: files that are hashed as they are written, a part of the slice at a time.

A format's `write(part, samples)` puts down the files of some images and leaves lines for the data set's common files;
`finish(whole)` makes those of all lines. Nothing here knows a format, or how a stopped export goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lake.formats.annotation import DETECTION, as_json


@dataclass(frozen=True)
class Plan:
    """What is known before the first image is written.

    `classes`: of all boxes and masks, sorted, "" for those without one. `labels`: of all classifications, sorted.
    `task`: segmentation when any statement has masks, else detection: for formats that can say one of them.
    """

    slice: str
    images: int
    classes: Sequence[str] = ()
    labels: Sequence[str] = ()
    task: str = DETECTION
    predictions: str | None = None


@dataclass(frozen=True)
class Written:
    """A file: its path below the target with "/", its size and hash."""

    path: str
    bytes: int
    sha256: str


@dataclass
class Part:
    """Some images' files in `root`; `number`: which part, from 0."""

    root: Path
    plan: Plan
    number: int
    files: list[Written] = field(default_factory=list)
    lines: dict[str, list[str]] = field(default_factory=dict)
    unsaid: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)

    def file(self, path: str, data: bytes) -> None:
        """One whole file."""
        with self.open(path) as out:
            out.write(data)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """A file to write from its beginning to its end."""
        with _hashed(self.root, path, self.files) as out:
            yield out

    def line(self, name: str, value: Any) -> None:
        """Keeps a JSON value for `Whole.lines(name)`."""
        self.lines.setdefault(name, []).append(as_json(value))

    def leave_out(self, what: str, count: int = 1) -> None:
        """Counts what this format cannot say: it is told, never dropped silently."""
        if count:
            self.unsaid[what] += count


@dataclass
class Whole:
    """The data set when all its parts are there. `left`: the folders in which the parts left their lines, in order."""

    root: Path
    plan: Plan
    left: Sequence[Path]
    notes: Sequence[dict[str, Any]] = ()
    files: list[Written] = field(default_factory=list)

    def lines(self, name: str) -> Iterator[Any]:
        """What the parts kept under a name, in order."""
        for folder in self.left:
            path = folder / name
            if path.exists():
                with path.open(encoding="utf-8") as file:
                    yield from map(json.loads, file)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """A file to write from its beginning to its end."""
        with _hashed(self.root, path, self.files) as out:
            yield out

    def hash_all(self, folder: Path) -> None:
        """Takes up the files of a folder that somebody else wrote."""
        for place in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.files.append(on_disk(self.root, place.relative_to(self.root).as_posix()))

    def text(self, path: str, lines: Iterator[str]) -> None:
        """A file of lines; none is written when there are none."""
        first = next(lines, None)
        if first is not None:
            with self.open(path) as out:
                out.write(f"{first}\n".encode())
                for line in lines:
                    out.write(f"{line}\n".encode())


def on_disk(root: Path, path: str) -> Written:
    """A file as it is on the disk."""
    with (root / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(path, file.tell(), digest)


class _Hashing:
    """As much of a file as writers use: pyarrow and tarfile ask whether it is closed, and where they are."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        """Whoever opened it closes it."""

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


@contextmanager
def _hashed(root: Path, path: str, files: list[Written]) -> Iterator[Any]:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    # A link planted in the target would be written through.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(place, flags, 0o666), "wb") as file:
        out = _Hashing(file)
        yield out
    files.append(Written(path, out.size, out.hash.hexdigest()))
