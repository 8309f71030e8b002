"""Writes COCO: `annotations.json`, `images/`, and `predictions.json`, a list of results.

Beyond the format, in keys that readers ignore: an image's `tasks` (those it is labelled for; an image without
annotations may or may not be labelled), its `label` and the header of its prediction, `answer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, ExportSample
from lake.formats.export_files import ExportPart, WholeExport
from lake.regions import masks


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    number_of = {name: i for i, name in enumerate(part.plan.classes, start=1)}
    for sample in samples:
        part.file(f"images/{sample.name}", sample.image.data)
        truths, number = sample.ground_truths, sample.number + 1
        image: dict[str, Any] = {
            "id": number,
            "file_name": sample.name,
            "width": sample.image.width,
            "height": sample.image.height,
            "tasks": [t for t in (DETECTION, SEGMENTATION) if t in truths],
        }
        if CLASSIFICATION in truths:
            image["label"] = truths[CLASSIFICATION].label
        for task in image["tasks"]:
            part.leave_out(f"class of a whole image's {task}", truths[task].label is not None)
            unpaired = task == SEGMENTATION and len(truths[task].boxes or ()) not in (0, len(truths[task].masks or ()))
            part.leave_out("boxes that do not pair with their masks", unpaired)
            for box, mask in truths[task].instances():
                part.line("annotations", _record(number, number_of, box, mask) | {"iscrowd": 0})
            for box, mask in truths[task].crowds():
                part.line("annotations", _record(number, number_of, box, mask) | {"iscrowd": 1})
        if sample.prediction is not None:
            image["answer"] = annotation.prediction_header(sample.prediction)
            for box, mask in annotation.prediction_regions(sample.prediction).instances():
                part.line("predictions", _record(number, number_of, box, mask))
        part.line("images", image)


def _record(image: int, number_of: Mapping[str, int], box: Mapping[str, Any], mask: Any) -> dict[str, Any]:
    record = {
        "image_id": image,
        "category_id": number_of[(mask or box)["label"] or ""],
        "bbox": [box["x"], box["y"], box["width"], box["height"]],
    }
    if mask is None:
        record |= {"segmentation": [], "area": box["width"] * box["height"]}
    else:
        rle = {"size": [mask["height"], mask["width"]], "counts": mask["counts"]}
        record |= {"segmentation": rle, "area": masks.area(mask["counts"])}
    score = (mask or box)["score"]
    return record if score is None else record | {"score": score}


def finish(whole: WholeExport) -> None:
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(whole.plan.classes, start=1)]
    with whole.open("annotations.json") as out:
        info = annotation.as_json({"description": f"slice {whole.plan.slice}", "version": "1.0"})
        out.write(f'{{"info": {info}, "licenses": [],\n"categories": {annotation.as_json(categories)},\n'.encode())
        out.write(b'"images": [\n')
        _list(out, whole.lines("images"))
        out.write(b'],\n"annotations": [\n')
        _list(out, ({"id": i, **record} for i, record in enumerate(whole.lines("annotations"), start=1)))
        out.write(b"]}\n")
    if whole.plan.predictions is not None:
        with whole.open("predictions.json") as out:
            out.write(b"[\n")
            _list(out, ({k: v for k, v in record.items() if v != []} for record in whole.lines("predictions")))
            out.write(b"]\n")


def _list(out: Any, values: Iterator[Any]) -> None:
    for number, value in enumerate(values):
        out.write(f"{',' if number else ''}{annotation.as_json(value)}\n".encode())
