"""WebDataset: tar files in which an image, its `.json` and its `.cls` share a name up to the first dot.

`.json` is a row as in `lake/formats/metadata.py`; `.cls` the number of its class in `classes.txt`. Archives are read
as a stream, never unpacked: what is in them has no path.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, ExportSample, ModelName
from lake.formats.export_files import ExportPart, WholeExport
from lake.formats.item import IMAGE_SUFFIXES, MAX_FILE_BYTES, Item, printable
from lake.formats.metadata import annotations_of, row_of

_MOST_TEXT_BYTES = 64 << 20


def shards(path: Path) -> list[Path]:
    """The tar files at a path."""
    if path.is_file():
        return [path] if path.suffix == ".tar" or path.name.endswith((".tar.gz", ".tgz")) else []
    return sorted(p for pattern in ("*.tar", "*.tar.gz", "*.tgz") for p in path.glob(pattern) if p.is_file())


def read(path: Path, model: ModelName) -> Iterator[Item]:
    found = shards(path)
    if not found:
        raise BadInput(f"{path} holds no .tar")
    root = path if path.is_dir() else path.parent
    classes = (root / "classes.txt").read_text("utf-8").splitlines() if (root / "classes.txt").is_file() else []
    for shard in found:
        try:
            yield from _shard(shard, classes, model)
        except (tarfile.TarError, EOFError, OSError) as error:
            yield Item(printable(shard), error=f"broken archive: {error}")


def _shard(shard: Path, classes: list[str], model: ModelName) -> Iterator[Item]:
    held: dict[str, bytes] = {}
    key = ""
    with tarfile.open(shard, "r|*") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            place = printable(f"{shard}:{member.name}")
            if member.isdir() or not stem or name.startswith("."):
                continue
            if not member.isfile():
                yield Item(place, error="not a regular file")
                continue
            image = f".{suffix.lower()}" in IMAGE_SUFFIXES
            if member.size > (MAX_FILE_BYTES if image else _MOST_TEXT_BYTES):
                yield Item(place, error=f"it has {member.size >> 20:,} MiB")
                continue
            if (start := f"{folder}/{stem}") != key:
                yield from _items(shard, key, held, classes, model)
                key, held = start, {}
            opened = tar.extractfile(member)
            assert opened is not None
            held[suffix.lower()] = opened.read()
    yield from _items(shard, key, held, classes, model)


def _items(shard: Path, key: str, held: dict[str, bytes], classes: list[str], model: ModelName) -> Iterator[Item]:
    if not held:
        return
    place = printable(f"{shard}:{key.lstrip('/')}")
    images = [suffix for suffix in held if f".{suffix}" in IMAGE_SUFFIXES]
    if not images:
        yield Item(place, error=f"no image among {', '.join(sorted(held))}")
        return
    row: Any = {}
    try:
        row = json.loads(held["json"]) if "json" in held else {}
        if not isinstance(row, dict):
            raise BadInput("the .json is not an object")
        if "label" not in row and "cls" in held:
            text = held["cls"].decode().strip()
            row["label"] = classes[int(text)] if text.isdigit() and int(text) < len(classes) else text
        if "txt" in held:
            row.setdefault("text", held["txt"].decode("utf-8", "replace"))
    except (ValueError, RecursionError, BadInput) as error:
        yield Item(place, error=f"its annotations are broken: {error}")
        row = {}
    for suffix in images:
        yield Item(f"{place}.{suffix}", data=held[suffix], read_annotations=partial(annotations_of, row, place, model))


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
    # A class of two lines would be two classes.
    whole.text("classes.txt", (" ".join(name.split()) for name in whole.plan.labels))
