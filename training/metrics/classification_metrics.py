"""Accuracy, balanced accuracy, F1, AUROC, calibration error and cost of a classifier's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lake.analytics import calibration
from lake.errors import BadInput
from training.metrics.metric import EvaluatedPredictions

# Resamples that AUROC counts at once: a block fits in the processor's caches.
_BLOCK = 64

# ground truth -> prediction -> cost of that prediction; see `Costs`.
CostMatrix = Mapping[str, Mapping[str, float]]


class _ClassificationMetric:
    tasks: Sequence[str] = ("classification",)

    def value(self, evaluated: EvaluatedPredictions) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(self.of_sums(self.statistics(evaluated).sum(axis=0)))

    def statistics(self, evaluated: EvaluatedPredictions) -> np.ndarray:
        raise NotImplementedError

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Accuracy(_ClassificationMetric):
    """The share of images with a correct prediction, 0 to 1."""

    name, higher_is_better = "accuracy", True

    def statistics(self, evaluated: EvaluatedPredictions) -> np.ndarray:
        return np.column_stack([evaluated.correct(), np.ones(len(evaluated))]).astype(np.float64)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])


class BalancedAccuracy(_ClassificationMetric):
    """The mean recall of the classes in the ground truth, 0 to 1. Always predicting one class gives 1 / classes."""

    name, higher_is_better = "balanced_accuracy", True

    def statistics(self, evaluated: EvaluatedPredictions) -> np.ndarray:
        true = _one_hot(evaluated.ground_truth, len(evaluated.classes))
        return np.hstack([true * evaluated.correct()[:, None], true])

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        correct, true = np.split(sums, 2, axis=-1)
        return _mean_where(_ratio(correct, true), true > 0)


class MacroF1(_ClassificationMetric):
    """The mean F1 of the classes that occur, 2 correct / (true + predicted), 0 to 1."""

    name, higher_is_better = "f1_macro", True

    def statistics(self, evaluated: EvaluatedPredictions) -> np.ndarray:
        classes = len(evaluated.classes)
        true, predicted = (_one_hot(codes, classes) for codes in (evaluated.ground_truth, evaluated.predicted))
        return np.hstack([true * predicted, true + predicted])

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        correct, total = np.split(sums, 2, axis=-1)
        return _mean_where(_ratio(2 * correct, total), total > 0)


class CalibrationError(_ClassificationMetric):
    """`lake.analytics.calibration`'s expected calibration error. Predictions without a confidence do not count."""

    name, higher_is_better = "ece", False

    def statistics(self, evaluated: EvaluatedPredictions) -> np.ndarray:
        known = np.isfinite(evaluated.confidence)
        confidence = np.where(known, evaluated.confidence, 0.0)
        in_bin = _one_hot(np.where(known, calibration.bin_of(confidence), -1), calibration.BINS)
        return np.hstack([in_bin * (evaluated.correct() - confidence)[:, None], in_bin])

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        gaps, counts = np.split(sums, 2, axis=-1)
        return calibration.expected_calibration_error(gaps, counts.sum(axis=-1))


class Auroc:
    """Area under the ROC curve, each class against the rest, mean over classes; 0 to 1, 0.5 is chance.

    For a class: the share of pairs of an image of the class and an image of another class in which the first has the
    higher score; ties count half (Hanley and McNeil 1982). A class of no image, or of all images, does not count.
    """

    name, higher_is_better = "auroc", True
    tasks: Sequence[str] = ("classification",)

    def value(self, evaluated: EvaluatedPredictions) -> float:
        return float(self.weighted(evaluated, np.ones((1, len(evaluated))))[0])

    def weighted(self, evaluated: EvaluatedPredictions, weights: np.ndarray) -> np.ndarray:
        weights = np.asarray(weights, np.float64)
        areas, classes = np.zeros(len(weights)), np.zeros(len(weights))
        scores = evaluated.scores()
        for k in np.unique(evaluated.ground_truth[evaluated.ground_truth >= 0]):
            order = np.argsort(scores[:, k], kind="stable")
            column = scores[order, k]
            starts = np.flatnonzero(np.r_[True, column[1:] != column[:-1]]) if len(column) else np.zeros(0, np.int64)
            positive = (evaluated.ground_truth[order] == k).astype(np.float64)
            for begin in range(0, len(weights), _BLOCK):
                block = weights[begin : begin + _BLOCK, order]
                positives = np.add.reduceat(block * positive, starts, axis=1)
                negatives = np.add.reduceat(block * (1 - positive), starts, axis=1)
                below = np.cumsum(negatives, axis=1) - negatives / 2
                pairs = positives.sum(axis=1) * negatives.sum(axis=1)
                defined = pairs > 0
                part = slice(begin, begin + len(block))
                areas[part][defined] += (positives * below).sum(axis=1)[defined] / pairs[defined]
                classes[part] += defined
        return _ratio(areas, classes)


class Costs(_ClassificationMetric):
    """The mean cost of a prediction under a cost matrix, lower is better.

    `matrix[ground truth][prediction]`: the cost of that prediction. A wrong prediction that the matrix does not name
    costs `other`, a correct one nothing. No prediction costs as much as the most expensive prediction for that ground
    truth. Raises BadInput for costs that are negative or not finite.
    """

    name, higher_is_better = "cost", False

    def __init__(self, matrix: CostMatrix, other: float = 1.0) -> None:
        for truth, row in matrix.items():
            for label, cost in row.items():
                if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < np.inf:
                    raise BadInput(
                        f"the cost of predicting {label!r} for {truth!r} is {cost!r}; it must be a number from 0"
                    )
        self.matrix, self.other = matrix, other

    @property
    def maximum(self) -> float:
        """The highest cost of a single prediction."""
        return max([self.other, *(cost for row in self.matrix.values() for cost in row.values())])

    def statistics(self, evaluated: EvaluatedPredictions) -> np.ndarray:
        size = len(evaluated.classes)
        table = np.full((size, size + 1), float(self.other))  # the last column: no prediction, whose index is -1
        np.fill_diagonal(table, 0.0)
        for i, truth in enumerate(evaluated.classes):
            row = self.matrix.get(truth, {})
            for j, label in enumerate(evaluated.classes):
                table[i, j] = row.get(label, table[i, j])
            table[i, -1] = max([self.other, *row.values()])
        known = evaluated.ground_truth >= 0
        costs = np.where(known, table[evaluated.ground_truth, evaluated.predicted], 0.0)
        return np.column_stack([costs, known]).astype(np.float64)

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 1])


def accuracy(predicted: Sequence[str], ground_truth: Sequence[str]) -> float:
    """The share of correct labels, 0 to 1."""
    return Accuracy().value(_of_labels(predicted, ground_truth))


def balanced_accuracy(predicted: Sequence[str], ground_truth: Sequence[str]) -> float:
    """The mean recall of the classes in the ground truth, 0 to 1. Always predicting one class gives 1 / classes."""
    return BalancedAccuracy().value(_of_labels(predicted, ground_truth))


def _of_labels(predicted: Sequence[str], ground_truth: Sequence[str]) -> EvaluatedPredictions:
    return EvaluatedPredictions.of([{"label": name} for name in ground_truth], [{"label": name} for name in predicted])


def _one_hot(codes: np.ndarray, size: int) -> np.ndarray:
    """float64 (n, size); a row of zeros for -1."""
    out: np.ndarray = (codes[:, None] == np.arange(size)).astype(np.float64)
    return out


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator; nan where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    out: np.ndarray = np.divide(
        numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0
    )
    return out


def _mean_where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return _ratio(np.where(mask, values, 0.0).sum(axis=-1), mask.sum(axis=-1))
