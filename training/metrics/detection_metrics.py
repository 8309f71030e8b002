"""Mean average precision (mAP) of boxes, as COCO counts it, with the matches that a bootstrap over images needs.

The rules are those of pycocotools (github.com/cocodataset/cocoapi, cocoeval.py), for boxes. In an image and a class,
the predictions with the highest scores choose first, each the free true box with the largest overlap. A prediction
inside a crowd region is neither correct nor wrong. Precision is made non-increasing and read at 101 recalls. A class
without true boxes counts in no mean. The area of an object is the area of its box.

Matching depends on one image only and is done once (`match`). The means over other images, for example a resample, only
rank the matches again (`Matches.average_precisions(weights)`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lake.regions.boxes import areas, intersection_over_union, share_inside
from lake.regions.boxes import match as match_boxes
from lake.regions.sizes import LARGE_FROM, SIZES, SMALL_BELOW
from training.metrics.metric import EvaluatedPredictions

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Predictions of one class in one image beyond these, those with the lowest scores, do not count.
MOST_DETECTIONS = 100
AREAS = ("all", *SIZES)
# Both ends count, as in pycocotools: an object of exactly 32 x 32 pixels is small and medium.
_BOUNDS = np.array([(0, 1e10), (0, SMALL_BELOW), (SMALL_BELOW, LARGE_FROM), (LARGE_FROM, 1e10)], np.float64)

Box = Mapping[str, Any]


@dataclass(frozen=True)
class AveragePrecisions:
    """Means over the classes, 0 to 1, higher is better; NaN without true boxes.

    `map`: the mean over ten IoU thresholds from 0.5 to 0.95; `map_50`, `map_75`: at one threshold; `map_small`,
    `map_medium`, `map_large`: for objects of one size. `by_class` and `by_class_50`: `map` and `map_50` of each class
    that has true boxes.
    """

    map: float
    map_50: float
    map_75: float
    map_small: float
    map_medium: float
    map_large: float
    by_class: dict[str, float]
    by_class_50: dict[str, float]

    def means(self) -> dict[str, float]:
        """The six means by name."""
        return {name: getattr(self, name) for name in
                ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")}  # fmt: skip


@dataclass(frozen=True)
class Matches:
    """The matches of all predicted boxes. Predictions are sorted by class, then by falling score.

    `images`: the number of images. For each of d predictions: `image` int64 (d,); `label` int64 (d,), an index in
    `classes`; `correct` bool (areas, thresholds, d): matched to a true box that counts; `counts` bool (areas,
    thresholds, d): whether it counts as correct or wrong at all. `true_boxes` int64 (areas, classes, images): how many
    true boxes count.
    """

    classes: tuple[str, ...]
    images: int
    image: np.ndarray
    label: np.ndarray
    correct: np.ndarray
    counts: np.ndarray
    true_boxes: np.ndarray

    def average_precisions(self, weights: np.ndarray | None = None) -> AveragePrecisions:
        """The means over the images, where image i counts `weights[i]` times (None: once).

        Equal to the means of a set with `weights[i]` copies of image i if no two predictions in an image have the same
        score.
        """
        table = self._precisions(weights, range(len(AREAS)), range(len(THRESHOLDS)))
        by_class = {name: float(table[0, :, k].mean()) for k, name in enumerate(self.classes)
                    if not np.isnan(table[0, 0, k])}  # fmt: skip
        by_class_50 = {name: float(table[0, 0, k]) for k, name in enumerate(self.classes) if name in by_class}
        small, medium, large = (_mean(table[1 + k]) for k in range(3))
        return AveragePrecisions(_mean(table[0]), _mean(table[0, 0]), _mean(table[0, 5]), small, medium, large,
                       by_class, by_class_50)  # fmt: skip

    def map(self, weights: np.ndarray | None = None) -> float:
        """Mean average precision over all classes and thresholds, 0 to 1."""
        return _mean(self._precisions(weights, [0], range(len(THRESHOLDS))))

    def map_50(self, weights: np.ndarray | None = None) -> float:
        """Mean average precision over all classes at an IoU of 0.5, 0 to 1."""
        return _mean(self._precisions(weights, [0], [0]))

    def _precisions(self, weights: np.ndarray | None, areas: Sequence[int], thresholds: Sequence[int]) -> np.ndarray:
        """Average precision float64 (areas, thresholds, classes); NaN without true boxes."""
        counts = np.ones(self.images) if weights is None else np.asarray(weights, np.float64)
        if counts.shape != (self.images,):
            raise ValueError(f"weights have shape {counts.shape}, not one for each of {self.images} images")
        # Predictions of an image with weight 0 make no step of the curve.
        used = counts[self.image] > 0
        weight, label = counts[self.image][used], self.label[used]
        ends = np.searchsorted(label, np.arange(len(self.classes) + 1))
        out = np.full((len(areas), len(thresholds), len(self.classes)), np.nan)
        for a, area in enumerate(areas):
            positives = self.true_boxes[area] @ counts
            counted, correct = (flags[area][[*thresholds]][:, used] for flags in (self.counts, self.correct))
            for k in np.flatnonzero(positives > 0):
                rows = slice(ends[k], ends[k + 1])
                class_weight = np.where(counted[:, rows], weight[rows], 0.0)
                out[a, :, k] = _average_precisions(class_weight, correct[:, rows], float(positives[k]))
        return out


def match(
    ground_truths: Sequence[Sequence[Box]],
    predictions: Sequence[Sequence[Box]],
    crowds: Sequence[Sequence[Box]] | None = None,
) -> Matches:
    """Matches the predicted boxes of each image with its true boxes.

    The arguments hold the boxes of each image, with the fields of `lake.storage.schema.BOXES`. A predicted box without
    a score has the score 1. `crowds`: the crowd regions of each image; one without a label is of every class.
    """
    if len(ground_truths) != len(predictions):
        raise ValueError(f"{len(ground_truths)} images with true boxes, {len(predictions)} with predictions")
    classes = tuple(sorted({str(box["label"]) for boxes in ground_truths for box in boxes}))
    number = {name: k for k, name in enumerate(classes)}
    true_boxes = np.zeros((len(AREAS), len(classes), len(ground_truths)), np.int64)
    images, labels, scores, correct, counts = [], [], [], [], []
    crowds = crowds or [()] * len(ground_truths)
    for image, (true, predicted, regions) in enumerate(zip(ground_truths, predictions, crowds, strict=True)):
        true_of, predicted_of = _by_class(true, number), _by_class(predicted, number)
        everywhere = [box | {"label": name} for box in map(dict, regions) if box["label"] is None for name in number]
        crowd_of = _by_class([*regions, *everywhere], number)
        for k in sorted({*true_of, *predicted_of}):
            true_corners, _ = true_of.get(k, _NONE)
            true_boxes[:, k, image] = (~_outside(true_corners)).sum(axis=1)
            if k not in predicted_of:
                continue
            corners, score = predicted_of[k]
            order = np.argsort(-score, kind="stable")[:MOST_DETECTIONS]
            is_correct, is_counted = _match_one(true_corners, corners[order], crowd_of.get(k, _NONE)[0])
            images.append(np.full(len(order), image))
            labels.append(np.full(len(order), k))
            scores.append(score[order])
            correct.append(is_correct)
            counts.append(is_counted)
    nothing = np.zeros((len(AREAS), len(THRESHOLDS), 0), bool)
    image_of = np.concatenate([*images, np.zeros(0, np.int64)])
    label_of = np.concatenate([*labels, np.zeros(0, np.int64)])
    # Equal scores of a class stay in the order of the images.
    order = np.lexsort((-np.concatenate([*scores, np.zeros(0)]), label_of))
    return Matches(
        classes,
        len(ground_truths),
        image_of[order],
        label_of[order],
        np.concatenate([*correct, nothing], axis=2)[:, :, order],
        np.concatenate([*counts, nothing], axis=2)[:, :, order],
        true_boxes,
    )


_NONE = (np.zeros((0, 4)), np.zeros(0))


def _by_class(boxes: Sequence[Box], number: Mapping[str, int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Corners float64 (n, 4) and scores (n,) of each class in `number`."""
    rows: dict[int, list[tuple[float, ...]]] = {}
    for box in boxes:
        k = number.get(str(box["label"]))
        if k is not None:
            score = box.get("score")
            corners = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
            rows.setdefault(k, []).append((*corners, 1.0 if score is None else score))
    arrays = {k: np.array(values, np.float64) for k, values in rows.items()}
    return {k: (array[:, :4], array[:, 4]) for k, array in arrays.items()}


def _outside(corners: np.ndarray) -> np.ndarray:
    """bool (areas, n): whether a box is smaller or larger than that size."""
    area = areas(corners)[None, :]
    out: np.ndarray = (area < _BOUNDS[:, :1]) | (area > _BOUNDS[:, 1:])
    return out


def _match_one(true: np.ndarray, predicted: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matches in one image and class; `predicted` is sorted by falling score.

    Returns (correct, counts), each bool (areas, thresholds, predicted).
    """
    # A match with a true box of another size, or with a crowd region, is neither correct nor wrong.
    ignored = np.hstack([_outside(true), np.ones((len(AREAS), len(crowd)), bool)])
    overlaps = np.hstack([intersection_over_union(predicted, true), share_inside(predicted, crowd)])
    matched = match_boxes(overlaps, THRESHOLDS, ignored, np.arange(len(true) + len(crowd)) >= len(true))
    counted = np.pad(~ignored, ((0, 0), (0, 1)))  # the last column is for -1
    correct = np.take_along_axis(counted[:, None, :], matched, axis=2)
    inside = np.repeat((~_outside(predicted))[:, None, :], len(THRESHOLDS), axis=1)
    return correct, np.where(matched >= 0, correct, inside)


def _average_precisions(weight: np.ndarray, correct: np.ndarray, positives: float) -> np.ndarray:
    """(thresholds,): average precision of predictions (thresholds, d), sorted by falling score.

    A prediction with `weight` 0 is neither correct nor wrong. `positives`: the number of true boxes.
    """
    if not weight.shape[1]:
        return np.zeros(len(weight))
    hits = np.cumsum(weight * correct, axis=1)
    misses = np.cumsum(weight * ~correct, axis=1)
    precision = hits / (hits + misses + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Recalls that are never reached have a precision of 0.
    envelope = np.hstack([envelope, np.zeros((len(weight), 1))])
    means = [curve[np.searchsorted(recall, RECALLS, side="left")].mean()
             for curve, recall in zip(envelope, hits / positives, strict=True)]  # fmt: skip
    return np.array(means)


def _mean(values: np.ndarray) -> float:
    """The mean without NaN; NaN if nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


class MeanAveragePrecision:
    """COCO's mean average precision over classes and ten IoU thresholds, 0 to 1."""

    name, higher_is_better = "map", True
    tasks: Sequence[str] = ("detection",)

    def value(self, evaluated: EvaluatedPredictions) -> float:
        return self._mean(_matches(evaluated), None)

    def weighted(self, evaluated: EvaluatedPredictions, weights: np.ndarray) -> np.ndarray:
        matches = _matches(evaluated)
        return np.array([self._mean(matches, row) for row in weights])

    def _mean(self, matches: Matches, weights: np.ndarray | None) -> float:
        return matches.map(weights)


class MeanAveragePrecision50(MeanAveragePrecision):
    """COCO's mean average precision over classes at an IoU of 0.5, 0 to 1."""

    name = "map_50"

    def _mean(self, matches: Matches, weights: np.ndarray | None) -> float:
        return matches.map_50(weights)


def _matches(evaluated: EvaluatedPredictions) -> Matches:
    rows = (evaluated.ground_truth_rows, evaluated.prediction_rows)
    ground_truths, predictions = ([row.get("boxes") or () for row in part] for part in rows)
    return match(ground_truths, predictions, [row.get("crowd_boxes") or () for row in evaluated.ground_truth_rows])
