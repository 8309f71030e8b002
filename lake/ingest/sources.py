"""Which layout a path on disk has, and its items: a folder, a prediction log or a data set.

The data sets' readers are in `lake/formats/`. Nothing here decodes images or writes: `lake/ingest/ingest.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from lake.errors import BadInput
from lake.formats import arrow_rows, image_files, imagefolder, metadata, turned_images, webdataset
from lake.formats.coco import documents as coco_documents
from lake.formats.coco import reader as coco
from lake.formats.item import Item, ReadOptions, printable
from lake.formats.paths import manifest
from lake.formats.voc import reader as voc
from lake.formats.yolo import data_sets as yolo_data_sets
from lake.formats.yolo import reader as yolo
from lake.prediction_logs import log, table_rows

Layout = Literal[
    "auto", "folder", "imagefolder", "table", "coco", "yolo", "voc", "metadata", "webdataset", "parquet", "lance"
]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
# Format of an export -> layout.
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
_LOGS = f"{', '.join(log.SUFFIXES)} file"


def resolve(path: Path, layout: Layout) -> Layout:
    """The layout of `path`; `auto` is recognised. Raises BadInput if `path` cannot have that layout."""
    if layout not in LAYOUTS:
        raise BadInput(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if not path.exists():
        raise BadInput(f"{path} does not exist")
    exported = manifest(path)
    if exported.get("state", "complete") != "complete":
        raise BadInput(f"{path} is an unfinished export; run `lakeloop slice export` again to continue it")
    if path.is_dir() and layout == "table":
        raise BadInput(f"{path} is a folder; layout table needs a {_LOGS}")
    if layout == "auto":
        if exported.get("format") == "list":
            raise BadInput(f"{path} is a list of image_ids without images; see: lakeloop slice create --ids")
        return _EXPORTED.get(str(exported.get("format"))) or _recognised(path)
    if path.is_file() and (
        (layout == "table" and log.suffix(path) not in log.SUFFIXES)
        or (layout == "folder" and image_files.of_file(path).path is None)
        or layout in ("imagefolder", "voc")
    ):
        raise BadInput(f"{path} is neither a folder, an image, nor a {_LOGS}")
    return layout


def _recognised(path: Path) -> Layout:
    suffix = path.suffix.lower()
    if path.is_file():
        if path.name in metadata.NAMES:
            return "metadata"
        if suffix == ".parquet" and arrow_rows.holds_images(path):
            return "parquet"
        if suffix == ".json" and table_rows.holds_log_rows(path):
            return "table"
        if suffix != ".json" and log.suffix(path) in log.SUFFIXES:
            return "table"
        if suffix == ".json" and coco_documents.find(path):
            return "coco"
        if suffix == ".json" and table_rows.holds_json_rows(path):
            return "table"
        if webdataset.shards(path):
            return "webdataset"
        if yolo_data_sets.description(path) is not None:
            return "yolo"
        if image_files.of_file(path).path is not None:
            return "folder"
        raise BadInput(
            f"{path} is neither a folder, an image, nor a {_LOGS}, nor a data set's"
            " (COCO .json, YOLO data.yaml, WebDataset .tar)"
        )
    if arrow_rows.lance_table(path) is not None:
        return "lance"
    if voc.folders(path):
        return "voc"
    if metadata.files(path):
        return "metadata"
    if coco_documents.find(path):
        return "coco"
    if yolo_data_sets.recognised(path):
        return "yolo"
    if imagefolder.recognised(path):
        return "imagefolder"
    if webdataset.shards(path):
        return "webdataset"
    return "parquet" if arrow_rows.parquet_files(path) else "folder"


def read(path: Path, layout: Layout, options: ReadOptions | None = None) -> Iterator[Item]:
    """All items at `path`, in a stable order."""
    layout = resolve(path, layout)
    options = options or ReadOptions()
    if layout != "table" and options.log != log.LogOptions():
        raise BadInput(
            f"{path} has layout {layout}; --map, --truth, --encoding, --separator and --confidence-scale are for "
            "prediction logs (--layout table)"
        )
    items = _items(path, layout, options)
    if options.orientation is None:
        yield from items
        return
    for item in items:
        image = item.data if item.path is None else item.path
        if item.read_annotations is not None and image is not None:
            reader = turned_images.oriented(item.read_annotations, image, options.orientation)
            item = replace(item, read_annotations=reader)
        yield item


def _items(path: Path, layout: Layout, options: ReadOptions) -> Iterator[Item]:
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
        items = data_sets[layout](path, options)
        yield from _and_the_rest(path, layout, items) if path.is_dir() and layout in _READ else items
    elif options.model.name is not None:
        raise BadInput(f"layout {layout} does not take --model; a log has its models in the column model")
    elif layout == "table":
        yield from _log(log.PredictionLog(path, options.log, options.typed))
    elif path.is_file():
        yield Item(printable(path), path=path)
    elif layout == "imagefolder":
        yield from imagefolder.read(path)
    else:
        yield from imagefolder.unlabelled(path)


def _and_the_rest(path: Path, layout: Layout, items: Iterator[Item]) -> Iterator[Item]:
    """The items, and then the files in the folder that none of them was about, which are passed over."""
    seen = set()  # hashes: a set of a million names would take much memory
    for item in items:
        seen.add(hash(item.source))
        yield item
    documents = {printable(file) for file in coco_documents.find(path)} if layout == "coco" else set()
    for item in image_files.below(path):
        file = Path(item.source)
        if hash(item.source) in seen or item.source in documents or file.suffix.lower() in _READ[layout]:
            continue
        if layout == "voc" and _VOC_FOLDERS & {*file.parts}:
            continue
        yield item if item.path is None else replace(item, path=None, passed_over=UNNAMED)


UNNAMED = "an image that no document names"
# Suffixes of files that readers of these layouts read besides images, without an item for each.
_READ: dict[Layout, tuple[str, ...]] = {
    "coco": (),
    "yolo": (".txt", ".yaml", ".yml", ".cache", ".jsonl", ".names"),
    "voc": (".xml", ".txt"),
    "webdataset": (".tar", ".gz", ".tgz", ".txt"),
    "parquet": (".parquet",),
}
_VOC_FOLDERS = {"SegmentationObject", "SegmentationClass", "ImageSets"}


def _log(prediction_log: log.PredictionLog) -> Iterator[Item]:
    folder = prediction_log.path.parent
    for source, row in prediction_log.rows():
        if isinstance(row, str):
            yield Item(printable(source), error=row)
        else:
            yield Item(printable(source), row=row, folder=folder, log=prediction_log)
