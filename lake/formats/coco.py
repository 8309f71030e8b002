"""COCO: one JSON document of images, categories and annotations, and lists of results with scores.

Written: `annotations.json`, `images/`, and `predictions.json`, a list of results. Beyond the format, which every reader
passes over: an image's `tasks` (what has been said of it: one without annotations may have been looked at or not), its
`label` and the header of its `answer`. Read: every such document in a folder, in `annotations/`, or beside the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

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
from lake.formats.item import Item, printable
from lake.formats.paths import MANIFEST, document, inside
from lake.formats.prediction_rows import MOST_COUNTS
from lake.regions import masks, polygons

_HEAD_BYTES = 64 << 10
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_RESULT = re.compile(rb'\A\s*\[\s*(\]|\{[^{}]*?"image_id")')


# Reading ---------------------------------------------------------------------------------------------------


@dataclass
class _Image:
    """An image as the documents know it. `tasks`: what has been said of it, when the document says so."""

    file: str
    document: Path
    width: Any = None
    height: Any = None
    tasks: Sequence[str] = ()
    label: Any = None
    answer: Mapping[str, Any] | None = None
    annotations: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    results: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    answered: bool = False


def documents(path: Path) -> list[Path]:
    """The COCO documents and lists of results at a path, told by how they begin."""
    if path.is_file():
        return [path] if _begins_so(path) else []
    found = [*path.glob("*.json"), *path.glob("annotations/*.json"), *path.glob("*/_annotations.coco.json")]
    return [p for p in sorted({*found}) if p.name != MANIFEST and p.is_file() and _begins_so(p)]


def _begins_so(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return bool(_KEYS.search(head) or _RESULT.match(head))


def read(path: Path, model: ModelName) -> Iterator[Item]:
    """The images that the documents at `path` name, with what they say. Raises BadInput for a broken document."""
    found = documents(path)
    if not found:
        raise BadInput(f"{path} holds no COCO document: no .json with images, annotations and categories")
    images: dict[Any, _Image] = {}
    categories: dict[Any, Any] = {}
    later: list[tuple[Path, list[Any]]] = []
    if path.is_file() and _is_results(path):  # its images are in the documents beside it
        beside = [p for p in documents(path.parent) if p != path and not _is_results(p)]
        found = [*beside, *found]
    refused: list[Item] = []
    for place in found:
        content = document(place)
        if isinstance(content, list):
            later.append((place, content))
        elif isinstance(content, dict):
            refused += _take(place, content, images, categories)
        else:
            raise BadInput(f"{place} is no COCO document")
    for place, results in later:
        refused += _assign(place, results, images, results=True)
    yield from refused
    if later and not images:
        raise BadInput(f"{later[0][0]} is a list of results; the document that names its images is not beside it")
    only_results = path.is_file() and bool(later)
    roots: dict[Path, Path] = {}
    for image in images.values():
        if only_results and not image.results:
            continue
        if image.document not in roots:
            names = [i.file for i in images.values() if i.document == image.document][:20]
            roots[image.document] = _images_folder(image.document, names)
        try:
            file = inside(roots[image.document], image.file)
        except BadInput as error:
            yield Item(printable(f"{image.document}: image {image.file!r}"), error=str(error))
            continue
        yield Item(printable(file), path=file, read_annotations=partial(_annotations, image, categories, model))


def _is_results(path: Path) -> bool:
    with path.open("rb") as file:
        return _RESULT.match(file.read(_HEAD_BYTES)) is not None


def _take(place: Path, content: Mapping[str, Any], images: dict[Any, _Image], categories: dict[Any, Any]) -> list[Item]:
    refused = []
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name, []), list):
            raise BadInput(f"{place}: {name} is not a list")
    for category in content.get("categories", []):
        category = category if isinstance(category, dict) else {}
        key, label = category.get("id"), category.get("name")
        if _hashable(key) and categories.setdefault(key, label) != label:
            refused.append(Item(printable(f"{place}: category {key}"), error="the id stands for two categories"))
    annotations = content.get("annotations", [])
    task = SEGMENTATION if any(isinstance(a, dict) and a.get("segmentation") for a in annotations) else DETECTION
    for index, given in enumerate(content.get("images", [])):
        where = printable(f"{place}: images[{index}]")
        if not isinstance(given, dict) or not _hashable(given.get("id")) or not isinstance(given.get("file_name"), str):
            refused.append(Item(where, error="an image needs id and file_name"))
        elif given["id"] in images:
            if images[given["id"]].file != given["file_name"]:
                refused.append(Item(where, error=f"the id {given['id']} stands for two images"))
        else:
            tasks = given.get("tasks", [task] if "annotations" in content else [])
            answer = given.get("answer")
            images[given["id"]] = _Image(
                str(given["file_name"]),
                place,
                given.get("width"),
                given.get("height"),
                [t for t in tasks if t in annotation.TASKS] if isinstance(tasks, list) else [task],
                given.get("label"),
                answer if isinstance(answer, dict) else None,
            )
    return refused + _assign(place, annotations, images, results=False)


def _assign(place: Path, given: Sequence[Any], images: dict[Any, _Image], results: bool) -> list[Item]:
    refused = []
    for number, one in enumerate(given):
        where = printable(f"{place}: {'result' if results else 'annotation'} {number}")
        if not isinstance(one, dict) or not _hashable(one.get("image_id")):
            refused.append(Item(where, error="it names no image_id"))
        elif one["image_id"] not in images:
            refused.append(Item(where, error=f"no image has the id {one['image_id']!r}"))
        else:
            image = images[one["image_id"]]
            (image.results if results else image.annotations).append((where, one))
    return refused


def _hashable(number: Any) -> bool:
    return isinstance(number, int | str)


def _images_folder(place: Path, names: Sequence[str]) -> Path:
    """Where a document's images lie: beside it, or in one of the folders data sets put them in."""
    split = re.sub(r"^(instances|image_info|person_keypoints|captions|stuff)_", "", place.stem)
    above = place.parent.parent
    folders = [place.parent, *(place.parent / n for n in ("images", "data", split, f"images/{split}"))]
    if place.parent.name == "annotations":
        folders += [above / split, above / "images" / split, above / "images", above / "data", above]
    for folder in folders:
        for name in names:
            try:
                if inside(folder, name).is_file():
                    return folder
            except BadInput:
                continue
    return folders[1] if folders[1].is_dir() else place.parent


def _annotations(
    image: _Image, categories: Mapping[Any, Any], model: ModelName, width: int, height: int
) -> Annotations:
    annotations = Annotations(annotator="coco")
    if image.label not in (None, ""):
        annotations.ground_truths.append(GroundTruth(CLASSIFICATION, str(image.label)))
    size = (image.width, image.height)
    if None not in size and size != (width, height):
        reason = f"the document says {size[0]} x {size[1]}, the upright picture is {width} x {height}"
        annotations.rejected += [(where, reason) for where, _ in (*image.annotations, *image.results)]
        if not image.annotations and not image.results:
            annotations.rejected.append((printable(f"{image.document}: image {image.file!r}"), reason))
        return annotations
    instances = _instances(image.annotations, categories, annotations, width, height)
    if model.name is not None:
        annotations.predictions.append(_answer(instances, {"model": model.name, "model_version": model.version}))
    else:
        boxed = [b for b, m in instances if m is None]
        masked = [(b, m) for b, m in instances if m is not None]
        if boxed or DETECTION in image.tasks:
            annotations.ground_truths.append(GroundTruth(DETECTION, boxes=boxed))
        if masked or SEGMENTATION in image.tasks:
            truth = GroundTruth(SEGMENTATION, boxes=[b for b, _ in masked], masks=[m for _, m in masked])
            annotations.ground_truths.append(annotation.without_redundant_boxes(truth))
    if image.results or image.answer is not None:
        header = dict(image.answer or {})
        if model.name is not None or not header:
            header |= {"model": model.name, "model_version": model.version}
        annotations.predictions.append(
            _answer(_instances(image.results, categories, annotations, width, height), header)
        )
    return annotations


_Instances = list[tuple[dict[str, Any], dict[str, Any] | None]]


def _answer(instances: _Instances, header: Mapping[str, Any]) -> dict[str, Any]:
    answer = dict(header)
    found = [m for _, m in instances if m is not None]
    if found and len(found) == len(instances):
        truth = annotation.without_redundant_boxes(
            GroundTruth(SEGMENTATION, boxes=[b for b, _ in instances], masks=found)
        )
        return answer | {"masks": found, "boxes": truth.boxes}
    if instances or answer.get("task") in (None, DETECTION):
        answer["boxes"] = [b for b, _ in instances]
    return answer


def _instances(
    given: Sequence[tuple[str, Mapping[str, Any]]],
    categories: Mapping[Any, Any],
    annotations: Annotations,
    width: int,
    height: int,
) -> _Instances:
    found: _Instances = []
    for where, one in given:
        try:
            found.append(_instance(one, categories, width, height))
        except BadInput as error:
            annotations.rejected.append((where, str(error)))
    return found


def _instance(
    one: Mapping[str, Any], categories: Mapping[Any, Any], width: int, height: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    number = one.get("category_id")
    if not _hashable(number) or number not in categories:
        raise BadInput(f"no category has the id {number!r}")
    if one.get("iscrowd"):
        raise BadInput("iscrowd marks a region of many, which is no instance")
    label, score = categories[number], one.get("score")
    segmentation = one.get("segmentation")
    masked = None
    if segmentation:
        counts = _counts(segmentation, width, height)
        masked = annotation.mask(label, counts, height, width, score)
    corner = one.get("bbox")
    if corner is None and masked is not None:
        return annotation.extent(masked), masked
    if not isinstance(corner, list) or len(corner) != 4:
        raise BadInput("bbox is not [x, y, width, height]")
    return annotation.box(label, corner, score), masked


def _counts(segmentation: Any, width: int, height: int) -> str:
    if isinstance(segmentation, list):
        return polygons.fill(segmentation, height, width)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        raise BadInput(f"the mask's size is {size!r}, the picture's is [{height}, {width}]")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        if len(counts) > MOST_COUNTS:
            raise BadInput(f"counts has {len(counts):,} characters; {MOST_COUNTS:,} are the most")
        runs = masks.decompress(counts)
    elif isinstance(counts, list) and all(isinstance(c, int) and not isinstance(c, bool) for c in counts):
        runs = counts
    else:
        raise BadInput("counts is neither text nor a list of numbers")
    masks.check(runs, height, width)
    return masks.compress(runs)


# Writing ---------------------------------------------------------------------------------------------------


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
                part.line("annotations", _written(number, number_of, box, mask) | {"iscrowd": 0})
        if sample.prediction is not None:
            image["answer"] = annotation.prediction_header(sample.prediction)
            for box, mask in annotation.prediction_regions(sample.prediction).instances():
                part.line("predictions", _written(number, number_of, box, mask))
        part.line("images", image)


def _written(image: int, number_of: Mapping[str, int], box: Mapping[str, Any], mask: Any) -> dict[str, Any]:
    said = {
        "image_id": image,
        "category_id": number_of[(mask or box)["label"] or ""],
        "bbox": [box["x"], box["y"], box["width"], box["height"]],
    }
    if mask is None:
        said |= {"segmentation": [], "area": box["width"] * box["height"]}
    else:
        rle = {"size": [mask["height"], mask["width"]], "counts": mask["counts"]}
        said |= {"segmentation": rle, "area": masks.area(mask["counts"])}
    score = (mask or box)["score"]
    return said if score is None else said | {"score": score}


def finish(whole: WholeExport) -> None:
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(whole.plan.classes, start=1)]
    with whole.open("annotations.json") as out:
        info = annotation.as_json({"description": f"slice {whole.plan.slice}", "version": "1.0"})
        out.write(f'{{"info": {info}, "licenses": [],\n"categories": {annotation.as_json(categories)},\n'.encode())
        out.write(b'"images": [\n')
        _list(out, whole.lines("images"))
        out.write(b'],\n"annotations": [\n')
        _list(out, ({"id": i, **one} for i, one in enumerate(whole.lines("annotations"), start=1)))
        out.write(b"]}\n")
    if whole.plan.predictions is not None:
        with whole.open("predictions.json") as out:
            out.write(b"[\n")
            _list(out, ({k: v for k, v in one.items() if v != []} for one in whole.lines("predictions")))
            out.write(b"]\n")


def _list(out: Any, values: Iterator[Any]) -> None:
    for number, value in enumerate(values):
        out.write(f"{',' if number else ''}{annotation.as_json(value)}\n".encode())
