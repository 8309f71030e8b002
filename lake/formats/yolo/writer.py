"""Writes YOLO: `data.yaml`, `images/train`, `labels/train` and `predictions/train`.

Predictions have files of their own, and their other columns are in `predictions.jsonl`: readers reject scores in
`labels/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, ExportSample, GroundTruth
from lake.formats.export_files import ExportPart, ExportPlan, WholeExport
from lake.regions import masks, polygons

_TASKS = {SEGMENTATION: "segment", DETECTION: "detect"}


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    for sample in samples:
        part.file(f"images/train/{sample.name}", sample.image.data)
        for task, truth in sample.ground_truths.items():
            if task == part.plan.task:
                part.leave_out("score of a label", sum(_score(i) is not None for i in _instances(truth)))
                part.file(f"labels/train/{sample.image.image_id}.txt", _lines(part, sample, truth, scores=False))
                part.leave_out("boxes of masks", task == SEGMENTATION and bool(truth.boxes))
                part.leave_out(f"class of a whole image's {task}", truth.label is not None)
            else:
                description = "class of an image" if task == CLASSIFICATION else task
                part.leave_out(f"{description}: this data set is for {part.plan.task}")
        if sample.prediction is not None:
            truth = annotation.prediction_regions(sample.prediction)
            part.line("predictions", {"image": sample.name, **annotation.prediction_header(sample.prediction)})
            if sample.prediction.get("boxes") is not None or truth.task == SEGMENTATION:
                lines = _lines(part, sample, truth, scores=True)
                part.file(f"predictions/train/{sample.image.image_id}.txt", lines)


def _instances(truth: GroundTruth) -> Sequence[Mapping[str, Any]]:
    return (truth.masks if truth.task == SEGMENTATION else truth.boxes) or ()


def _score(instance: Mapping[str, Any]) -> Any:
    return instance["score"]


def _lines(part: ExportPart, sample: ExportSample, truth: GroundTruth, scores: bool) -> bytes:
    number_of = {name: i for i, name in enumerate(part.plan.classes)}
    width, height = sample.image.width, sample.image.height
    lines = []
    for instance in _instances(truth):
        values = _mask(instance, width, height) if "counts" in instance else _box(instance, width, height)
        if not values or any(not 0.0 <= v <= 1.0 for v in values):
            part.leave_out("an instance that is empty, or beyond the image's edge")
            continue
        if scores and instance["score"] is not None:
            values.append(instance["score"])
        lines.append(" ".join([str(number_of[instance["label"] or ""]), *map(repr, values)]))
    return "".join(f"{line}\n" for line in lines).encode()


def _box(box: Mapping[str, Any], width: int, height: int) -> list[float]:
    x, y, w, h = (float(box[k]) for k in ("x", "y", "width", "height"))
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]


def _mask(mask: Mapping[str, Any], width: int, height: int) -> list[float]:
    if (mask["width"], mask["height"]) != (width, height):
        return []
    points = polygons.outline(masks.decode(mask["counts"], height, width))
    return [v for x, y in points for v in (x / width, y / height)]


def finish(whole: WholeExport) -> None:
    names = "".join(f"  {i}: {_quoted(name)}\n" for i, name in enumerate(whole.plan.classes)) or "  {}\n"
    with whole.open("data.yaml") as out:
        out.write(f"train: images/train\nval: images/train\ntask: {_task(whole.plan)}\nnames:\n{names}".encode())
    whole.text("predictions.jsonl", (annotation.as_json(row) for row in whole.lines("predictions")))


def _task(plan: ExportPlan) -> str:
    return _TASKS[plan.task]


def _quoted(name: str) -> str:
    """The text as a double-quoted YAML string; what is not printable is escaped."""
    out = []
    for c in name:
        if c in '"\\':
            out.append("\\" + c)
        elif (c.isascii() and c.isprintable()) or c.isalnum():
            out.append(c)
        else:
            out.append(f"\\U{ord(c):08x}")
    return f'"{"".join(out)}"'
