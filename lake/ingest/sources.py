"""What can be ingested from disk: a folder, a prediction log, a data set in any of its formats. Each yields `Item`s.

It knows folders, ImageFolders and logs, and which format a path is in; the others are read in `lake/formats/`. It
neither decodes images nor writes: `lake/ingest/ingest.py` does.
"""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lake.errors import BadInput
from lake.formats.annotation import CLASSIFICATION, MANIFEST, Model, Said, Saying, Truth

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Layout = Literal[
    "auto", "folder", "imagefolder", "table", "coco", "yolo", "voc", "metadata", "webdataset", "parquet", "lance"
]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
# What an export wrote -> how it is read.
_EXPORTED: dict[str, Layout] = {
    "imagefolder": "imagefolder",
    "coco": "coco",
    "yolo": "yolo",
    "voc": "voc",
    "csv": "metadata",
    "jsonl": "metadata",
    "hf": "metadata",
    "parquet": "parquet",
    "webdataset": "webdataset",
    "lance": "lance",
}
MAX_FILE_BYTES = 512 << 20

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
# Images we cannot decode: named in the report, not passed over as if they were text files.
FOREIGN_SUFFIXES = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".eps", ".psd", ".dng", ".cr2", ".nef", ".arw"}
TABLE_SUFFIXES = {".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"}

# A row may carry masks as RLE text: far beyond csv's 128 KiB.
_CSV_FIELD_BYTES = 64 << 20


@dataclass(frozen=True)
class Item:
    """One thing to ingest. `source` is what a report calls it.

    An image has `path`, or its file's bytes as `data`; `said`, called with the upright image's width and height, gives
    what the data set says of it. A log's row has `row`, and its paths are relative to `folder`. An item that failed
    while being read has `error` alone.
    """

    source: str
    path: Path | None = None
    data: bytes | None = None
    said: Saying | None = None
    row: Mapping[str, Any] | None = None
    folder: Path | None = None
    error: str | None = None


def resolve(path: Path, layout: Layout) -> Layout:
    """The layout that `auto` stands for here. Raises BadInput for a path that cannot be that layout."""
    if layout not in LAYOUTS:
        raise BadInput(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    if not path.exists():
        raise BadInput(f"{path} does not exist")
    exported = manifest(path)
    if exported.get("state", "complete") != "complete":
        raise BadInput(f"{path} is an export that was not finished; run `lakeloop slice export` again, it goes on")
    if path.is_dir() and layout == "table":
        raise BadInput(f"{path} is a folder; layout table needs a {', '.join(sorted(TABLE_SUFFIXES))} file")
    if layout == "auto":
        if exported.get("format") == "list":
            raise BadInput(f"{path} is a list of image_ids without images; see: lakeloop slice create --ids")
        return _EXPORTED.get(str(exported.get("format"))) or _recognised(path)
    suffix = path.suffix.lower()
    if path.is_file() and (
        (layout == "table" and suffix not in TABLE_SUFFIXES)
        or (layout == "folder" and suffix not in IMAGE_SUFFIXES)
        or layout in ("imagefolder", "voc")
    ):
        raise BadInput(f"{path} is neither a folder, an image, nor a {', '.join(sorted(TABLE_SUFFIXES))} file")
    return layout


def manifest(path: Path) -> dict[str, Any]:
    """What an export in a folder says of itself; empty when there is none."""
    file = path / MANIFEST
    if not path.is_dir() or not file.is_file():
        return {}
    from lake.formats.paths import document

    found = document(file)
    return found if isinstance(found, dict) else {}


def _recognised(path: Path) -> Layout:
    from lake.formats import arrow_rows, coco, metadata, voc, webdataset, yolo

    suffix = path.suffix.lower()
    if path.is_file():
        if path.name in metadata.NAMES:
            return "metadata"
        if suffix == ".parquet" and arrow_rows.holds_images(path):
            return "parquet"
        if suffix in TABLE_SUFFIXES:
            return "table"
        if suffix in IMAGE_SUFFIXES:
            return "folder"
        if suffix == ".json" and coco.documents(path):
            return "coco"
        if webdataset.shards(path):
            return "webdataset"
        if yolo.description(path) is not None:
            return "yolo"
        raise BadInput(
            f"{path} is neither a folder, an image, nor a {', '.join(sorted(TABLE_SUFFIXES))} file, nor a data set's"
            " (COCO .json, YOLO data.yaml, WebDataset .tar)"
        )
    if arrow_rows.lance_table(path) is not None:
        return "lance"
    if voc.folders(path):
        return "voc"
    if metadata.files(path):
        return "metadata"
    if coco.documents(path):
        return "coco"
    if yolo.recognised(path):
        return "yolo"
    if _looks_like_classes(path):
        return "imagefolder"
    if webdataset.shards(path):
        return "webdataset"
    return "parquet" if arrow_rows.parquet_files(path) else "folder"


def read(path: Path, layout: Layout, model: Model | None = None) -> Iterator[Item]:
    """Everything at `path`, in a stable order. `model`: whose answers a data set's boxes, masks or scores are."""
    from lake.formats import arrow_rows, coco, metadata, voc, webdataset, yolo

    layout = resolve(path, layout)
    data_sets = {
        "coco": coco.read,
        "yolo": yolo.read,
        "voc": voc.read,
        "metadata": metadata.read,
        "webdataset": webdataset.read,
        "parquet": arrow_rows.read_parquet,
        "lance": arrow_rows.read_lance,
    }
    if layout in data_sets:
        yield from data_sets[layout](path, model or Model())
    elif model is not None and model.name is not None:
        raise BadInput(f"layout {layout} takes no --model; a log names its models in the column model")
    elif layout == "table":
        yield from _table(path)
    elif path.is_file():
        yield Item(shown(path), path=path)
    elif layout == "imagefolder":
        yield from _image_folder(path)
    else:
        yield from _images_under(path)


def shown(path: str | Path) -> str:
    """The path as text that can be stored and printed: of a name that is no UTF-8, what can be read."""
    return os.fsencode(path).decode("utf-8", "replace")


def _looks_like_classes(root: Path) -> bool:
    """Two or more subfolders, every image exactly one level down: `class/img.jpg`. Only the start is looked at."""
    folders = 0
    with os.scandir(root) as entries:
        listed = list(entries)
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            with os.scandir(entry.path) as inside:
                first = next((e for e in inside if not e.name.startswith(".")), None)
            if first is not None and first.is_dir():
                return False
            folders += 1
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            return False
    return folders >= 2


def _image_folder(root: Path) -> Iterator[Item]:
    classes = manifest(root).get("classes")
    with os.scandir(root) as entries:
        listed = sorted(entries, key=lambda e: e.name)
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            label = shown(entry.name)
            yield from _images_under(
                Path(entry.path), classes.get(label, label) if isinstance(classes, dict) else label
            )
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            yield Item(shown(entry.path), error="not in a class folder (layout imagefolder is class/image)")


def _images_under(root: Path, label: str | None = None) -> Iterator[Item]:
    seen: set[tuple[int, int]] = set()
    unreadable: list[OSError] = []
    for folder, subfolders, files in os.walk(root, onerror=unreadable.append, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            path = Path(folder, name)
            if suffix in IMAGE_SUFFIXES:
                said = None if label is None else partial(of_class, label)
                yield Item(shown(path), path=path, said=said)
            elif suffix in FOREIGN_SUFFIXES:
                yield Item(shown(path), error=f"{suffix} images are not supported; convert them to JPEG or PNG")
    for error in unreadable:
        yield Item(shown(error.filename), error=error.strerror or str(error))


def of_class(label: str, width: int, height: int) -> Said:
    """That an image is of one class, whatever its size: with its first argument given, a `Saying`."""
    return Said([Truth(CLASSIFICATION, label)], annotator="imagefolder")


def _table(path: Path) -> Iterator[Item]:
    suffix = path.suffix.lower()
    rows = {".parquet": _parquet, ".jsonl": json_lines, ".ndjson": json_lines}.get(suffix, csv_rows)
    for place, row in rows(path):
        if isinstance(row, str):
            yield Item(shown(place), error=row)
        else:
            yield Item(shown(place), row=row, folder=path.parent)


def _encoding(path: Path) -> str:
    """UTF-8, or UTF-16 when the file says so with its first two bytes (what spreadsheets call Unicode text)."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    csv.field_size_limit(_CSV_FIELD_BYTES)
    with path.open(newline="", encoding=_encoding(path), errors="replace") as file:
        lines = _Lines(line.replace("\0", "�") for line in file)
        reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header: list[str] | None = None
        while True:
            lines.taken.clear()
            try:
                values = next(reader, None)
            except csv.Error as error:
                lines.give_back()
                yield f"{path}:{lines.number}", f"broken CSV: {error}"
                continue
            if values is None:
                break
            if header is None:
                header = values
            elif len(values) > len(header):
                yield f"{path}:{lines.number}", "more values than columns"
            elif values:
                yield f"{path}:{lines.number}", dict(zip(header, values, strict=False))
        if not header:
            raise BadInput(f"{path} has no header line")


class _Lines:
    """The lines of a file, which can be given back: a stray quote would swallow the rows after it."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def give_back(self) -> None:
        """Every line taken but the first."""
        rest = self.taken[1:]
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)


def json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    with path.open(encoding=_encoding(path), errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
                yield place, f"broken JSON: {error}"
                continue
            yield place, row if isinstance(row, dict) else "the line is not a JSON object"


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=2_048):
                for row in as_dicts(batch):
                    number += 1
                    yield f"{path}:{number}", row
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path} is no readable Parquet file: {error}") from error


def as_dicts(batch: Any) -> Iterator[Mapping[str, Any] | str]:
    """Rows as Python values; for one that Python cannot say (a date beyond the year 9999), the reason."""
    import pyarrow as pa

    # Arrow gives nanoseconds to those only who have pandas.
    coarser = [
        f.with_type(pa.timestamp("us", f.type.tz)) if pa.types.is_timestamp(f.type) and f.type.unit == "ns" else f
        for f in batch.schema
    ]
    batch = batch.cast(pa.schema(coarser), safe=False)
    try:
        yield from batch.to_pylist(maps_as_pydicts="lossy")
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist(maps_as_pydicts="lossy")
            except (ValueError, OverflowError) as error:
                yield f"a value cannot be read: {error}"
