"""Mean average precision of detections, as COCO counts it, with what a bootstrap over images needs.

The rules are pycocotools' (github.com/cocodataset/cocoapi, cocoeval.py), for boxes and without crowd regions: within
an image and a class the surest detections choose first, each the free true box it overlaps most; precision is made
non-increasing and read at 101 recalls; a class without true boxes counts in no mean. The area of an object is its
box's.

Matching depends on one image only and is done once (`match`). Means over other images, a resample for example, re-rank
the matches (`Matches.figures(weights)`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lake.regions.boxes import areas, intersection_over_union
from lake.regions.boxes import match as match_boxes
from lake.regions.sizes import LARGE_FROM, SIZES, SMALL_BELOW
from training.metrics.metric import Judged

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Detections of one class in one image beyond these, the least sure, are passed over.
MOST_DETECTIONS = 100
AREAS = ("all", *SIZES)
# Both ends count, as in pycocotools: an object of exactly 32 x 32 pixels is small and medium.
_BOUNDS = np.array([(0, 1e10), (0, SMALL_BELOW), (SMALL_BELOW, LARGE_FROM), (LARGE_FROM, 1e10)], np.float64)

Box = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """Each 0 to 1, higher is better, NaN when there is no true box to find. `by_class`: average precision over all
    thresholds, `by_class_50`: at an overlap of one half, of each class that has true boxes.
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
    """What every detection found. Rows of detections are sorted by class, then the surest first.

    `images`: how many were looked at. Detections: `image` int64 (d,), `label` int64 (d,) in `classes`; `right` and
    `counts` bool (areas, thresholds, d): it is matched to a box that counts, it is right or wrong at all. True boxes:
    `truths` int64 (areas, classes, images), how many count.
    """

    classes: tuple[str, ...]
    images: int
    image: np.ndarray
    label: np.ndarray
    right: np.ndarray
    counts: np.ndarray
    truths: np.ndarray

    def figures(self, weights: np.ndarray | None = None) -> Figures:
        """The means over the images, image i taken `weights[i]` times (None: once each).

        The same as of a set in which image i stands `weights[i]` times, if no two answers of an image are equally sure.
        """
        table = self._precisions(weights, range(len(AREAS)), range(len(THRESHOLDS)))
        by_class = {name: float(table[0, :, k].mean()) for k, name in enumerate(self.classes)
                    if not np.isnan(table[0, 0, k])}  # fmt: skip
        by_class_50 = {name: float(table[0, 0, k]) for k, name in enumerate(self.classes) if name in by_class}
        small, medium, large = (_mean(table[1 + k]) for k in range(3))
        return Figures(_mean(table[0]), _mean(table[0, 0]), _mean(table[0, 5]), small, medium, large,
                       by_class, by_class_50)  # fmt: skip

    def map(self, weights: np.ndarray | None = None) -> float:
        """Mean average precision over all classes and thresholds, 0 to 1."""
        return _mean(self._precisions(weights, [0], range(len(THRESHOLDS))))

    def map_50(self, weights: np.ndarray | None = None) -> float:
        """The same at an overlap of one half."""
        return _mean(self._precisions(weights, [0], [0]))

    def _precisions(self, weights: np.ndarray | None, areas: Sequence[int], thresholds: Sequence[int]) -> np.ndarray:
        """Average precision float64 (areas, thresholds, classes); NaN without true boxes."""
        times = np.ones(self.images) if weights is None else np.asarray(weights, np.float64)
        if times.shape != (self.images,):
            raise ValueError(f"weights of {times.shape}, not one for each of {self.images} images")
        # An image taken no times is not there: its detections make no step of the curve.
        there = times[self.image] > 0
        weight, label = times[self.image][there], self.label[there]
        ends = np.searchsorted(label, np.arange(len(self.classes) + 1))
        out = np.full((len(areas), len(thresholds), len(self.classes)), np.nan)
        for a, area in enumerate(areas):
            wanted = self.truths[area] @ times
            counts, right = (flags[area][[*thresholds]][:, there] for flags in (self.counts, self.right))
            for k in np.flatnonzero(wanted > 0):
                rows = slice(ends[k], ends[k + 1])
                mine = np.where(counts[:, rows], weight[rows], 0.0)
                out[a, :, k] = _average_precisions(mine, right[:, rows], float(wanted[k]))
        return out


def match(truths: Sequence[Sequence[Box]], answers: Sequence[Sequence[Box]]) -> Matches:
    """Matches the answers to each image with its true boxes.

    Both: for each image its boxes, as `lake.storage.schema.BOXES` has them; an answer without a score counts as sure.
    """
    if len(truths) != len(answers):
        raise ValueError(f"{len(truths)} images with true boxes, {len(answers)} with answers")
    classes = tuple(sorted({str(box["label"]) for boxes in truths for box in boxes}))
    number = {name: k for k, name in enumerate(classes)}
    wanted = np.zeros((len(AREAS), len(classes), len(truths)), np.int64)
    places, labels, scores, right, counts = [], [], [], [], []
    for image, (true, said) in enumerate(zip(truths, answers, strict=True)):
        true_of, said_of = _by_class(true, number), _by_class(said, number)
        for k in sorted({*true_of, *said_of}):
            corners, _ = true_of.get(k, _NONE)
            wanted[:, k, image] = (~_outside(corners)).sum(axis=1)
            if k not in said_of:
                continue
            found, sure = said_of[k]
            order = np.argsort(-sure, kind="stable")[:MOST_DETECTIONS]
            hit, counted = _match_one(corners, found[order])
            places.append(np.full(len(order), image))
            labels.append(np.full(len(order), k))
            scores.append(sure[order])
            right.append(hit)
            counts.append(counted)
    nothing = np.zeros((len(AREAS), len(THRESHOLDS), 0), bool)
    image_of = np.concatenate([*places, np.zeros(0, np.int64)])
    label_of = np.concatenate([*labels, np.zeros(0, np.int64)])
    # Equally sure ones of a class stay in the order of the images.
    order = np.lexsort((-np.concatenate([*scores, np.zeros(0)]), label_of))
    return Matches(
        classes,
        len(truths),
        image_of[order],
        label_of[order],
        np.concatenate([*right, nothing], axis=2)[:, :, order],
        np.concatenate([*counts, nothing], axis=2)[:, :, order],
        wanted,
    )


_NONE = (np.zeros((0, 4)), np.zeros(0))


def _by_class(boxes: Sequence[Box], number: Mapping[str, int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Corners float64 (n, 4) and scores (n,) of each class that some image truly has."""
    found: dict[int, list[tuple[float, ...]]] = {}
    for b in boxes:
        k = number.get(str(b["label"]))
        if k is not None:
            score = b.get("score")
            corners = (b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"])
            found.setdefault(k, []).append((*corners, 1.0 if score is None else score))
    arrays = {k: np.array(rows, np.float64) for k, rows in found.items()}
    return {k: (rows[:, :4], rows[:, 4]) for k, rows in arrays.items()}


def _outside(corners: np.ndarray) -> np.ndarray:
    """bool (areas, n): whether a box is not of that size."""
    area = areas(corners)[None, :]
    out: np.ndarray = (area < _BOUNDS[:, :1]) | (area > _BOUNDS[:, 1:])
    return out


def _match_one(true: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image and class; `said` in the order of choosing. (right, counts), each bool (areas, thresholds, said)."""
    other_size = _outside(true)  # such a box may be found, which is neither right nor wrong
    matched = match_boxes(intersection_over_union(said, true), THRESHOLDS, other_size)
    found = matched >= 0
    counted = np.pad(~other_size, ((0, 0), (0, 1)))  # the last column is for -1
    right = np.take_along_axis(counted[:, None, :], matched, axis=2)
    inside = np.repeat((~_outside(said))[:, None, :], len(THRESHOLDS), axis=1)
    return right, np.where(found, right, inside)


def _average_precisions(weight: np.ndarray, right: np.ndarray, wanted: float) -> np.ndarray:
    """(thresholds,), of detections (thresholds, d) from the surest on; `weight` 0: neither right nor wrong."""
    if not weight.shape[1]:
        return np.zeros(len(weight))
    hits = np.cumsum(weight * right, axis=1)
    misses = np.cumsum(weight * ~right, axis=1)
    precision = hits / (hits + misses + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Recalls that are never reached are read at a precision of 0.
    envelope = np.hstack([envelope, np.zeros((len(weight), 1))])
    found = [curve[np.searchsorted(recall, RECALLS, side="left")].mean()
             for curve, recall in zip(envelope, hits / wanted, strict=True)]  # fmt: skip
    return np.array(found)


def _mean(values: np.ndarray) -> float:
    """Without NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


class MeanAveragePrecision:
    """COCO's mean average precision over classes and ten overlaps, 0 to 1."""

    name, higher_is_better = "map", True
    tasks: Sequence[str] = ("detection",)

    def value(self, judged: Judged) -> float:
        return self._of(self._matches(judged), None)

    def weighted(self, judged: Judged, weights: np.ndarray) -> np.ndarray:
        found = self._matches(judged)
        return np.array([self._of(found, row) for row in weights])

    def _matches(self, judged: Judged) -> Matches:
        return match(*([row.get("boxes") or () for row in rows] for rows in (judged.truths, judged.answers)))

    def _of(self, found: Matches, weights: np.ndarray | None) -> float:
        return found.map(weights)


class MeanAveragePrecision50(MeanAveragePrecision):
    """The same at an overlap of one half."""

    name = "map_50"

    def _of(self, found: Matches, weights: np.ndarray | None) -> float:
        return found.map_50(weights)
