"""Documents about images that EXIF turns: whether their coordinates are of the stored pixels or of the upright image.

Nobody can tell from the document, so it is not guessed: a document whose size is the stored one is refused until
`--orientation` says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lake.errors import BadInput
from lake.formats.annotation import AnnotationReader, Annotations, GroundTruth
from lake.formats.numbers import number
from lake.images import exif
from lake.regions import orientation as turning

Orientation = Literal["stored", "upright"]
ORIENTATIONS: tuple[Orientation, ...] = ("stored", "upright")


def check_size(
    stated: tuple[Any, Any], width: int, height: int, image: Path | bytes, orientation: Orientation | None
) -> None:
    """Raises BadInput if a document states another width and height than its coordinates are read for.

    A size of None or 0 is not stated. With `orientation` "upright", the size of the stored pixels is right as well.
    """
    sides = [None if side is None else number(name, side) for name, side in zip(_SIDES, stated, strict=True)]
    if all(side in (None, 0, own) for side, own in zip(sides, (width, height), strict=True)):
        return
    reason = f"the document says {stated[0]} x {stated[1]}, the upright image is {width} x {height}"
    if sides == [height, width] and exif.orientation(image) in turning.LYING:
        if orientation == "upright":
            return
        reason += (
            "; its EXIF orientation turns it. If the coordinates are those of the stored pixels, pass"
            " --orientation stored; if they are those of the turned image, --orientation upright"
        )
    raise BadInput(reason)


_SIDES = ("width", "height")


def oriented(read: AnnotationReader, image: Path | bytes, orientation: Orientation | None) -> AnnotationReader:
    """`read` for the image: with "stored", it reads coordinates of the stored pixels, which are turned upright."""
    if orientation != "stored":
        return read

    def read_turned(width: int, height: int) -> Annotations:
        value = exif.orientation(image)
        annotations = read(*turning.stored_size(width, height, value))
        if value == 1:
            return annotations
        annotations.ground_truths = [_turned(truth, width, height, value) for truth in annotations.ground_truths]
        annotations.predictions = [
            {**row, **_turned_regions(row, width, height, value)} for row in annotations.predictions
        ]
        regions = any(t.boxes or t.masks or t.crowd_boxes or t.crowd_masks for t in annotations.ground_truths)
        if regions or any(row.get("boxes") or row.get("masks") for row in annotations.predictions):
            annotations.converted.append(("", "coordinates of the stored pixels were turned by the EXIF orientation"))
        return annotations

    return read_turned


def _turned(truth: GroundTruth, width: int, height: int, orientation: int) -> GroundTruth:
    return replace(truth, **_turned_regions(vars(truth), width, height, orientation))


def _turned_regions(row: Mapping[str, Any], width: int, height: int, orientation: int) -> dict[str, Any]:
    """The turned columns of boxes and masks that are not null."""
    turned: dict[str, Any] = {}
    for name in ("boxes", "crowd_boxes"):
        boxes: Sequence[Mapping[str, Any]] | None = row.get(name)
        if boxes is not None:
            turned[name] = [turning.turn_box(box, width, height, orientation) for box in boxes]
    for name in ("masks", "crowd_masks"):
        masks: Sequence[Mapping[str, Any]] | None = row.get(name)
        if masks is not None:
            turned[name] = [turning.turn_mask(mask, orientation) for mask in masks]
    return turned
