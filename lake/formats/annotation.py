"""What a data set says of an image, in no format's words: every reader ends in it, every writer begins with it.

Boxes and masks are rows as `lake/storage/schema` has them: pixels of the upright image, masks as compressed COCO
RLE.
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
from lake.formats import prediction_rows
from lake.regions import masks

if TYPE_CHECKING:
    from lake.storage.blobs import StoredImage

CLASSIFICATION, DETECTION, SEGMENTATION = "classification", "detection", "segmentation"
TASKS = (CLASSIFICATION, DETECTION, SEGMENTATION)
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}

Box = Mapping[str, Any]
Mask = Mapping[str, Any]


@dataclass(frozen=True)
class Truth:
    """One statement about what an image is. Detection has `boxes`; segmentation `masks`; none of them: empty lists.

    A segmentation's `boxes`, when there are as many as masks, are those of the same instances, in the same order.
    """

    task: str
    label: str | None = None
    boxes: Sequence[Box] | None = None
    masks: Sequence[Mask] | None = None

    def instances(self) -> list[tuple[Box, Mask | None]]:
        """Its instances, each with a box: the one that was given, or the mask's extent."""
        if self.task != SEGMENTATION:
            return [(box, None) for box in self.boxes or ()]
        found = self.masks or ()
        paired = self.boxes if self.boxes and len(self.boxes) == len(found) else [extent(m) for m in found]
        return list(zip(paired, found, strict=True))

    def classes(self) -> set[str]:
        """The classes it names; "" stands for an instance without one."""
        if self.task == CLASSIFICATION:
            return {self.label} if self.label else set()
        return {i["label"] or "" for i in (self.boxes if self.task == DETECTION else self.masks) or ()}


@dataclass
class Said:
    """What a data set says of one image.

    `answers`: rows of a prediction log, as `lake.formats.prediction_rows.read_row` takes them, without the image.
    `metadata`: what else the row says. `refused`: annotations that cannot be taken, each with its place and the reason.
    """

    truths: list[Truth] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    annotator: str = "import"


class Model(NamedTuple):
    """Whose answers a data set with scores holds; without a name its statements are labels."""

    name: str | None = None
    version: str | None = None


# Called with width and height of the upright image, in pixels.
Saying = Callable[[int, int], Said]


@dataclass(frozen=True)
class Sample:
    """One image of a slice on its way out. `number`: its place in the slice, from 0, in the order of image_ids."""

    number: int
    image: StoredImage
    truths: Mapping[str, Truth]
    answer: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its file's name."""
        return self.image.image_id + SUFFIX[self.image.format]


def event_id(image_id: str, truth: Truth) -> str:
    """The id of an imported statement: importing the same data set twice says it once."""
    if truth.task == CLASSIFICATION:
        return ids.label_event_id(image_id, str(truth.label), "import")
    said = json.dumps([truth.task, truth.label, truth.boxes, truth.masks], sort_keys=True, default=dict)
    return ids.label_event_id(image_id, said, "import")


def box(label: Any, corner: Sequence[Any], score: Any = None) -> dict[str, Any]:
    """A box of x, y, width and height, checked. Raises BadInput."""
    try:
        values = [float(v) for v in corner]
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput("a box is four numbers") from error
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise BadInput("a box is four finite numbers")
    if values[2] < 0 or values[3] < 0:
        raise BadInput("the box has a negative width or height")
    place = dict(zip(("x", "y", "width", "height"), (v + 0.0 for v in values), strict=True))
    return {"label": named(label), "score": scored(score), **place}


def mask(label: Any, counts: str, height: int, width: int, score: float | None = None) -> dict[str, Any]:
    return {"label": named(label), "score": scored(score), "height": height, "width": width, "counts": counts}


def named(label: Any) -> str | None:
    """A class as the lake stores it: an empty one is none."""
    return prediction_rows.sound(str(label)) if label is not None and label != "" else None


def scored(score: Any) -> float | None:
    """A score of 0 to 1. Raises BadInput for anything else."""
    if score is None:
        return None
    try:
        number = float(score)
    except (TypeError, ValueError) as error:
        raise BadInput("the score is not a number") from error
    if not 0.0 <= number <= 1.0:
        raise BadInput(f"the score is {number:g}, not between 0 and 1")
    return number + 0.0


def extent(found: Mask) -> dict[str, Any]:
    """The smallest box around a mask; 0, 0, 0, 0 around an empty one."""
    height = found["height"]
    left = top = math.inf
    right = bottom = position = 0
    for index, run in enumerate(masks.decompress(found["counts"])):
        if index % 2 and run:
            first, last = position // height, (position + run - 1) // height
            left, right = min(left, first), max(right, last + 1)
            whole = first != last  # the run goes on in the next column
            top = 0 if whole else min(top, position % height)
            bottom = height if whole else max(bottom, (position + run - 1) % height + 1)
        position += run
    if not right:
        left = top = 0
    return box(found["label"], (left, top, right - left, bottom - top), found["score"])


def normal(truth: Truth) -> Truth:
    """The statement with nothing said twice: a segmentation's boxes go when they are the masks' extents."""
    if truth.task != SEGMENTATION or truth.boxes is None:
        return truth
    if [dict(b) for b in truth.boxes] == [extent(m) for m in truth.masks or ()]:
        return replace(truth, boxes=None)
    return truth


def folder_name(label: str) -> str:
    """Labels are anybody's text: a quoted one cannot leave the folder, a long one is cut to what a name may be."""
    name = quote(label, safe=" ()+,=").replace(".", "%2E")
    return name if len(name) <= 200 else f"{name[:180]}~{hashlib.sha256(label.encode()).hexdigest()[:16]}"


def as_json(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=dict)


def instance_classes(truths: Iterable[Truth]) -> set[str]:
    return {name for truth in truths if truth.task != CLASSIFICATION for name in truth.classes()}


def answer_header(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Everything an answer says but its boxes and masks, for formats that write those in their own way."""
    return {k: v for k, v in answer.items() if k not in ("boxes", "masks") and v is not None}


def answer_truth(answer: Mapping[str, Any]) -> Truth:
    """An answer's boxes and masks as a statement: writers treat both alike."""
    task = SEGMENTATION if answer.get("masks") else DETECTION
    return Truth(task, boxes=answer.get("boxes") or [], masks=answer.get("masks"))
