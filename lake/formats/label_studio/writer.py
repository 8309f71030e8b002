"""Writes Label Studio tasks: `tasks.json` with pre-labels, `label-config.xml` and `images/`.

A task's `data` has lakeloop's `image_id`; known labels are sent as predictions of the model version LABELS, a model's
prediction as MODEL/VERSION. Regions are in percent of the image's size (labelstud.io/guide/predictions).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, ExportSample, GroundTruth
from lake.formats.export_files import ExportPart, ExportPlan, WholeExport
from lake.regions import masks, polygons

# The model version of labels that are sent as pre-labels.
LABELS = "labels"
# The URL of local files if Label Studio's LOCAL_FILES_DOCUMENT_ROOT is the folder above the export.
LOCAL = "/data/local-files/?d="


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    tasks = _tasks(part.plan)
    for sample in samples:
        name = f"images/{sample.name}"
        part.file(name, sample.image.data)
        data = {"image": f"{LOCAL}{part.root.resolve().name}/{name}", "image_id": sample.image.image_id, "asked": tasks}
        predictions = []
        labels = [r for truth in sample.ground_truths.values() for r in _results(part, truth, sample, tasks)]
        if labels:
            predictions.append({"model_version": LABELS, "result": labels})
        if sample.prediction is not None:
            predictions += _prediction(part, sample, tasks)
        part.line("tasks", {"data": data, "predictions": predictions})


def finish(whole: WholeExport) -> None:
    with whole.open("tasks.json") as out:
        out.write(b"[")
        for number, task in enumerate(whole.lines("tasks")):
            out.write(f"{',' if number else ''}\n{annotation.as_json(task)}".encode())
        out.write(b"\n]\n")
    names = (
        whole.plan.classes
        if _tasks(whole.plan) != [CLASSIFICATION]
        else {*whole.plan.labels, *whole.lines("predicted")}
    )
    whole.text("label-config.xml", _config(_tasks(whole.plan)[0], sorted(name for name in names if name)))


def _tasks(plan: ExportPlan) -> list[str]:
    """What people are asked to label: regions if any are known, else a class of the whole image."""
    return [plan.task] if plan.classes else [CLASSIFICATION]


def _config(task: str, names: Sequence[str]) -> Iterator[str]:
    """The project's labelling interface. New classes are added in Label Studio."""
    tag, item = {
        CLASSIFICATION: ("Choices", "Choice"),
        DETECTION: ("RectangleLabels", "Label"),
        SEGMENTATION: ("PolygonLabels", "Label"),
    }[task]
    yield "<View>"
    yield '  <Image name="image" value="$image" zoom="true"/>'
    yield f'  <{tag} name="{task}" toName="image" choice="single">'
    yield from (f"    <{item} value={quoteattr(name)}/>" for name in names)
    yield f"  </{tag}>"
    yield "</View>"


def _prediction(part: ExportPart, sample: ExportSample, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """A model's prediction; its confidence becomes the score, by which Label Studio sorts."""
    prediction = sample.prediction or {}
    truth = (
        GroundTruth(CLASSIFICATION, prediction.get("label"))
        if tasks == [CLASSIFICATION]
        else annotation.prediction_regions(prediction)
    )
    results = _results(part, truth, sample, tasks) if truth.label or tasks != [CLASSIFICATION] else []
    if not results:
        return []
    if truth.label:
        part.line("predicted", truth.label)
    version = "/".join(str(prediction[key]) for key in ("model", "model_version") if prediction.get(key) is not None)
    record = {"model_version": version, "result": results}
    return [record if prediction.get("confidence") is None else record | {"score": prediction["confidence"]}]


def _results(part: ExportPart, truth: GroundTruth, sample: ExportSample, tasks: Sequence[str]) -> list[dict[str, Any]]:
    if truth.task not in tasks:
        part.leave_out(f"{truth.task}, since people label {tasks[0]}")
        return []
    size = {"original_width": sample.image.width, "original_height": sample.image.height, "image_rotation": 0}
    width, height = sample.image.width, sample.image.height
    if truth.task == CLASSIFICATION:
        regions: list[tuple[str, dict[str, Any], str | None, float | None]] = [("choices", {}, truth.label, None)]
        size = {}
    elif truth.task == DETECTION:
        regions = [
            ("rectanglelabels", {"x": b["x"] * 100 / width, "y": b["y"] * 100 / height, "rotation": 0,
              "width": b["width"] * 100 / width, "height": b["height"] * 100 / height}, b["label"], b["score"])
            for b in truth.boxes or ()
        ]  # fmt: skip
    else:
        regions = [
            ("polygonlabels", {"points": _points(m, width, height), "closed": True}, m["label"], m["score"])
            for m in truth.masks or ()
        ]
    part.leave_out("regions without a class", sum(not name for _, _, name, _ in regions))
    results = []
    for number, (kind, position, name, score) in enumerate(regions):
        if name:
            value = position | {kind: [name]}
            record = {"id": f"{truth.task}{number}", "type": kind, "from_name": truth.task, "to_name": "image"} | size
            results.append(record | {"value": value} | ({} if score is None else {"score": score}))
    return results


def _points(mask: Mapping[str, Any], width: int, height: int) -> list[list[float]]:
    line = polygons.outline(masks.decode(mask["counts"], mask["height"], mask["width"]))
    return [[x * 100 / width, y * 100 / height] for x, y in line]
