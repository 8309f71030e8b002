"""What a metric is, and what it is computed from: predictions beside the ground truth of the same images.

A metric is an object with a name and `value(judged)`. One that is a function of sums over images says so (`Summed`):
the bootstrap then resamples sums instead of images. Numpy only; no lake is known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

CONFIDENCE = "confidence"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """Some images' truths and one model's answers to them, row by row.

    `classes`: every label that is true of some image or that the model gives. `truth` and `said`: int64 (n,), places
    in `classes`; -1: the row has no label (detection, segmentation), or the model gave none. `confidence` float64
    (n,), 0 to 1, nan when unknown. `truths` and `answers`: the whole rows, as the tables labels and scores have them.
    """

    classes: tuple[str, ...]
    truth: np.ndarray
    said: np.ndarray
    confidence: np.ndarray
    truths: Sequence[Row]
    answers: Sequence[Row]

    def __len__(self) -> int:
        return len(self.truth)

    def take(self, places: np.ndarray) -> Judged:
        """The rows at these places, in their order; one may come several times."""
        chosen = places.tolist()
        return Judged(
            self.classes,
            self.truth[places],
            self.said[places],
            self.confidence[places],
            [self.truths[i] for i in chosen],
            [self.answers[i] for i in chosen],
        )

    def scores(self) -> np.ndarray:
        """float64 (n, classes): the score given to each class, 0 to 1; 0 where the answer does not name it."""
        place = {name: i for i, name in enumerate(self.classes)}
        out = np.zeros((len(self), len(self.classes)))
        for row, answer in enumerate(self.answers):
            for one in answer.get("scores") or ():
                if one["label"] in place:
                    out[row, place[one["label"]]] = one["score"]
        return out


def judged(truths: Sequence[Row], answers: Sequence[Row], classes: Sequence[str] = ()) -> Judged:
    """The two, row by row; `classes` are counted in though nobody names them.

    Raises ValueError when the numbers of rows are different.
    """
    if len(truths) != len(answers):
        raise ValueError(f"{len(truths)} truths and {len(answers)} answers")
    true, said = ([row.get("label") for row in rows] for rows in (truths, answers))
    names = tuple(sorted({one for one in (*true, *said, *classes) if one is not None}))
    place: dict[Any, int] = {name: i for i, name in enumerate(names)}
    sure = [row.get(CONFIDENCE) for row in answers]
    return Judged(
        names,
        np.array([place.get(one, -1) for one in true], np.int64),
        np.array([place.get(one, -1) for one in said], np.int64),
        np.array([np.nan if one is None else one for one in sure], np.float64),
        truths,
        answers,
    )


class Metric(Protocol):
    """`higher_is_better`: the direction. `tasks`: what it can judge."""

    name: str
    higher_is_better: bool
    tasks: Sequence[str]

    def value(self, judged: Judged) -> float:
        """The number; nan when it cannot be said, e.g. of no images."""
        ...


@runtime_checkable
class Summed(Protocol):
    """A metric that is a function of sums over images."""

    def statistics(self, judged: Judged) -> np.ndarray:
        """float64 (n, m): what each image adds to each of the sums."""
        ...

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """float64 (...,) of sums (..., m)."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """A metric that can be had of many resamples of the same images at once."""

    def weighted(self, judged: Judged, weights: np.ndarray) -> np.ndarray:
        """float64 (draws,): its values when image i counts `weights[d, i]` times, (draws, n)."""
        ...
