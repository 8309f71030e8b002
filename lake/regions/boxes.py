"""Boxes: corners, areas, intersection over union, matching to ground truth, and non-maximum suppression.

The lake stores a box as COCO does: `x`, `y` (left, top), `width` and `height`, in pixels of the upright image. The
functions here work on corners: (n, 4) as left, top, right, bottom. A box has no extra pixel at its right and bottom
edge: its area is width x height. Matching follows pycocotools (github.com/cocodataset/cocoapi, cocoeval.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Rows of the table of overlaps in memory at once: 1,024 x 10,000 boxes are 40 MB.
_ROWS = 1024


def corners(boxes: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """float64 (n, 4) of boxes with `x`, `y`, `width` and `height`."""
    rows = [(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b in boxes]
    return np.array(rows, np.float64).reshape(-1, 4)


def areas(corners: np.ndarray) -> np.ndarray:
    """Area (n,) of each box, in square pixels."""
    sizes: np.ndarray = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    return sizes


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m), 0 to 1, of corners (n, 4) and (m, 4). Two boxes without area have 0."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=2)
    union = areas(first)[:, None] + areas(second)[None, :] - intersection
    iou: np.ndarray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def share_inside(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m), 0 to 1: the share of each box's own area inside each region: COCO's overlap with a crowd region."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=2)
    own = np.broadcast_to(areas(first)[:, None], intersection.shape)
    share: np.ndarray = np.divide(intersection, own, out=np.zeros_like(intersection), where=own > 0)
    return share


def match(
    overlaps: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray | None = None, crowd: np.ndarray | None = None
) -> np.ndarray:
    """Matches detections to ground truth boxes, as COCO does; each ground truth box is matched at most once.

    `overlaps` (d, t): IoU of the detections of one image, highest score first, with its ground truth boxes.
    `thresholds` (k,): the least IoU of a match. `ignored`, bool (a, t): ground truth boxes that count in none of `a`
    evaluations; a detection takes such a box only if no other fits. `crowd`, bool (t,): regions that take any number
    of detections; mark them as ignored, too. A detection takes the free box with the highest IoU, of equal ones the
    last. Returns int64 (a, k, d): the number of the matched box, or -1. `a` is 1 without
    `ignored`.
    """
    detections, truths = overlaps.shape
    ignored = np.zeros((1, truths), bool) if ignored is None else ignored
    matched = np.full((len(ignored), len(thresholds), detections), -1, np.int64)
    if not truths:
        return matched
    least = np.minimum(thresholds, 1 - 1e-10)[None, :, None]
    free = np.ones((len(ignored), len(thresholds), truths), bool)
    for detection in np.flatnonzero((overlaps >= least.min()).any(axis=1)):
        overlap = overlaps[detection]
        candidates = free & (overlap >= least)
        preferred = candidates & ~ignored[:, None, :]
        candidates = np.where(preferred.any(axis=2, keepdims=True), preferred, candidates)
        best = truths - 1 - np.where(candidates, overlap, -1.0)[:, :, ::-1].argmax(axis=2)
        chosen = (np.arange(truths) == best[:, :, None]) & candidates
        free &= ~chosen if crowd is None else ~chosen | crowd
        matched[:, :, detection] = np.where(chosen.any(axis=2), best, -1)
    return matched


def suppress(corners: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Non-maximum suppression: int64 indices of the boxes that remain, highest score first.

    A box is dropped if a remaining box with a higher score overlaps it by an IoU above `iou_threshold`.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = corners[order]
    dropped = np.zeros(len(order), bool)
    for start in range(0, len(order), _ROWS):
        block = ordered[start : start + _ROWS]
        overlaps = intersection_over_union(block, ordered[start:]) > iou_threshold
        rest = dropped[start:]
        for row in range(len(block)):
            if not rest[row]:
                rest[row + 1 :] |= overlaps[row, row + 1 :]
    return order[~dropped]
