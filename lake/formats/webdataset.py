"""WebDataset: tar files in which an image, its `.json` and its `.cls` share a name up to the first dot.

`.json` is a row as in `lake/formats/metadata.py`; `.cls` is the number of its class in `classes.txt`. Archives are read
as a stream and never unpacked, so no path in them is used.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats import annotation, image_files, splits
from lake.formats.annotation import CLASSIFICATION, ExportSample
from lake.formats.export_files import ExportPart, WholeExport
from lake.formats.item import IMAGE_SUFFIXES, MAX_FILE_BYTES, Item, ReadOptions, printable
from lake.formats.metadata import RowContext, annotations_of, row_of
from lake.formats.paths import text

# Members that are parts of an image's row.
_ROW = ("json", "cls", "txt")
_MOST_TEXT_BYTES = 8 << 20
# Of one name, with its image; and of a header of the archive, which `tarfile` reads whole.
_MOST_BYTES = MAX_FILE_BYTES + 2 * _MOST_TEXT_BYTES
_MOST_FILES = 100
_HEADER_BYTES = 1 << 20


class _Member(tarfile.TarInfo):
    """A member of an archive that may be hostile: a compressed one can unpack to headers of gigabytes."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        special = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
        if self.type in special and self.size > _HEADER_BYTES:
            raise tarfile.ReadError(f"a header has {self.size >> 20:,} MiB")
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member

    def _no_sparse(self, *_: object) -> None:
        raise tarfile.ReadError("a sparse file")  # the map of its holes may have any length

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_sparse


def shards(path: Path) -> list[Path]:
    """The tar files at a path."""
    if path.is_file():
        return [path] if path.suffix == ".tar" or path.name.endswith((".tar.gz", ".tgz")) else []
    patterns = ("*.tar", "*.tar.gz", "*.tgz")
    return sorted(p for pattern in patterns for p in (*path.glob(pattern), *path.glob(f"*/{pattern}")) if p.is_file())


def read(path: Path, options: ReadOptions) -> Iterator[Item]:
    paths = shards(path)
    if not paths:
        raise BadInput(f"{path} has no .tar")
    root = path if path.is_dir() else path.parent
    for shard in paths:
        names = next((f for f in (shard.parent / "classes.txt", root / "classes.txt") if f.is_file()), None)
        try:
            classes = None if names is None else text(names).splitlines()
        except BadInput as error:
            yield Item(printable(shard), error=str(error))
            continue
        context = RowContext(os.path.abspath(shard), options, splits.of_path(root, shard))
        yield from _shard(shard, classes, context)


def _shard(shard: Path, classes: list[str] | None, context: RowContext) -> Iterator[Item]:
    files: dict[str, bytes] = {}
    key, size = "", 0
    try:
        with tarfile.open(shard, "r|*", tarinfo=_Member) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember all
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                source = printable(f"{shard}:{member.name}")
                if member.isdir() or not stem or name.startswith("."):
                    continue
                if not member.isfile():
                    yield Item(source, error="not a regular file")
                    continue
                image = f".{suffix.lower()}" in IMAGE_SUFFIXES
                if member.size > (MAX_FILE_BYTES if image else _MOST_TEXT_BYTES):
                    yield Item(source, error=f"it has {member.size >> 20:,} MiB")
                    continue
                if (start := f"{folder}/{stem}") != key:
                    yield from _items(shard, key, files, classes, context)
                    key, files, size = start, {}, 0
                size += member.size
                if size > _MOST_BYTES or len(files) >= _MOST_FILES:
                    limits = f"{_MOST_FILES} files, {_MOST_BYTES >> 20} MiB"
                    yield Item(source, error=f"too much of one name: at most {limits}")
                    continue
                opened = tar.extractfile(member)
                assert opened is not None
                files[suffix.lower()] = opened.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        yield from _items(shard, key, files, classes, context)
        yield Item(printable(shard), error=f"broken archive: {error}")
    else:
        yield from _items(shard, key, files, classes, context)


def _items(
    shard: Path, key: str, files: dict[str, bytes], classes: list[str] | None, context: RowContext
) -> Iterator[Item]:
    if not files:
        return
    source = printable(f"{shard}:{key.lstrip('/')}")
    images = [suffix for suffix in files if f".{suffix}" in IMAGE_SUFFIXES] or [
        suffix for suffix, data in files.items() if suffix not in _ROW and image_files.begins_as_image(data[:32])
    ]
    if not images:
        yield Item(source, error=f"no image among {', '.join(sorted(files))}")
        return
    row: Any = {}
    try:
        row = json.loads(files["json"]) if "json" in files else {}
        if not isinstance(row, dict):
            raise BadInput("the .json is not an object")
        if "label" not in row and "cls" in files:
            row["label"] = _class(files["cls"].decode().strip(), classes)
        if "txt" in files:
            row.setdefault("text", files["txt"].decode())
    except (ValueError, RecursionError, BadInput) as error:
        yield Item(source, error=f"its annotations are broken: {error}")
        row = {}
    for suffix in files:
        if suffix in images:
            reader = partial(annotations_of, row, source, files[suffix], context)
            yield Item(f"{source}.{suffix}", data=files[suffix], read_annotations=reader)
        elif suffix not in _ROW:
            yield Item(f"{source}.{suffix}", passed_over="a member of a tar that is no image, .json, .cls or .txt")


def _class(written: str, classes: list[str] | None) -> str:
    """A class by its number in `classes.txt`; without that file, what is written. Raises BadInput."""
    if classes is None or not written.isdecimal():
        return written
    if int(written) >= len(classes):
        raise BadInput(f"class {written} is not in classes.txt, which has {len(classes)} classes")
    return classes[int(written)]


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    number_of = {name: i for i, name in enumerate(part.plan.labels)}
    with (
        part.open(f"part-{part.number:06d}.tar") as out,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for sample in samples:
            row = row_of(part, sample, sample.name)
            members = {"json": annotation.as_json(row).encode()}
            truth = sample.ground_truths.get(CLASSIFICATION)
            if truth is not None and truth.label:
                members["cls"] = str(number_of[truth.label]).encode()
            _, _, suffix = sample.name.rpartition(".")
            for name, data in ((suffix, sample.image.data), *members.items()):
                info = tarfile.TarInfo(f"{sample.image.image_id}.{name}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))


def finish(whole: WholeExport) -> None:
    # A line break in a class's name would split it in two.
    whole.text("classes.txt", (" ".join(name.split()) for name in whole.plan.labels))
