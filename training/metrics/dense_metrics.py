"""mIoU and mAP of stored answers, as the gate, the evaluation and the bootstrap take metrics.

How overlaps and matches are counted is known in `miou.py` and `map_metric.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.metrics import detection_metrics, segmentation_metrics
from training.metrics.metrics import Judged


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
                found.append(segmentation_metrics.class_map(row.get("masks") or (), classes, width, height))
        counted = segmentation_metrics.compare(*maps, classes)
        return np.hstack([counted.both, counted.truth + counted.answer - counted.both]).astype(np.float64)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        both, either = np.split(sums, 2, axis=-1)
        there = either > 0
        shares = np.divide(both, either, out=np.zeros_like(both), where=there)
        known = there.sum(axis=-1)
        out: np.ndarray = np.divide(shares.sum(axis=-1), known, out=np.full(known.shape, np.nan), where=known > 0)
        return out


class MeanAveragePrecision:
    """COCO's mean average precision over classes and ten overlaps, 0 to 1."""

    name, higher_is_better = "map", True
    tasks: Sequence[str] = ("detection",)

    def value(self, judged: Judged) -> float:
        return self._of(self._matches(judged), None)

    def weighted(self, judged: Judged, weights: np.ndarray) -> np.ndarray:
        found = self._matches(judged)
        return np.array([self._of(found, row) for row in weights])

    def _matches(self, judged: Judged) -> detection_metrics.Matches:
        return detection_metrics.match(
            *([row.get("boxes") or () for row in rows] for rows in (judged.truths, judged.answers))
        )

    def _of(self, found: detection_metrics.Matches, weights: np.ndarray | None) -> float:
        return found.map(weights)


class MeanAveragePrecision50(MeanAveragePrecision):
    """The same at an overlap of one half."""

    name = "map_50"

    def _of(self, found: detection_metrics.Matches, weights: np.ndarray | None) -> float:
        return found.map_50(weights)
