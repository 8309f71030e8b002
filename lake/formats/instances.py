"""From the instances that a document says of an image to ground truth, by one rule for all readers.

The tasks are those of the image's own instances. All have masks: segmentation. None has: detection. Some have:
detection of all boxes, and a segmentation that is incomplete, since some instances lack their mask. Crowd regions are
kept beside the instances. Where an instance was refused, what is said of the image is incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lake.formats import annotation
from lake.formats.annotation import DETECTION, SEGMENTATION, Annotations, Box, GroundTruth, Mask
from lake.regions import masks

Region = tuple[dict[str, Any], dict[str, Any] | None]


@dataclass
class Instances:
    """What a document says of one image: instances and crowd regions, each a box and, where it has one, a mask.

    `refused`: the tasks of what could not be read.
    """

    height: int
    width: int
    found: list[Region] = field(default_factory=list)
    crowds: list[Region] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def state(self, annotations: Annotations, empty: Iterable[str] = ()) -> None:
        """Adds the ground truths. `empty`: the tasks that say "nothing is here" if there are no instances at all."""
        truths = self._truths() or [annotation.nothing(task) for task in empty]
        if self.refused:
            annotations.incomplete |= {truth.task for truth in truths} or self.refused
        annotations.ground_truths += truths

    def state_apart(self, annotations: Annotations, tasks: Sequence[str]) -> None:
        """Adds the ground truths of a document that says its tasks: boxes are detections, masks are segmentations."""
        boxes, masked = _split(self.found)
        crowd_boxes, crowd_masks = _split(self.crowds)
        if boxes or crowd_boxes or DETECTION in tasks:
            annotations.ground_truths.append(_detection([b for b, _ in boxes], [b for b, _ in crowd_boxes]))
        if masked or crowd_masks or SEGMENTATION in tasks:
            annotations.ground_truths.append(_segmentation(masked, [m for _, m in crowd_masks if m is not None]))
        if self.refused:
            annotations.incomplete |= {*tasks, *self.refused}

    def _truths(self) -> list[GroundTruth]:
        boxes, masked = _split(self.found or self.crowds)
        truths = []
        if boxes:
            truths.append(_detection([b for b, _ in self.found], [b for b, _ in self.crowds]))
        if masked and (self.found or not boxes):
            crowds = [mask or self._filled(box) for box, mask in self.crowds]
            truths.append(_segmentation(masked if self.found else [], crowds, incomplete=bool(boxes)))
        return truths

    def _filled(self, box: Box) -> dict[str, Any]:
        """The mask of all pixels that a crowd's box touches: none of them is background."""
        region = np.zeros((self.height, self.width), bool)
        left, top = (max(0, int(np.floor(box[side]))) for side in ("x", "y"))
        right, bottom = (int(np.ceil(box[a] + box[b])) for a, b in (("x", "width"), ("y", "height")))
        region[top : max(0, bottom), left : max(0, right)] = True
        return annotation.mask(box["label"], masks.encode(region), self.height, self.width, box["score"])


def _split(regions: Sequence[Region]) -> tuple[list[Region], list[Region]]:
    """Those without and those with a mask."""
    return [r for r in regions if r[1] is None], [r for r in regions if r[1] is not None]


def _detection(boxes: list[dict[str, Any]], crowds: list[dict[str, Any]]) -> GroundTruth:
    return GroundTruth(DETECTION, boxes=boxes, crowd_boxes=crowds or None)


def _segmentation(masked: list[Region], crowds: Sequence[Mask], incomplete: bool = False) -> GroundTruth:
    truth = GroundTruth(
        SEGMENTATION,
        boxes=[box for box, _ in masked],
        masks=[mask for _, mask in masked if mask is not None],
        crowd_masks=crowds or None,
        incomplete=incomplete,
    )
    return annotation.without_redundant_boxes(truth)
