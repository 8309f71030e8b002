"""Reads COCO: JSON documents of images, categories and annotations, and lists of results with scores.

Every such document in a folder, in `annotations/`, or beside the images is read. Crowd annotations (`iscrowd`) are
rejected. The keys that our own exports add are named in `lake/formats/coco/writer.py`.
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
    GroundTruth,
    ModelName,
)
from lake.formats.item import Item, printable
from lake.formats.paths import MANIFEST, document, inside
from lake.prediction_logs.prediction_rows import MOST_COUNTS
from lake.regions import masks, polygons

_HEAD_BYTES = 64 << 10
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_RESULT = re.compile(rb'\A\s*\[\s*(\]|\{[^{}]*?"image_id")')


@dataclass
class _Image:
    """An image of the documents. `tasks`: those it is labelled for."""

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
    """The COCO documents and lists of results at a path, recognised by their first 64 KiB."""
    if path.is_file():
        return [path] if _looks_like_coco(path) else []
    candidates = [*path.glob("*.json"), *path.glob("annotations/*.json"), *path.glob("*/_annotations.coco.json")]
    return [p for p in sorted({*candidates}) if p.name != MANIFEST and p.is_file() and _looks_like_coco(p)]


def _looks_like_coco(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return bool(_KEYS.search(head) or _RESULT.match(head))


def read(path: Path, model: ModelName) -> Iterator[Item]:
    """The images in the documents at `path`, with their annotations. Raises BadInput if a document is broken."""
    paths = documents(path)
    if not paths:
        raise BadInput(f"{path} has no COCO document: no .json with images, annotations and categories")
    images: dict[Any, _Image] = {}
    categories: dict[Any, Any] = {}
    result_lists: list[tuple[Path, list[Any]]] = []
    if path.is_file() and _is_results(path):  # its images are in the documents beside it
        beside = [p for p in documents(path.parent) if p != path and not _is_results(p)]
        paths = [*beside, *paths]
    rejected: list[Item] = []
    for document_path in paths:
        content = document(document_path)
        if isinstance(content, list):
            result_lists.append((document_path, content))
        elif isinstance(content, dict):
            rejected += _add_document(document_path, content, images, categories)
        else:
            raise BadInput(f"{document_path} is not a COCO document")
    for document_path, results in result_lists:
        rejected += _assign_records(document_path, results, images, results=True)
    yield from rejected
    if result_lists and not images:
        raise BadInput(f"{result_lists[0][0]} is a list of results, and the document with its images is not beside it")
    only_results = path.is_file() and bool(result_lists)
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


def _add_document(
    path: Path, content: Mapping[str, Any], images: dict[Any, _Image], categories: dict[Any, Any]
) -> list[Item]:
    rejected = []
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name, []), list):
            raise BadInput(f"{path}: {name} is not a list")
    for category in content.get("categories", []):
        category = category if isinstance(category, dict) else {}
        key, label = category.get("id"), category.get("name")
        if _hashable(key) and categories.setdefault(key, label) != label:
            rejected.append(Item(printable(f"{path}: category {key}"), error="two categories have this id"))
    annotations = content.get("annotations", [])
    task = SEGMENTATION if any(isinstance(a, dict) and a.get("segmentation") for a in annotations) else DETECTION
    for index, record in enumerate(content.get("images", [])):
        where = printable(f"{path}: images[{index}]")
        if (
            not isinstance(record, dict)
            or not _hashable(record.get("id"))
            or not isinstance(record.get("file_name"), str)
        ):
            rejected.append(Item(where, error="an image needs id and file_name"))
        elif record["id"] in images:
            if images[record["id"]].file != record["file_name"]:
                rejected.append(Item(where, error=f"two images have the id {record['id']}"))
        else:
            tasks = record.get("tasks", [task] if "annotations" in content else [])
            answer = record.get("answer")
            images[record["id"]] = _Image(
                str(record["file_name"]),
                path,
                record.get("width"),
                record.get("height"),
                [t for t in tasks if t in annotation.TASKS] if isinstance(tasks, list) else [task],
                record.get("label"),
                answer if isinstance(answer, dict) else None,
            )
    return rejected + _assign_records(path, annotations, images, results=False)


def _assign_records(path: Path, records: Sequence[Any], images: dict[Any, _Image], results: bool) -> list[Item]:
    rejected = []
    for number, record in enumerate(records):
        where = printable(f"{path}: {'result' if results else 'annotation'} {number}")
        if not isinstance(record, dict) or not _hashable(record.get("image_id")):
            rejected.append(Item(where, error="it has no image_id"))
        elif record["image_id"] not in images:
            rejected.append(Item(where, error=f"no image has the id {record['image_id']!r}"))
        else:
            image = images[record["image_id"]]
            (image.results if results else image.annotations).append((where, record))
    return rejected


def _hashable(number: Any) -> bool:
    return isinstance(number, int | str)


def _images_folder(path: Path, names: Sequence[str]) -> Path:
    """The folder of a document's images: its own, or one of those that data sets commonly use."""
    split = re.sub(r"^(instances|image_info|person_keypoints|captions|stuff)_", "", path.stem)
    above = path.parent.parent
    folders = [path.parent, *(path.parent / n for n in ("images", "data", split, f"images/{split}"))]
    if path.parent.name == "annotations":
        folders += [above / split, above / "images" / split, above / "images", above / "data", above]
    for folder in folders:
        for name in names:
            try:
                if inside(folder, name).is_file():
                    return folder
            except BadInput:
                continue
    return folders[1] if folders[1].is_dir() else path.parent


def _annotations(
    image: _Image, categories: Mapping[Any, Any], model: ModelName, width: int, height: int
) -> Annotations:
    annotations = Annotations(annotator="coco")
    if image.label not in (None, ""):
        annotations.ground_truths.append(GroundTruth(CLASSIFICATION, str(image.label)))
    size = (image.width, image.height)
    if None not in size and size != (width, height):
        reason = f"the document says {size[0]} x {size[1]}, the upright image is {width} x {height}"
        annotations.rejected += [(where, reason) for where, _ in (*image.annotations, *image.results)]
        if not image.annotations and not image.results:
            annotations.rejected.append((printable(f"{image.document}: image {image.file!r}"), reason))
        return annotations
    instances = _instances(image.annotations, categories, annotations, width, height)
    if model.name is not None:
        annotations.predictions.append(_prediction(instances, {"model": model.name, "model_version": model.version}))
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
            _prediction(_instances(image.results, categories, annotations, width, height), header)
        )
    return annotations


_Instances = list[tuple[dict[str, Any], dict[str, Any] | None]]


def _prediction(instances: _Instances, header: Mapping[str, Any]) -> dict[str, Any]:
    prediction = dict(header)
    masks = [m for _, m in instances if m is not None]
    if masks and len(masks) == len(instances):
        truth = annotation.without_redundant_boxes(
            GroundTruth(SEGMENTATION, boxes=[b for b, _ in instances], masks=masks)
        )
        return prediction | {"masks": masks, "boxes": truth.boxes}
    if instances or prediction.get("task") in (None, DETECTION):
        prediction["boxes"] = [b for b, _ in instances]
    return prediction


def _instances(
    records: Sequence[tuple[str, Mapping[str, Any]]],
    categories: Mapping[Any, Any],
    annotations: Annotations,
    width: int,
    height: int,
) -> _Instances:
    instances: _Instances = []
    for where, record in records:
        try:
            instances.append(_instance(record, categories, width, height))
        except BadInput as error:
            annotations.rejected.append((where, str(error)))
    return instances


def _instance(
    record: Mapping[str, Any], categories: Mapping[Any, Any], width: int, height: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    number = record.get("category_id")
    if not _hashable(number) or number not in categories:
        raise BadInput(f"no category has the id {number!r}")
    if record.get("iscrowd"):
        raise BadInput("it is a crowd (iscrowd), which is not one instance")
    label, score = categories[number], record.get("score")
    segmentation = record.get("segmentation")
    region = None
    if segmentation:
        counts = _counts(segmentation, width, height)
        region = annotation.mask(label, counts, height, width, score)
    bbox = record.get("bbox")
    if bbox is None and region is not None:
        return annotation.extent(region), region
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise BadInput("bbox is not [x, y, width, height]")
    return annotation.box(label, bbox, score), region


def _counts(segmentation: Any, width: int, height: int) -> str:
    if isinstance(segmentation, list):
        return polygons.fill(segmentation, height, width)
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        raise BadInput(f"the mask's size is {size!r}, the image's is [{height}, {width}]")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        if len(counts) > MOST_COUNTS:
            raise BadInput(f"counts has {len(counts):,} characters; the limit is {MOST_COUNTS:,}")
        runs = masks.decompress(counts)
    elif isinstance(counts, list) and all(isinstance(c, int) and not isinstance(c, bool) for c in counts):
        runs = counts
    else:
        raise BadInput("counts must be text or a list of integers")
    masks.check(runs, height, width)
    return masks.compress(runs)
