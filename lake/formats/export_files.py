"""Files of an export, hashed while they are written, one part of the slice at a time.

A format's `write(part, samples)` writes the files of some images and keeps lines for the files that all images share;
`finish(whole)` writes those from the lines of all parts. Nothing here knows a format, or how an export is resumed.
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
class ExportPlan:
    """What is known before the first image is written.

    `classes`: of all boxes and masks, sorted, "" for those without one. `labels`: of all classifications, sorted.
    `task`: segmentation if any label has masks, else detection: for formats that hold one of the two. `predictions`:
    the model whose predictions are written.
    """

    slice: str
    images: int
    classes: Sequence[str] = ()
    labels: Sequence[str] = ()
    task: str = DETECTION
    predictions: str | None = None


@dataclass(frozen=True)
class WrittenFile:
    """A file of the export: its path below the folder, with "/"; its size and hash."""

    path: str
    bytes: int
    sha256: str


@dataclass
class ExportPart:
    """The files of some images, in `root`. `number`: the part's, from 0. `unsaid`: what the format has no place for."""

    root: Path
    plan: ExportPlan
    number: int
    files: list[WrittenFile] = field(default_factory=list)
    lines: dict[str, list[str]] = field(default_factory=dict)
    unsaid: Counter[str] = field(default_factory=Counter)

    def file(self, path: str, data: bytes) -> None:
        """One whole file."""
        with self.open(path) as out:
            out.write(data)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """A file to write, in order, without seeking."""
        with _hashed(self.root, path, self.files) as out:
            yield out

    def line(self, name: str, value: Any) -> None:
        """Keeps a JSON value for `WholeExport.lines(name)`."""
        self.lines.setdefault(name, []).append(as_json(value))

    def leave_out(self, description: str, count: int = 1) -> None:
        """Counts something that this format has no place for; the report lists it."""
        if count:
            self.unsaid[description] += count


@dataclass
class WholeExport:
    """The export when all parts are written. `line_folders`: the folders of the parts' lines, in order."""

    root: Path
    plan: ExportPlan
    line_folders: Sequence[Path]
    files: list[WrittenFile] = field(default_factory=list)

    def lines(self, name: str) -> Iterator[Any]:
        """The values that the parts kept under a name, in order."""
        for folder in self.line_folders:
            path = folder / name
            if path.exists():
                with path.open(encoding="utf-8") as file:
                    yield from map(json.loads, file)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """A file to write, in order, without seeking."""
        with _hashed(self.root, path, self.files) as out:
            yield out

    def hash_all(self, folder: Path) -> None:
        """Adds the files of a folder that another library wrote."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.files.append(on_disk(self.root, path.relative_to(self.root).as_posix()))

    def text(self, path: str, lines: Iterator[str]) -> None:
        """Writes a file of lines; no file if there are no lines."""
        first = next(lines, None)
        if first is not None:
            with self.open(path) as out:
                out.write(f"{first}\n".encode())
                for line in lines:
                    out.write(f"{line}\n".encode())


def on_disk(root: Path, path: str) -> WrittenFile:
    """The size and hash of a file on disk."""
    with (root / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return WrittenFile(path, file.tell(), digest)


class _Hashing:
    """The methods of a file that pyarrow and tarfile use; hashes what is written."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        """The file stays open: `_hashed` closes it."""

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


@contextmanager
def _hashed(root: Path, path: str, files: list[WrittenFile]) -> Iterator[Any]:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    # A link planted in the target would be written through.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(target, flags, 0o666), "wb") as file:
        out = _Hashing(file)
        yield out
    files.append(WrittenFile(path, out.size, out.hash.hexdigest()))
