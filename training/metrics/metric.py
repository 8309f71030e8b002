"""The interface of a metric, and its input: predictions next to the ground truth of the same images.

A metric has a name and `value(evaluated)`. A metric that is a function of sums over images also implements
`MetricOfSums`: the bootstrap then resamples sums instead of images. This module uses numpy only and knows no lake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

Row = Mapping[str, Any]


@dataclass(frozen=True)
class EvaluatedPredictions:
    """Ground truth and one model's predictions for the same images, row by row.

    `classes`: all labels that occur in the ground truth or in the predictions. `ground_truth` and `predicted`: int64
    (n,), indices in `classes`; -1 if the row has no label (detection, segmentation) or the model predicted none.
    `confidence`: float64 (n,), 0 to 1, nan if unknown. `ground_truth_rows` and `prediction_rows`: the whole rows, with
    the columns of the tables labels and scores.
    """

    classes: tuple[str, ...]
    ground_truth: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    ground_truth_rows: Sequence[Row]
    prediction_rows: Sequence[Row]

    @classmethod
    def of(
        cls, ground_truth_rows: Sequence[Row], prediction_rows: Sequence[Row], classes: Sequence[str] = ()
    ) -> EvaluatedPredictions:
        """Pairs the rows by position. `classes`: further classes of the model, which may occur in no row.

        Raises ValueError if the numbers of rows differ.
        """
        if len(ground_truth_rows) != len(prediction_rows):
            raise ValueError(f"{len(ground_truth_rows)} rows of ground truth and {len(prediction_rows)} predictions")
        labels, predicted = ([row.get("label") for row in rows] for rows in (ground_truth_rows, prediction_rows))
        names = tuple(sorted({name for name in (*labels, *predicted, *classes) if name is not None}))
        index: dict[Any, int] = {name: i for i, name in enumerate(names)}
        confidences = [row.get("confidence") for row in prediction_rows]
        return cls(
            names,
            np.array([index.get(name, -1) for name in labels], np.int64),
            np.array([index.get(name, -1) for name in predicted], np.int64),
            np.array([np.nan if value is None else value for value in confidences], np.float64),
            ground_truth_rows,
            prediction_rows,
        )

    def __len__(self) -> int:
        return len(self.ground_truth)

    def correct(self) -> np.ndarray:
        """bool (n,): whether the predicted label is the true one. False for rows without a true label."""
        correct: np.ndarray = (self.ground_truth == self.predicted) & (self.ground_truth >= 0)
        return correct

    def take(self, indices: np.ndarray) -> EvaluatedPredictions:
        """The rows at `indices`, in that order. An index may occur several times."""
        chosen = indices.tolist()
        return EvaluatedPredictions(
            self.classes,
            self.ground_truth[indices],
            self.predicted[indices],
            self.confidence[indices],
            [self.ground_truth_rows[i] for i in chosen],
            [self.prediction_rows[i] for i in chosen],
        )

    def scores(self) -> np.ndarray:
        """float64 (n, classes): the score of each class, 0 to 1; 0 for a class without a score in the row."""
        column = {name: i for i, name in enumerate(self.classes)}
        out = np.zeros((len(self), len(self.classes)))
        for i, row in enumerate(self.prediction_rows):
            for score in row.get("scores") or ():
                if score["label"] in column:
                    out[i, column[score["label"]]] = score["score"]
        return out


class Metric(Protocol):
    """`higher_is_better`: the direction. `tasks`: the tasks that the metric can evaluate."""

    name: str
    higher_is_better: bool
    tasks: Sequence[str]

    def value(self, evaluated: EvaluatedPredictions) -> float:
        """The value; nan if it is undefined, e.g. without images."""
        ...


@runtime_checkable
class MetricOfSums(Protocol):
    """A metric that is a function of sums over images."""

    def statistics(self, evaluated: EvaluatedPredictions) -> np.ndarray:
        """float64 (n, m): what each image adds to each of the m sums."""
        ...

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """float64 (...,): the metric for sums (..., m)."""
        ...


@runtime_checkable
class MetricOfWeights(Protocol):
    """A metric that can be computed for many resamples of the same images at once."""

    def weighted(self, evaluated: EvaluatedPredictions, weights: np.ndarray) -> np.ndarray:
        """float64 (draws,): the values if image i counts `weights[d, i]` times; `weights` is (draws, n)."""
        ...
