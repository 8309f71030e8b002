"""Mean intersection over union (mIoU) of segmentation masks, with the counts that a bootstrap over images needs.

Counted over all pixels of all images together, as PASCAL VOC does (Everingham et al. 2015), background included.
Ignored pixels do not count. A class that occurs neither in the ground truth nor in the predictions counts in no mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lake.regions import masks
from training.metrics.metric import EvaluatedPredictions

BACKGROUND = "background"
# The class number of a pixel that no loss and no metric counts.
IGNORED = 255


@dataclass(frozen=True)
class Overlaps:
    """Pixels by image and class, int64 (images, classes). Class 0 is background.

    `intersection`: pixels with the class in both; `ground_truth` and `predicted`: pixels with the class in either map.
    """

    classes: tuple[str, ...]
    intersection: np.ndarray
    ground_truth: np.ndarray
    predicted: np.ndarray

    def union(self) -> np.ndarray:
        """int64 (images, classes): pixels with the class in the ground truth, the prediction, or both."""
        union: np.ndarray = self.ground_truth + self.predicted - self.intersection
        return union

    def by_class(self, weights: np.ndarray | None = None) -> dict[str, float]:
        """The IoU of each class that occurs, 0 to 1. `weights`: how often each image counts (None: once)."""
        values = self._values(weights)
        return {name: float(v) for name, v in zip(self.classes, values, strict=True) if not np.isnan(v)}

    def miou(self, weights: np.ndarray | None = None) -> float:
        """The mean of `by_class`, higher is better; NaN if no pixel counts."""
        values = self._values(weights)
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else float("nan")

    def _values(self, weights: np.ndarray | None) -> np.ndarray:
        counts = np.ones(len(self.intersection)) if weights is None else np.asarray(weights, np.float64)
        if counts.shape != (len(self.intersection),):
            raise ValueError(f"weights have shape {counts.shape}, not one for each of {len(self.intersection)} images")
        intersection, union = counts @ self.intersection, counts @ self.union()
        values: np.ndarray = np.divide(intersection, union, out=np.full(len(intersection), np.nan), where=union > 0)
        return values


def confusion(ground_truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): pixels of two maps of class numbers, by ground truth (rows) and prediction (columns).

    The maps have the same shape. Pixels that are IGNORED in the ground truth do not count.
    """
    if ground_truth.shape != predicted.shape:
        raise ValueError(f"the ground truth has shape {ground_truth.shape}, the prediction {predicted.shape}")
    counted = ground_truth != IGNORED
    pairs = ground_truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def compare(ground_truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray], classes: Sequence[str]) -> Overlaps:
    """Counts the overlaps of two maps of class numbers for each image.

    In a map 0 is background and i + 1 is `classes[i]`; the ground truth may have IGNORED pixels.
    """
    size = len(classes) + 1
    tables = [confusion(t, p, size) for t, p in zip(ground_truths, predictions, strict=True)]
    stacked = np.stack(tables) if tables else np.zeros((0, size, size), np.int64)
    return Overlaps(
        (BACKGROUND, *classes),
        np.diagonal(stacked, axis1=1, axis2=2).copy(),
        stacked.sum(axis=2),
        stacked.sum(axis=1),
    )


def ignore_crowds(
    class_numbers: np.ndarray,
    boxes: Sequence[Mapping[str, Any]] | None,
    crowd_masks: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Marks the pixels of crowd regions, with the fields of `schema.BOXES` and `schema.MASKS`, as IGNORED in a map of
    class numbers (height, width). As many boxes as masks are those of the masks. Raises BadInput for a mask of another
    size.
    """
    for box in boxes if boxes and len(boxes) != len(crowd_masks or ()) else ():
        left, top = max(0, math.floor(box["x"])), max(0, math.floor(box["y"]))
        class_numbers[top : math.ceil(box["y"] + box["height"]), left : math.ceil(box["x"] + box["width"])] = IGNORED
    for mask in crowd_masks or ():
        class_numbers[masks.decode(mask["counts"], *class_numbers.shape)] = IGNORED


def class_map(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], width: int, height: int, ignored: Sequence[str] = ()
) -> np.ndarray:
    """uint8 (height, width): the class numbers that `compare` takes, of masks with the fields of `schema.MASKS`.

    Where masks overlap, the later one counts. A class in `ignored` marks IGNORED pixels; other classes that are not in
    `classes` are background. Raises BadInput for a mask of another size.
    """
    out = np.zeros((height, width), np.uint8)
    number = {name: k + 1 for k, name in enumerate(classes)} | dict.fromkeys(ignored, IGNORED)
    for mask in rows:
        value = number.get(str(mask["label"]))
        if value is not None:
            out[masks.decode(mask["counts"], height, width)] = value
    return out


class MeanIou:
    """The mean IoU of the classes and the background, over all pixels of all images, 0 to 1.

    An image whose size is unknown, because neither its ground truth nor its prediction has a mask, adds nothing.
    """

    name, higher_is_better = "miou", True
    tasks: Sequence[str] = ("segmentation",)

    def value(self, evaluated: EvaluatedPredictions) -> float:
        return float(self.of_sums(self.statistics(evaluated).sum(axis=0)))

    def statistics(self, evaluated: EvaluatedPredictions) -> np.ndarray:
        rows = [*evaluated.ground_truth_rows, *evaluated.prediction_rows]
        classes = sorted({str(mask["label"]) for row in rows for mask in row.get("masks") or ()})
        ground_truths, predictions = [], []
        for truth, prediction in zip(evaluated.ground_truth_rows, evaluated.prediction_rows, strict=True):
            true, predicted = truth.get("masks") or (), prediction.get("masks") or ()
            crowds = truth.get("crowd_masks") or ()
            sizes = [(mask["width"], mask["height"]) for mask in (*true, *predicted, *crowds)]
            width, height = sizes[0] if sizes else (0, 0)
            true_map, regions = class_map(true, classes, width, height), np.zeros((height, width), np.uint8)
            ignore_crowds(regions, truth.get("crowd_boxes"), crowds)
            ground_truths.append(np.where(true_map == 0, regions, true_map))
            predictions.append(class_map(predicted, classes, width, height))
        overlaps = compare(ground_truths, predictions, classes)
        return np.hstack([overlaps.intersection, overlaps.union()]).astype(np.float64)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        intersection, union = np.split(sums, 2, axis=-1)
        occurs = union > 0
        ious = np.divide(intersection, union, out=np.zeros_like(intersection), where=occurs)
        count = occurs.sum(axis=-1)
        out: np.ndarray = np.divide(ious.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)
        return out
