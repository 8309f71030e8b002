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
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lake import spreadsheets
from lake.errors import BadInput
from lake.formats import annotation, image_files, marks, splits
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
from lake.formats.item import Item, ReadOptions, printable
from lake.formats.numbers import whole
from lake.formats.paths import inside
from lake.formats.turned_images import check_size
from lake.prediction_logs.table_rows import csv_rows, json_lines
from lake.regions import masks

NAMES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("file_name", "image_id", "width", "height", "label", "objects", "segments", "prediction", *marks.COLUMNS)


# Reading ---------------------------------------------------------------------------------------------------


def files(path: Path) -> list[Path]:
    """The metadata files of a data set: `path` itself, or those in it and in the folders of its splits."""
    if path.is_file():
        return [path]
    return [f for folder in (path, *sorted(path.glob("*/"))) for n in NAMES if (f := folder / n).is_file()]


@dataclass(frozen=True)
class RowContext:
    """Where a row comes from. `document`: the absolute path of its file; `split`: that of its folder or file."""

    document: str
    options: ReadOptions
    split: str | None = None


def read(path: Path, options: ReadOptions) -> Iterator[Item]:
    paths = files(path)
    if not paths:
        raise BadInput(f"{path} has no {' or '.join(NAMES)}")
    root = path if path.is_dir() else path.parent
    named: set[str] = set()
    for file in paths:
        rows = csv_rows(file) if file.suffix.lower() in (".csv", ".tsv") else json_lines(file)
        context = RowContext(os.path.abspath(file), options, splits.of_path(root, file))
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
            reader = partial(annotations_of, row, source, image, context)
            yield Item(printable(source), path=image, read_annotations=reader)
    if path.is_dir():
        documents = {printable(file) for file in paths}
        for item in image_files.below(path):
            if item.source not in documents and (item.path is None or os.path.realpath(item.path) not in named):
                yield item


def annotations_of(
    row: Mapping[str, Any], source: str, image: Path | bytes, context: RowContext, width: int, height: int
) -> Annotations:
    """The annotations in a row. Values may be JSON text, as in CSV."""
    annotations = Annotations(annotator="metadata", source=context.document)
    _add_class(annotations, row.get("label"), source)
    for column, task in (("objects", DETECTION), ("segments", SEGMENTATION)):
        where = printable(f"{source}: {column}")
        try:
            value = _regions(_value(row.get(column), (dict, list), column))
            if value is None:
                continue
            check_size((row.get("width"), row.get("height")), width, height, image, context.options.orientation)
            truth = _truth(task, value, annotations, where, height, width)
        except BadInput as error:
            annotations.rejected.append((where, str(error)))
            annotations.incomplete.add(task)
        else:
            annotations.ground_truths.append(annotation.without_redundant_boxes(truth))

    def regions_of(task: str, column: Any) -> GroundTruth | None:
        value = _regions(_value(column, (dict, list), task))
        return None if value is None else _truth(task, value, annotations, printable(source), height, width)

    marks.read({k: _json(row.get(k)) for k in marks.COLUMNS}, annotations, printable(source), regions_of)
    if context.options.model.name is not None:
        _turn_into_predictions(annotations, context.options.model, source)
    try:
        prediction = _value(row.get("prediction"), (dict,), "prediction")
        if prediction:
            annotations.predictions.append(dict(prediction))
    except BadInput as error:
        annotations.rejected.append((printable(f"{source}: prediction"), str(error)))
    columns = {*COLUMNS, "image"}
    annotations.metadata = {k: v for k, v in row.items() if k not in columns and v not in (None, "")}
    if context.split is not None:
        annotations.metadata.setdefault("split", context.split)
    return annotations


def _add_class(annotations: Annotations, label: Any, source: str) -> None:
    if label in (None, "") or (isinstance(label, float) and math.isnan(label)):
        return
    try:
        annotations.ground_truths.append(GroundTruth(CLASSIFICATION, _class(label)))
    except BadInput as error:
        annotations.rejected.append((printable(f"{source}: label"), str(error)))
        annotations.incomplete.add(CLASSIFICATION)


def _class(label: Any) -> str:
    """A class as text: 5 and 5.0 are "5". Raises BadInput for what is neither text nor a number."""
    if isinstance(label, str):
        return label
    if isinstance(label, bool) or not isinstance(label, int | float) or not math.isfinite(label):
        raise BadInput(f"{label!r:.60} is not a class: a class is text or a number")
    return str(whole(label) if whole(label) is not None else label)


def _turn_into_predictions(annotations: Annotations, model: ModelName, source: str) -> None:
    header = {"model": model.name, "model_version": model.version}
    for truth in annotations.statements():
        if truth.incomplete:
            reason = f"the model's {truth.task} is left out, since a part of it was refused"
            annotations.rejected.append((printable(source), reason))
        else:
            row = {"label": truth.label, "boxes": truth.boxes, "masks": truth.masks}
            annotations.predictions.append({**header, **row})
    annotations.ground_truths, annotations.incomplete = [], set()


def _json(value: Any) -> Any:
    """A value that CSV has as JSON text; None for an empty one."""
    try:
        return json.loads(value) if isinstance(value, str) and value else value or None
    except (ValueError, RecursionError):
        return value


def _value(value: Any, kinds: tuple[type, ...], name: str) -> Any:
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{name} is not JSON") from error
    if isinstance(value, float) and math.isnan(value):  # an empty field, as pandas writes it
        return None
    if value is not None and not isinstance(value, kinds):
        raise BadInput(f"{name} is {value!r:.60}, not an object")
    return value


def _regions(column: Any) -> Mapping[str, Any] | None:
    """A list of one object for each region, as some write it, in the form of one list for each key."""
    if not isinstance(column, list):
        return column  # type: ignore[no-any-return]
    if not all(isinstance(region, dict) for region in column):
        raise BadInput("it is a list of something that is not an object")
    keys = {key for region in column for key in region}
    lists: dict[str, Any] = {key: [region.get(key) for region in column] for key in keys}
    return {key: None if all(v is None for v in values) else values for key, values in lists.items()} or {"bbox": []}


def _truth(
    task: str, column: Mapping[str, Any], annotations: Annotations, where: str, height: int, width: int
) -> GroundTruth:
    """The ground truth in a column; regions that cannot be read are rejected one by one. Raises BadInput."""
    corners = column.get("bbox")
    names = ("category", "categories", "label", "labels")
    classes: Any = next((column[k] for k in names if column.get(k) is not None), [])
    if not isinstance(classes, list) or not isinstance(corners, list | None):
        raise BadInput("bbox and category are not lists")
    scores = column.get("score") or [None] * len(classes)
    if task == DETECTION and corners is not None and not classes:
        classes, scores = [None] * len(corners), [None] * len(corners)
    lists = [classes, scores] if corners is None else [classes, scores, corners]
    if not isinstance(scores, list) or len({*map(len, lists)}) != 1:
        raise BadInput("its lists differ in length")
    sizes, counts = column.get("size"), column.get("counts")
    if task == DETECTION and corners is None:
        raise BadInput("it has no bbox")
    if task == SEGMENTATION and not (
        isinstance(sizes, list) and isinstance(counts, list) and len(sizes) == len(counts) == len(classes)
    ):
        raise BadInput("size and counts are not lists as long as category")
    boxes: list[Any] = []
    drawn: list[Any] = []
    for index, (name, score) in enumerate(zip(classes, scores, strict=True)):
        try:
            label = None if name is None else _class(name)
            box = None if corners is None else _box(label, corners[index], score)
            if task == SEGMENTATION:
                drawn.append(_mask(label, sizes[index], counts[index], score, height, width))  # type: ignore[index]
            boxes.append(box)
        except BadInput as error:
            annotations.rejected.append((f"{where}[{index}]", str(error)))
            annotations.incomplete.add(task)
    if task == DETECTION:
        return GroundTruth(task, boxes=boxes)
    return GroundTruth(task, boxes=None if corners is None else boxes, masks=drawn)


def _box(label: str | None, corner: Any, score: Any) -> dict[str, Any]:
    if not isinstance(corner, list):
        raise BadInput(f"bbox is {corner!r:.60}, not [x, y, width, height]")
    return annotation.box(label, corner, score)


def _mask(label: str | None, size: Any, counts: Any, score: Any, height: int, width: int) -> dict[str, Any]:
    if not isinstance(size, list) or [whole(side) for side in size] != [height, width]:
        raise BadInput(f"the mask's size is {size!r:.60}, the image's is [{height}, {width}]")
    if not isinstance(counts, str):
        raise BadInput("counts are not text")
    masks.check(masks.decompress(counts), height, width)
    return annotation.mask(label, counts, height, width, score)


# Writing ---------------------------------------------------------------------------------------------------


def row_of(part: ExportPart, sample: ExportSample, file_name: str | None) -> dict[str, Any]:
    """An image with its labels and prediction as a JSON object."""
    truths = sample.ground_truths
    row: dict[str, Any] = dict.fromkeys(column for column in COLUMNS if column not in marks.COLUMNS)
    row |= {"image_id": sample.image.image_id, "width": sample.image.width, "height": sample.image.height}
    row["file_name"] = file_name
    if CLASSIFICATION in truths:
        row["label"] = truths[CLASSIFICATION].label
    if DETECTION in truths:
        boxes = truths[DETECTION].boxes or ()
        row["objects"] = {"bbox": _corners(boxes), **_names(boxes)}
    if SEGMENTATION in truths:
        drawn, boxes_of_masks = truths[SEGMENTATION].masks or (), truths[SEGMENTATION].boxes
        paired = boxes_of_masks is not None and len(boxes_of_masks) == len(drawn)
        part.leave_out("boxes that do not pair with their masks", boxes_of_masks is not None and not paired)
        row["segments"] = {
            "bbox": _corners(boxes_of_masks) if boxes_of_masks is not None and paired else None,
            **_names(drawn),
            "size": [[m["height"], m["width"]] for m in drawn],
            "counts": [m["counts"] for m in drawn],
        }
    for task in (DETECTION, SEGMENTATION):
        part.leave_out(f"class of a whole image's {task}", task in truths and truths[task].label is not None)
    row["prediction"] = None if sample.prediction is None else dict(sample.prediction)
    return row | marks.of_row(truths)


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
            values = [row.get(c) for c in COLUMNS]
            out.write(
                _csv_line(
                    "" if v is None else annotation.as_json(v) if isinstance(v, dict | list) else v for v in values
                )
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
