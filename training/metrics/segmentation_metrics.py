"""Mean intersection over union of segmentations, with what a bootstrap over images needs.

Counted over all pixels of all images together, as PASCAL VOC does (Everingham et al. 2015), background included; pixels
marked as not judged count nowhere, and a class that neither truth nor answers have counts in no mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lake.regions import masks
from training.metrics.metric import Judged

BACKGROUND = "background"
# The class number of a pixel that no loss and no metric looks at.
IGNORED = 255


@dataclass(frozen=True)
class Overlaps:
    """Pixels by image and class, int64 (images, classes): `both`, in `truth`, in `answer`. Class 0 is background."""

    classes: tuple[str, ...]
    both: np.ndarray
    truth: np.ndarray
    answer: np.ndarray

    def by_class(self, weights: np.ndarray | None = None) -> dict[str, float]:
        """Intersection over union, 0 to 1, of each class that occurs, image i taken `weights[i]` times (None: once)."""
        values = self._values(weights)
        return {name: float(v) for name, v in zip(self.classes, values, strict=True) if not np.isnan(v)}

    def miou(self, weights: np.ndarray | None = None) -> float:
        """The mean of `by_class`, higher is better; NaN without judged pixels."""
        values = self._values(weights)
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else float("nan")

    def _values(self, weights: np.ndarray | None) -> np.ndarray:
        times = np.ones(len(self.both)) if weights is None else np.asarray(weights, np.float64)
        if times.shape != (len(self.both),):
            raise ValueError(f"weights of {times.shape}, not one for each of {len(self.both)} images")
        both, either = times @ self.both, times @ (self.truth + self.answer - self.both)
        values: np.ndarray = np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
        return values


def confusion(truth: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes), rows the truth: pixels of two maps of class numbers of one shape. IGNORED ones of the
    truth are left out.
    """
    if truth.shape != answer.shape:
        raise ValueError(f"the truth has {truth.shape} pixels, the answer {answer.shape}")
    judged = truth != IGNORED
    pairs = truth[judged].astype(np.int64) * classes + answer[judged]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def compare(truths: Sequence[np.ndarray], answers: Sequence[np.ndarray], classes: Sequence[str]) -> Overlaps:
    """Of maps of class numbers, one an image: 0 background, i + 1 class i, IGNORED not judged (in the truth)."""
    size = len(classes) + 1
    tables = [confusion(t, a, size) for t, a in zip(truths, answers, strict=True)]
    stacked = np.stack(tables) if tables else np.zeros((0, size, size), np.int64)
    return Overlaps(
        (BACKGROUND, *classes),
        np.diagonal(stacked, axis1=1, axis2=2).copy(),
        stacked.sum(axis=2),
        stacked.sum(axis=1),
    )


def class_map(
    found: Sequence[Mapping[str, Any]], classes: Sequence[str], width: int, height: int, ignored: Sequence[str] = ()
) -> np.ndarray:
    """uint8 (height, width), from masks as `lake.storage.schema.MASKS` has them: what `compare` takes.

    Where masks overlap the later one counts; a class in `ignored` marks pixels as not judged, others not in `classes`
    are background. Raises BadInput for a mask that is not of this size.
    """
    out = np.zeros((height, width), np.uint8)
    number = {name: k + 1 for k, name in enumerate(classes)} | dict.fromkeys(ignored, IGNORED)
    for mask in found:
        value = number.get(str(mask["label"]))
        if value is not None:
            out[masks.decode(mask["counts"], height, width)] = value
    return out


class MeanIou:
    """Mean intersection over union of the classes and the background, over all pixels of all images, 0 to 1.

    Classes are those of the true masks; an answer of another class is background. Images whose size is not known, for
    neither truth nor answer has a mask, count as right and add nothing.
    """

    name, higher_is_better = "miou", True
    tasks: Sequence[str] = ("segmentation",)

    def value(self, judged: Judged) -> float:
        return float(self.of_sums(self.statistics(judged).sum(axis=0)))

    def statistics(self, judged: Judged) -> np.ndarray:
        named = {str(m["label"]) for row in (*judged.truths, *judged.answers) for m in row.get("masks") or ()}
        classes = sorted(named)
        maps: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for truth, answer in zip(judged.truths, judged.answers, strict=True):
            masks = [*(truth.get("masks") or ()), *(answer.get("masks") or ())]
            height, width = (masks[0]["height"], masks[0]["width"]) if masks else (0, 0)
            for row, found in zip((truth, answer), maps, strict=True):
                found.append(class_map(row.get("masks") or (), classes, width, height))
        counted = compare(*maps, classes)
        return np.hstack([counted.both, counted.truth + counted.answer - counted.both]).astype(np.float64)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        both, either = np.split(sums, 2, axis=-1)
        there = either > 0
        shares = np.divide(both, either, out=np.zeros_like(both), where=there)
        known = there.sum(axis=-1)
        out: np.ndarray = np.divide(shares.sum(axis=-1), known, out=np.full(known.shape, np.nan), where=known > 0)
        return out
