"""Hugging Face's image folder with `metadata.jsonl` or `metadata.csv`; its row is shared by all lossless formats.

A row: `file_name`, `label`, `objects` {"bbox": [[x, y, width, height]], "category", "score"} for a detection,
`segments` {"bbox", "category", "score", "size": [[height, width]], "counts"} for a segmentation, `prediction` for one
row of a prediction log. Null means not labelled, an empty list means no instances. Other columns become metadata of the
image.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lake import spreadsheets
from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    Annotations,
    ExportSample,
    GroundTruth,
    ModelName,
)
from lake.formats.export_files import ExportPart, WholeExport
from lake.formats.item import IMAGE_SUFFIXES, Item, printable
from lake.formats.paths import inside
from lake.prediction_logs.table_rows import csv_rows, json_lines

NAMES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("file_name", "image_id", "width", "height", "label", "objects", "segments", "prediction")


# Reading ---------------------------------------------------------------------------------------------------


def files(path: Path) -> list[Path]:
    """The metadata files of a data set: `path` itself, or those in it and in the folders of its splits."""
    if path.is_file():
        return [path]
    return [f for folder in (path, *sorted(path.glob("*/"))) for n in NAMES if (f := folder / n).is_file()]


def read(path: Path, model: ModelName) -> Iterator[Item]:
    paths = files(path)
    if not paths:
        raise BadInput(f"{path} has no {' or '.join(NAMES)}")
    named: set[str] = set()
    for file in paths:
        rows = csv_rows(file) if file.suffix.lower() in (".csv", ".tsv") else json_lines(file)
        for source, row in rows:
            if isinstance(row, str):
                yield Item(printable(source), error=row)
                continue
            try:
                image = inside(file.parent, row.get("file_name"))
            except BadInput as error:
                yield Item(printable(source), error=f"file_name: {error}")
                continue
            named.add(os.path.realpath(image))
            yield Item(printable(source), path=image, read_annotations=partial(annotations_of, row, source, model))
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                image = Path(folder, name)
                if image.suffix.lower() in IMAGE_SUFFIXES and os.path.realpath(image) not in named:
                    yield Item(printable(image), path=image)


def annotations_of(row: Mapping[str, Any], source: str, model: ModelName, width: int, height: int) -> Annotations:
    """The annotations in a row. Values may be JSON text, as in CSV."""
    annotations = Annotations(annotator="metadata")
    label = row.get("label")
    if label not in (None, ""):
        annotations.ground_truths.append(GroundTruth(CLASSIFICATION, str(label)))
    for column, task in (("objects", DETECTION), ("segments", SEGMENTATION)):
        try:
            truth = _truth(task, _value(row.get(column), dict, column), height, width)
        except BadInput as error:
            annotations.rejected.append((printable(f"{source}: {column}"), str(error)))
            continue
        if truth is not None:
            annotations.ground_truths.append(annotation.without_redundant_boxes(truth))
    if model.name is not None:
        header = {"model": model.name, "model_version": model.version}
        annotations.predictions = [
            {**header, "label": t.label, "boxes": t.boxes, "masks": t.masks} for t in annotations.ground_truths
        ]
        annotations.ground_truths = []
    try:
        prediction = _value(row.get("prediction"), dict, "prediction")
        if prediction:
            annotations.predictions.append(dict(prediction))
    except BadInput as error:
        annotations.rejected.append((printable(f"{source}: prediction"), str(error)))
    columns = {*COLUMNS, "image"}
    annotations.metadata = {k: v for k, v in row.items() if k not in columns and v not in (None, "")}
    return annotations


def _value(value: Any, kind: type, name: str) -> Any:
    if isinstance(value, str):
        if not value:
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{name} is not JSON") from error
    if value is not None and not isinstance(value, kind):
        raise BadInput(f"{name} is not an object")
    return value


def _truth(task: str, column: Mapping[str, Any] | None, height: int, width: int) -> GroundTruth | None:
    if column is None:
        return None
    corners = column.get("bbox")
    names = ("category", "categories", "label", "labels")
    classes: Any = next((column[k] for k in names if column.get(k) is not None), [])
    if not isinstance(classes, list) or not isinstance(corners, list | None):
        raise BadInput("bbox and category are not lists")
    scores = column.get("score") or [None] * len(classes)
    if task == DETECTION and corners is not None and not classes:
        classes, scores = [None] * len(corners), [None] * len(corners)
    lengths = {len(x) for x in (classes, scores, *([corners] if corners is not None else []))}
    if len(lengths) != 1:
        raise BadInput("its lists differ in length")
    boxes = None
    if corners is not None:
        if not all(isinstance(c, list) for c in corners):
            raise BadInput("bbox is not a list of [x, y, width, height]")
        boxes = [annotation.box(n, c, s) for n, c, s in zip(classes, corners, scores, strict=True)]
    if task == DETECTION:
        if boxes is None:
            raise BadInput("it has no bbox")
        return GroundTruth(task, boxes=boxes)
    from lake.regions import masks

    sizes, counts = column.get("size"), column.get("counts")
    if not isinstance(sizes, list) or not isinstance(counts, list) or not len(sizes) == len(counts) == len(classes):
        raise BadInput("size and counts are not lists as long as category")
    instances = []
    for n, size, text, s in zip(classes, sizes, counts, scores, strict=True):
        if size != [height, width]:
            raise BadInput(f"a mask's size is {size!r}, the image's is [{height}, {width}]")
        if not isinstance(text, str):
            raise BadInput("counts are not text")
        masks.check(masks.decompress(text), height, width)
        instances.append(annotation.mask(n, text, height, width, s))
    return GroundTruth(task, boxes=boxes, masks=instances)


# Writing ---------------------------------------------------------------------------------------------------


def row_of(part: ExportPart, sample: ExportSample, file_name: str | None) -> dict[str, Any]:
    """An image with its labels and prediction as a JSON object."""
    truths = sample.ground_truths
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"image_id": sample.image.image_id, "width": sample.image.width, "height": sample.image.height}
    row["file_name"] = file_name
    if CLASSIFICATION in truths:
        row["label"] = truths[CLASSIFICATION].label
    if DETECTION in truths:
        boxes = truths[DETECTION].boxes or ()
        row["objects"] = {"bbox": _corners(boxes), **_names(boxes)}
    if SEGMENTATION in truths:
        masks, boxes_of_masks = truths[SEGMENTATION].masks or (), truths[SEGMENTATION].boxes
        paired = boxes_of_masks is not None and len(boxes_of_masks) == len(masks)
        part.leave_out("boxes that do not pair with their masks", boxes_of_masks is not None and not paired)
        row["segments"] = {
            "bbox": _corners(boxes_of_masks) if boxes_of_masks is not None and paired else None,
            **_names(masks),
            "size": [[m["height"], m["width"]] for m in masks],
            "counts": [m["counts"] for m in masks],
        }
    for task in (DETECTION, SEGMENTATION):
        part.leave_out(f"class of a whole image's {task}", task in truths and truths[task].label is not None)
    row["prediction"] = None if sample.prediction is None else dict(sample.prediction)
    return row


def _corners(boxes: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    return [[b["x"], b["y"], b["width"], b["height"]] for b in boxes]


def _names(instances: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names: dict[str, list[Any]] = {"category": [i["label"] for i in instances]}
    scores = [i["score"] for i in instances]
    # `datasets` cannot read a list of nulls.
    return names if all(score is None for score in scores) else names | {"score": scores}


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    for sample in samples:
        name = f"images/{sample.name}"
        part.file(name, sample.image.data)
        part.line("rows", row_of(part, sample, name))


def finish_jsonl(whole: WholeExport) -> None:
    whole.text("metadata.jsonl", map(annotation.as_json, whole.lines("rows")))


def finish_csv(whole: WholeExport) -> None:
    with whole.open("metadata.csv") as out:
        out.write(_csv_line(COLUMNS))
        for row in whole.lines("rows"):
            values = [row[c] for c in COLUMNS]
            out.write(
                _csv_line("" if v is None else annotation.as_json(v) if isinstance(v, dict) else v for v in values)
            )


def _csv_line(values: Any) -> bytes:
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(spreadsheets.cell(str(value)) for value in values)
    return line.getvalue().encode()


def write_hub(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    """As `load_dataset("imagefolder")` and the Hub's viewer read it: one folder per split."""
    for sample in samples:
        part.file(f"train/{sample.name}", sample.image.data)
        part.line("rows", row_of(part, sample, sample.name))


def finish_hub(whole: WholeExport) -> None:
    whole.text("train/metadata.jsonl", map(annotation.as_json, whole.lines("rows")))
    card = (
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        '    path: "train/**"',
        "---",
    )
    about = f"{whole.plan.images:,} images of the slice {whole.plan.slice}, written by lakeloop."
    whole.text("README.md", iter([*card, "", f"# {whole.plan.slice}", "", about]))
