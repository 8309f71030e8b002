"""How good a model's answers are: one number from some images' truths and a model's answers to them.

A metric is an object with a name and `value(judged)`. One that is a function of sums over images says so (`Summed`):
the bootstrap then resamples sums instead of images. A team's own metric is announced as an entry point in the group
`lakeloop.metrics`: a class made without arguments, or a function of (truths, answers) that gives a float. Numpy only;
no lake is known here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lake.errors import BadInput

ENTRY_POINT_GROUP = "lakeloop.metrics"
ECE_BINS = 15  # as Guo et al. (ICML 2017) have it
CONFIDENCE = "confidence"

Row = Mapping[str, Any]
# (truth, answer) -> what the answer costs; see `Costs`.
CostMatrix = Mapping[str, Mapping[str, float]]


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
    """ECE: mean over answers of |accuracy - mean confidence| of their bin, 0 to 1, lower is better.

    15 bins of equal width (Naeini et al., AAAI 2015; Guo et al., ICML 2017). Answers without a confidence do not count.
    """

    name, higher_is_better = "ece", False

    def statistics(self, judged: Judged) -> np.ndarray:
        known = np.isfinite(judged.confidence)
        sure = np.where(known, judged.confidence, 0.0)
        bins = np.clip(np.ceil(sure * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
        inside = _one_hot(np.where(known, bins, -1), ECE_BINS)
        return np.hstack([inside * (_right(judged) - sure)[:, None], inside])

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        apart, n = np.split(sums, 2, axis=-1)
        return _ratio(np.abs(apart).sum(axis=-1), n.sum(axis=-1))


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


class Own:
    """A team's function of (truths, answers), rows as the tables labels and scores have them, as a metric."""

    tasks: Sequence[str] = ("classification", "detection", "segmentation")

    def __init__(self, name: str, function: Callable[[Sequence[Row], Sequence[Row]], float]) -> None:
        self.name, self.function = name, function
        self.higher_is_better: bool = getattr(function, "higher_is_better", True)
        self.tasks = getattr(function, "tasks", self.tasks)

    def value(self, judged: Judged) -> float:
        return float(self.function(judged.truths, judged.answers))


BUILT_IN: Mapping[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "balanced_accuracy": BalancedAccuracy,
    "f1_macro": MacroF1,
    "auroc": Auroc,
    "ece": CalibrationError,
}
# Metrics of other tasks: name -> module and class, made when they are asked for.
OF_OTHER_TASKS: Mapping[str, tuple[str, str]] = {
    "miou": ("training.metrics.dense_metrics", "MeanIou"),
    "map_50": ("training.metrics.dense_metrics", "MeanAveragePrecision50"),
    "map": ("training.metrics.dense_metrics", "MeanAveragePrecision"),
}
OF_TASK: Mapping[str, Sequence[str]] = {
    "classification": tuple(BUILT_IN),
    "segmentation": ("miou",),
    "detection": ("map_50", "map"),
}


def get(name: str, costs: CostMatrix | None = None) -> Metric:
    """The metric of that name; `cost` needs a cost matrix. Raises BadInput for an unknown one, with the nearest."""
    from importlib import import_module

    if name == Costs.name:
        if not costs:
            raise BadInput("the metric cost needs a cost matrix: the table [costs] of the policy")
        return Costs(costs)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    if name in OF_OTHER_TASKS:
        module, made = OF_OTHER_TASKS[name]
        found: Metric = getattr(import_module(module), made)()
        return found
    announced = own()
    if name in announced:
        return _own(name, announced[name].load())
    known = [*BUILT_IN, *OF_OTHER_TASKS, Costs.name, *announced]
    near = difflib.get_close_matches(name, known, 3) or known
    raise BadInput(f"no metric {name!r}; did you mean {', '.join(near)}?")


def own() -> dict[str, Any]:
    """Teams' metrics, announced by installed packages under the entry point group `lakeloop.metrics`, by name."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def of_task(task: str) -> list[str]:
    """Names of the metrics an evaluation of that task measures: the built-in ones, and teams' own that fit."""
    return [*OF_TASK.get(task, ()), *(name for name in own() if task in get(name).tasks)]


def accuracy(said: Sequence[str], truth: Sequence[str]) -> float:
    """Share of answers that are right, 0 to 1."""
    return Accuracy().value(_of_labels(said, truth))


def balanced_accuracy(said: Sequence[str], truth: Sequence[str]) -> float:
    """Mean over the true classes of the share answered right, 0 to 1: guessing one class gives 1 / classes."""
    return BalancedAccuracy().value(_of_labels(said, truth))


def _of_labels(said: Sequence[str], truth: Sequence[str]) -> Judged:
    return judged([{"label": one} for one in truth], [{"label": one} for one in said])


def _own(name: str, loaded: Any) -> Metric:
    if isinstance(loaded, type):
        made: Metric = loaded()
        made.name = name
        return made
    if not callable(loaded):
        raise BadInput(f"metric {name!r} is neither a class nor a function of (truths, answers)")
    return Own(name, loaded)


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
