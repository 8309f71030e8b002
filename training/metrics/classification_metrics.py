"""Accuracy, balanced accuracy, F1, AUROC, calibration error and cost of a classifier's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lake.analytics import calibration
from lake.errors import BadInput
from training.metrics.metric import Judged, judged

# (truth, answer) -> what the answer costs; see `Costs`.
CostMatrix = Mapping[str, Mapping[str, float]]


class _OfSums:
    tasks: Sequence[str] = ("classification",)

    def value(self, judged: Judged) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(self.of_sums(self.statistics(judged).sum(axis=0)))

    def statistics(self, judged: Judged) -> np.ndarray:
        raise NotImplementedError

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Accuracy(_OfSums):
    """The share of images answered right, 0 to 1."""

    name, higher_is_better = "accuracy", True

    def statistics(self, judged: Judged) -> np.ndarray:
        return np.column_stack([_right(judged), np.ones(len(judged))]).astype(np.float64)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])


class BalancedAccuracy(_OfSums):
    """Mean over the true classes of the share answered right, 0 to 1: guessing one class gives 1 / classes."""

    name, higher_is_better = "balanced_accuracy", True

    def statistics(self, judged: Judged) -> np.ndarray:
        true = _one_hot(judged.truth, len(judged.classes))
        return np.hstack([true * _right(judged)[:, None], true])

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        right, true = np.split(sums, 2, axis=-1)
        return _mean_where(_ratio(right, true), true > 0)


class MacroF1(_OfSums):
    """Mean over classes of 2 right / (true + said), 0 to 1; a class neither true nor said does not count."""

    name, higher_is_better = "f1_macro", True

    def statistics(self, judged: Judged) -> np.ndarray:
        true, said = (_one_hot(codes, len(judged.classes)) for codes in (judged.truth, judged.said))
        return np.hstack([true * said, true + said])

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        right, either = np.split(sums, 2, axis=-1)
        return _mean_where(_ratio(2 * right, either), either > 0)


class CalibrationError(_OfSums):
    """`lake.analytics.calibration`'s expected calibration error. Predictions without a confidence do not count."""

    name, higher_is_better = "ece", False

    def statistics(self, judged: Judged) -> np.ndarray:
        known = np.isfinite(judged.confidence)
        sure = np.where(known, judged.confidence, 0.0)
        inside = _one_hot(np.where(known, calibration.bin_of(sure), -1), calibration.BINS)
        return np.hstack([inside * (_right(judged) - sure)[:, None], inside])

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        gaps, n = np.split(sums, 2, axis=-1)
        return calibration.expected_calibration_error(gaps, n.sum(axis=-1))


class Auroc:
    """Area under the ROC curve, each class against the rest, mean over classes; 0 to 1, 0.5 is chance.

    The share of pairs of an image of the class and one of another in which the first has the higher score, ties
    counting half (Hanley and McNeil 1982). A class that no image has, or all have, does not count.
    """

    name, higher_is_better = "auroc", True
    tasks: Sequence[str] = ("classification",)

    def value(self, judged: Judged) -> float:
        return float(self.weighted(judged, np.ones((1, len(judged))))[0])

    def weighted(self, judged: Judged, weights: np.ndarray) -> np.ndarray:
        weights = np.asarray(weights, np.float64)
        areas, known = np.zeros(len(weights)), np.zeros(len(weights))
        scores = judged.scores()
        for k in np.unique(judged.truth[judged.truth >= 0]):
            order = np.argsort(scores[:, k], kind="stable")
            column = scores[order, k]
            starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]]) if len(column) else np.zeros(0, np.int64)
            positive = (judged.truth[order] == k).astype(np.float64)
            for begin in range(0, len(weights), 64):  # a block of draws at a time fits in the caches
                block = weights[begin : begin + 64, order]
                hits = np.add.reduceat(block * positive, starts, axis=1)
                others = np.add.reduceat(block * (1 - positive), starts, axis=1)
                below = np.cumsum(others, axis=1) - others / 2
                pairs = hits.sum(axis=1) * others.sum(axis=1)
                there = pairs > 0
                part = slice(begin, begin + len(block))
                areas[part][there] += (hits * below).sum(axis=1)[there] / pairs[there]
                known[part] += there
        return _ratio(areas, known)


class Costs(_OfSums):
    """Mean cost of an answer under a cost matrix, lower is better.

    `matrix[truth][answer]`: what that answer costs; one that is not named costs `other`, a right one nothing. No
    answer costs what the dearest answer to that truth costs. Raises BadInput for costs below 0 or not finite.
    """

    name, higher_is_better = "cost", False

    def __init__(self, matrix: CostMatrix, other: float = 1.0) -> None:
        for truth, row in matrix.items():
            for answer, cost in row.items():
                if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < np.inf:
                    raise BadInput(f"the cost of answering {answer!r} to {truth!r} is {cost!r}; it is a number from 0")
        self.matrix, self.other = matrix, other

    @property
    def dearest(self) -> float:
        """The most one answer can cost."""
        return max([self.other, *(cost for row in self.matrix.values() for cost in row.values())])

    def statistics(self, judged: Judged) -> np.ndarray:
        size = len(judged.classes)
        table = np.full((size, size + 1), float(self.other))  # the last column is no answer: said is -1
        np.fill_diagonal(table, 0.0)
        for i, truth in enumerate(judged.classes):
            row = self.matrix.get(truth, {})
            for j, answer in enumerate(judged.classes):
                table[i, j] = row.get(answer, table[i, j])
            table[i, -1] = max([self.other, *row.values()])
        known = judged.truth >= 0
        return np.column_stack([np.where(known, table[judged.truth, judged.said], 0.0), known]).astype(np.float64)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])


def accuracy(said: Sequence[str], truth: Sequence[str]) -> float:
    """Share of answers that are right, 0 to 1."""
    return Accuracy().value(_of_labels(said, truth))


def balanced_accuracy(said: Sequence[str], truth: Sequence[str]) -> float:
    """Mean over the true classes of the share answered right, 0 to 1: guessing one class gives 1 / classes."""
    return BalancedAccuracy().value(_of_labels(said, truth))


def _of_labels(said: Sequence[str], truth: Sequence[str]) -> Judged:
    return judged([{"label": one} for one in truth], [{"label": one} for one in said])


def _right(judged: Judged) -> np.ndarray:
    right: np.ndarray = (judged.truth == judged.said) & (judged.truth >= 0)
    return right


def _one_hot(codes: np.ndarray, size: int) -> np.ndarray:
    """float64 (n, size); a row of zeros for -1."""
    out: np.ndarray = (codes[:, None] == np.arange(size)).astype(np.float64)
    return out


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; nan where below is 0."""
    below = np.asarray(below, np.float64)
    out: np.ndarray = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
    return out


def _mean_where(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    return _ratio(np.where(there, values, 0.0).sum(axis=-1), there.sum(axis=-1))
