"""The common form of an image's labels and predictions, between all readers and writers.

Boxes and masks are rows as `lake/storage/schema` has them: pixels of the upright image, masks as compressed COCO RLE.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from lake import ids
from lake.errors import BadInput
from lake.formats.numbers import number
from lake.prediction_logs import texts
from lake.prediction_logs.numbers import Numbers
from lake.regions import masks

if TYPE_CHECKING:
    from lake.storage.blobs import StoredImage

CLASSIFICATION, DETECTION, SEGMENTATION = "classification", "detection", "segmentation"
TASKS = (CLASSIFICATION, DETECTION, SEGMENTATION)
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}

_CONTENT = json.JSONEncoder(sort_keys=True, default=dict)

Box = Mapping[str, Any]
Mask = Mapping[str, Any]


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of an image for one task. Detection has `boxes`, segmentation `masks`; an empty list means that
    the image was looked at and has no instance.

    A segmentation's `boxes`, if there are as many as masks, are those of the same instances, in the same order.
    `crowd_boxes`, `crowd_masks`: regions with instances that nobody told apart; no instances, and no background.
    `incomplete`: a part of what was said for the task could not be read. The image then has these instances and perhaps
    others: it is neither background nor complete.
    """

    task: str
    label: str | None = None
    boxes: Sequence[Box] | None = None
    masks: Sequence[Mask] | None = None
    crowd_boxes: Sequence[Box] | None = None
    crowd_masks: Sequence[Mask] | None = None
    incomplete: bool = False

    def instances(self) -> list[tuple[Box, Mask | None]]:
        """Its instances, each with a box: its own, or else the mask's extent."""
        if self.task != SEGMENTATION:
            return [(box, None) for box in self.boxes or ()]
        masks = self.masks or ()
        boxes = self.boxes if self.boxes and len(self.boxes) == len(masks) else [extent(m) for m in masks]
        return list(zip(boxes, masks, strict=True))

    def crowds(self) -> list[tuple[Box, Mask | None]]:
        """Its crowd regions, each with a box: its own, or else the mask's extent."""
        masks, boxes = self.crowd_masks or (), self.crowd_boxes or ()
        if self.task != SEGMENTATION or not masks:
            return [(box, None) for box in boxes]
        return list(zip(boxes if len(boxes) == len(masks) else map(extent, masks), masks, strict=True))

    def says_something(self) -> bool:
        """Whether it names a class, an instance or a crowd region."""
        return any((self.label, self.boxes, self.masks, self.crowd_boxes, self.crowd_masks))

    def classes(self) -> set[str]:
        """The classes it names; "" stands for an instance without a class."""
        if self.task == CLASSIFICATION:
            return {self.label} if self.label else set()
        return {i["label"] or "" for i in (self.boxes if self.task == DETECTION else self.masks) or ()}


@dataclass
class Annotations:
    """What a data set holds about one image.

    `predictions`: rows of a prediction log, as `lake.prediction_logs.prediction_rows.read_row` takes them, without the
    image. `metadata`: the other columns. `rejected`: annotations that cannot be read, each with its source and the
    reason. `incomplete`: the tasks of which anything was rejected. A task of which nothing sound is left has no ground
    truth: absence is not a statement. `converted`: what was taken in another form, or left aside without making its
    task incomplete, each with its source and one fixed sentence, which reports count. `source`: the absolute path of
    the document or of the class folder's root, by which an unchanged statement is known again; None: the path ingested.
    """

    ground_truths: list[GroundTruth] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    incomplete: set[str] = field(default_factory=set)
    converted: list[tuple[str, str]] = field(default_factory=list)
    annotator: str = "import"
    source: str | None = None

    def statements(self) -> list[GroundTruth]:
        """The ground truths, each marked incomplete if its task is; an incomplete task without any has one that says
        nothing: no label, but it may take one back (`lake/labels/imported_statements.py`).
        """
        if not self.incomplete:
            return self.ground_truths
        marked = [replace(t, incomplete=t.incomplete or t.task in self.incomplete) for t in self.ground_truths]
        silent = self.incomplete - {truth.task for truth in marked}
        return marked + [replace(nothing(task), incomplete=True) for task in sorted(silent)]


class ModelName(NamedTuple):
    """The model whose predictions a data set holds; without a name, its annotations are labels."""

    name: str | None = None
    version: str | None = None


# Called with width and height of the upright image, in pixels.
AnnotationReader = Callable[[int, int], Annotations]


@dataclass(frozen=True)
class ExportSample:
    """One image of a slice that is exported. `number`: its position in the slice, from 0, in the order of image_ids."""

    number: int
    image: StoredImage
    ground_truths: Mapping[str, GroundTruth]
    prediction: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.image.image_id + SUFFIX[self.image.format]


def nothing(task: str) -> GroundTruth:
    """The statement that the image was looked at and has no instance."""
    return GroundTruth(task, boxes=[] if task == DETECTION else None, masks=[] if task == SEGMENTATION else None)


def event_id(image_id: str, truth: GroundTruth) -> str:
    """The id that an imported label event had before labels had a source: derived from its content alone."""
    if truth.task == CLASSIFICATION:
        return ids.label_event_id(image_id, str(truth.label), "import")
    parts = [truth.task, truth.label, truth.boxes, truth.masks]
    return ids.label_event_id(image_id, json.dumps(parts, sort_keys=True, default=dict), "import")


def content(truth: GroundTruth) -> str:
    """All that it says, as text: equal for equal statements only."""
    parts = (truth.task, truth.label, truth.boxes, truth.masks, truth.crowd_boxes, truth.crowd_masks, truth.incomplete)
    return _CONTENT.encode(parts)


def box(label: Any, bbox: Sequence[Any], score: Any = None) -> dict[str, Any]:
    """A box of x, y, width and height, checked; numbers may be written as text. Raises BadInput."""
    if len(bbox) != 4:
        raise BadInput(f"a box is four numbers, this one has {len(bbox)}")
    names = ("x", "y", "width", "height")
    corner = {name: number(f"the box's {name}", value) for name, value in zip(names, bbox, strict=True)}
    if corner["width"] < 0 or corner["height"] < 0:
        raise BadInput(f"the box has a negative width or height: {corner['width']:g} x {corner['height']:g}")
    return {"label": class_name(label), "score": checked_score(score), **corner}


def mask(label: Any, counts: str, height: int, width: int, score: float | None = None) -> dict[str, Any]:
    size = {"height": height, "width": width, "counts": counts}
    return {"label": class_name(label), "score": checked_score(score), **size}


def class_name(label: Any) -> str | None:
    """A class as the lake stores it; an empty one becomes None. Raises BadInput for half a surrogate pair."""
    if label is None or label == "":
        return None
    # A class's number from a document that floats went through: 5.0 is class 5.
    return texts.class_name("the class", label) if isinstance(label, float) else texts.sound("the class", str(label))


def checked_score(score: Any) -> float | None:
    """A score of 0 to 1; a hair outside it is clamped. Raises BadInput for anything else."""
    return Numbers().fraction("the score", score)


def extent(mask: Mask) -> dict[str, Any]:
    """The smallest box around a mask; 0, 0, 0, 0 around an empty one."""
    height = mask["height"]
    left = top = math.inf
    right = bottom = position = 0
    for index, run in enumerate(masks.decompress(mask["counts"])):
        if index % 2 and run:
            first, last = position // height, (position + run - 1) // height
            left, right = min(left, first), max(right, last + 1)
            continues = first != last  # the run goes on in the next column
            top = 0 if continues else min(top, position % height)
            bottom = height if continues else max(bottom, (position + run - 1) % height + 1)
        position += run
    if not right:
        left = top = 0
    return box(mask["label"], (left, top, right - left, bottom - top), mask["score"])


def without_redundant_boxes(truth: GroundTruth) -> GroundTruth:
    """The same, but a segmentation loses boxes that are the extents of its masks."""
    if truth.task != SEGMENTATION or truth.boxes is None:
        return truth
    if [dict(b) for b in truth.boxes] == [extent(m) for m in truth.masks or ()]:
        return replace(truth, boxes=None)
    return truth


def folder_name(label: str) -> str:
    """A label, which may be any text, as a folder's name: quoted, so that it names no other folder; cut if long."""
    name = quote(label, safe=" ()+,=").replace(".", "%2E")
    return name if len(name) <= 200 else f"{name[:180]}~{hashlib.sha256(label.encode()).hexdigest()[:16]}"


def as_json(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=dict)


def instance_classes(truths: Iterable[GroundTruth]) -> set[str]:
    return {name for truth in truths if truth.task != CLASSIFICATION for name in truth.classes()}


def prediction_header(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction without boxes and masks, for formats that write those in their own form."""
    return {k: v for k, v in prediction.items() if k not in ("boxes", "masks") and v is not None}


def prediction_regions(prediction: Mapping[str, Any]) -> GroundTruth:
    """A prediction's boxes and masks in the form of ground truth: writers treat both alike."""
    task = SEGMENTATION if prediction.get("masks") else DETECTION
    return GroundTruth(task, boxes=prediction.get("boxes") or [], masks=prediction.get("masks"))
