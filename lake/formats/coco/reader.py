"""Reads COCO: JSON documents of images, categories and annotations, and lists of results with scores.

Every document in a folder, in its `annotations/`, or in the folders of its splits is read, each by itself. The task of
an image comes from its own annotations; crowd regions (`iscrowd`) are kept as such. The keys that our own exports add
are named in `lake/formats/coco/writer.py`; LVIS's lists of classes that were looked for are respected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, Annotations, GroundTruth
from lake.formats.coco.documents import (
    CocoDocument,
    CocoImage,
    Record,
    images_folder,
    is_crowd,
    is_results,
    named_files,
    read_all,
    task_of,
)
from lake.formats.instances import Instances, Region
from lake.formats.item import Item, ReadOptions, printable
from lake.formats.numbers import identity, whole
from lake.formats.turned_images import check_size
from lake.prediction_logs.instances import MOST_COUNTS
from lake.regions import masks, polygons

NAMED_ELSEWHERE = "the path leads elsewhere; the file of that name in the data set was taken"
CAPTION = "a caption is not kept"
KEYPOINTS = "keypoints are not kept; the box is"
SOME_CLASSES = "LVIS: only some classes were looked for in the image, so what is said of it is incomplete"


def read(path: Path, options: ReadOptions) -> Iterator[Item]:
    """The images in the documents at `path`, with their annotations. Raises BadInput if the only one is broken."""
    documents, rejected = read_all(path)
    yield from rejected
    only_results = path.is_file() and is_results(path)
    for document in documents:
        images = document.distinct_images()
        folder = images_folder(document.path, [image.file for image in images[:20]])
        files = named_files(document)
        for image in images:
            if only_results and not image.results:
                continue
            try:
                file, elsewhere = files.find(folder, image.file)
            except BadInput as error:
                yield Item(printable(f"{document.path}: image {image.file!r}"), error=str(error))
            else:
                reader = partial(_annotations, document, image, file, elsewhere, options)
                yield Item(printable(file), path=file, read_annotations=reader)


def _annotations(
    document: CocoDocument,
    image: CocoImage,
    file: Path,
    elsewhere: bool,
    options: ReadOptions,
    width: int,
    height: int,
) -> Annotations:
    annotations = Annotations(annotator="coco", source=os.path.abspath(document.path))
    where = printable(f"{document.path}: image {image.file!r}")
    if elsewhere:
        annotations.converted.append((where, NAMED_ELSEWHERE))
    if document.split is not None:
        annotations.metadata["split"] = document.split
    _add_class(annotations, image, where)
    try:
        if image.unclear is not None:
            raise BadInput(image.unclear)
        check_size((image.width, image.height), width, height, file, options.orientation)
    except BadInput as error:
        records = [*image.annotations, *image.results]
        annotations.rejected += [(place, str(error)) for place, _ in records] or [(where, str(error))]
        annotations.incomplete |= {task_of(record) for _, record in records} or {document.empty_task}
        return annotations
    instances = _instances(document, image.annotations, annotations, width, height)
    if options.model.name is not None:
        header = {"model": options.model.name, "model_version": options.model.version}
        _add_prediction(annotations, instances, header, where)
    elif image.tasks is not None:
        instances.state_apart(annotations, image.tasks)
    else:
        instances.refused |= document.lost
        if not _all_classes_checked(document, image):
            annotations.converted.append((where, SOME_CLASSES))
            instances.refused |= {document.empty_task}
        captions = any("caption" in record for _, record in image.annotations)
        looked_at = document.annotated and bool(document.categories) and not captions
        instances.state(annotations, [document.empty_task] if looked_at else [])
    if image.results or image.answer is not None:
        header = dict(image.answer or {})
        if options.model.name is not None or not header:
            header |= {"model": options.model.name, "model_version": options.model.version}
        results = _instances(document, image.results, annotations, width, height)
        _add_prediction(annotations, results, header, where)
    return annotations


def _add_class(annotations: Annotations, image: CocoImage, where: str) -> None:
    if image.label in (None, ""):
        return
    if isinstance(image.label, bool) or not isinstance(image.label, str | int | float):
        annotations.rejected.append((where, f"label is {image.label!r:.60}, not a class"))
        annotations.incomplete.add(CLASSIFICATION)
    else:
        annotations.ground_truths.append(GroundTruth(CLASSIFICATION, str(image.label)))


def _all_classes_checked(document: CocoDocument, image: CocoImage) -> bool:
    if image.checked is None:
        return True
    present = {identity(record.get("category_id")) for _, record in image.annotations}
    return bool(image.checked) and {*document.categories} <= image.checked | present


def _add_prediction(annotations: Annotations, instances: Instances, header: Mapping[str, Any], where: str) -> None:
    """A prediction counts as a whole: without its refused instances it would say that the model missed them."""
    if instances.refused:
        annotations.rejected.append((where, "the model's prediction is left out, since a part of it was refused"))
        return
    regions = [*instances.found, *instances.crowds]
    prediction = dict(header)
    drawn = [mask for _, mask in regions if mask is not None]
    if drawn and len(drawn) == len(regions):
        truth = GroundTruth(SEGMENTATION, boxes=[box for box, _ in regions], masks=drawn)
        prediction |= {"masks": drawn, "boxes": annotation.without_redundant_boxes(truth).boxes}
    elif regions or prediction.get("task") in (None, DETECTION):
        prediction["boxes"] = [box for box, _ in regions]
    annotations.predictions.append(prediction)


def _instances(
    document: CocoDocument, records: Sequence[Record], annotations: Annotations, width: int, height: int
) -> Instances:
    instances = Instances(height, width)
    for where, record in records:
        if "caption" in record and "category_id" not in record:
            annotations.converted.append((where, CAPTION))
            continue
        try:
            region = _region(document, record, width, height)
        except BadInput as error:
            annotations.rejected.append((where, str(error)))
            instances.refused.add(task_of(record))
            continue
        if record.get("keypoints") and record.get("num_keypoints") != 0:
            annotations.converted.append((where, KEYPOINTS))
        (instances.crowds if is_crowd(record) else instances.found).append(region)
    return instances


def _region(document: CocoDocument, record: Mapping[str, Any], width: int, height: int) -> Region:
    key = identity(record.get("category_id"))
    if key is None:
        raise BadInput(f"category_id is {record.get('category_id')!r:.60}, which is no id")
    if key not in document.categories:
        raise BadInput(f"no category has the id {key!r}")
    label = document.categories[key]
    if label is None:
        raise BadInput(f"two categories have the id {key!r}")
    score, bbox, segmentation = (record.get(name) for name in ("score", "bbox", "segmentation"))
    mask = None
    if segmentation and segmentation != [[]]:
        mask = annotation.mask(label, _counts(segmentation, width, height), height, width, score)
    if bbox in (None, []):
        if mask is None:
            raise BadInput("it has no bbox and no segmentation")
        return annotation.extent(mask), mask
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise BadInput(f"bbox is not [x, y, width, height]: {bbox!r:.60}")
    return annotation.box(label, bbox, score), mask


def _counts(segmentation: Any, width: int, height: int) -> str:
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) for polygon in segmentation):
            raise BadInput("segmentation is not a list of polygons [x, y, x, y, ...]")
        return polygons.fill(segmentation, height, width)
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(size, list) or [whole(side) for side in size] != [height, width]:
        raise BadInput(f"the mask's size is {size!r:.60}, the image's is [{height}, {width}]")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        if len(counts) > MOST_COUNTS:
            raise BadInput(f"counts has {len(counts):,} characters; the limit is {MOST_COUNTS:,}")
        runs: list[Any] = masks.decompress(counts)
    elif isinstance(counts, list):
        runs = [whole(run) for run in counts]
        if None in runs:
            raise BadInput("counts has something that is not a whole number")
    else:
        raise BadInput("counts must be text or a list of integers")
    masks.check(runs, height, width)
    return masks.compress(runs)
