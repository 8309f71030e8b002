"""The old and the new model on the same images: what went wrong, what came right, and what is forgotten over runs.

Read from the tables scores and metrics; nothing is answered or decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lake.errors import BadInput
from training.evaluation import evaluate
from training.metrics import bootstrap, classification_metrics, metric_registry
from training.metrics.bootstrap import Estimate
from training.metrics.metric import EvaluatedPredictions, Metric, MetricOfSums
from training.registry import runs

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import Lake
    from training.registry.runs import Run


@dataclass(frozen=True)
class Pair:
    """Two models' answers to the same labelled images, `names` in their order; both know the same classes."""

    names: list[str]
    old: EvaluatedPredictions
    new: EvaluatedPredictions


@dataclass(frozen=True)
class SliceChange:
    """A slice's metric before and after. `fall`: how much worse it became, in the metric's unit, with the ends of its
    95 % interval by paired bootstrap; None when it cannot be said. `newly_wrong`, `newly_right`: image_ids.
    """

    slice: str
    role: str | None
    metric: str
    n: int
    old: Estimate
    new: Estimate
    fall: float | None
    low: float | None
    high: float | None
    newly_wrong: list[str]
    newly_right: list[str]


@dataclass(frozen=True)
class Forgetting:
    """A metric of every evaluated run of a model on every slice. `runs`: ids, the oldest first.

    `values[slice][i]`: of run i, its newest evaluation; None when it was not measured there. `forgotten[slice]`: the
    best so far less the newest run's value (the other way round where lower is better), 0 when the newest is the best;
    None when the newest run was not measured there.
    """

    model: str
    metric: str
    runs: list[str]
    values: dict[str, list[float | None]]
    forgotten: dict[str, float | None]


def pair(lake: Lake, made: Slice, old: Run, new: Run) -> Pair:
    """The stored answers of two runs to a slice's labelled images.

    Raises BadInput when their tasks differ, and when one lacks answers that the other has.
    """
    if old.task != new.task:
        raise BadInput(f"run {old.id} is for {old.task}, run {new.id} for {new.task}: they cannot be compared")
    truths = evaluate.truth_rows(lake, made, new.task)
    before, after = (evaluate.answer_rows(lake, one.id, sorted(truths)) for one in (old, new))
    for one, mine, theirs in ((old, before, after), (new, after, before)):
        # Images that neither could be shown are nobody's fault; none at all means that nobody asked.
        lacks = len(theirs.keys() - mine.keys()) if mine or theirs else len(truths)
        if lacks:
            raise BadInput(
                f"run {one.id} has not answered {lacks:,} images of {made.id}; run: lakeloop evaluate {one.id}"
            )
    names = sorted(before)
    classes = sorted({row["label"] for rows in (before, after) for row in rows.values() if row["label"] is not None})
    return Pair(names, *(evaluate.judge(truths, rows, names, classes) for rows in (before, after)))


def changed(metric: Metric, two: Pair) -> tuple[list[str], list[str]]:
    """image_ids that are newly wrong, and newly right.

    By right and wrong where images have one class; else by the metric of each image alone, the most changed first.
    """
    if not two.names:
        return [], []
    if (two.old.ground_truth >= 0).any():
        before, after = (one.ground_truth == one.predicted for one in (two.old, two.new))
        moved = after.astype(np.float64) - before
    else:
        sign = 1.0 if metric.higher_is_better else -1.0
        moved = sign * np.nan_to_num(_alone(metric, two.new) - _alone(metric, two.old))
    order = np.argsort(moved, kind="stable")
    wrong = [two.names[i] for i in order if moved[i] < 0]
    return wrong, [two.names[i] for i in order[::-1] if moved[i] > 0]


def compare(
    lake: Lake, old: str, new: str, names: Sequence[str] = (), *, metric: str | None = None, seed: int = 0
) -> list[SliceChange]:
    """Every evaluated slice before and after, the largest fall first. Raises BadInput as `pair` does."""
    before, after = runs.get(lake, old), runs.get(lake, new)
    judged_by = metric_registry.get(metric or metric_registry.OF_TASK[after.task][0])
    sign = 1.0 if judged_by.higher_is_better else -1.0
    found = []
    for made in evaluate.subjects(lake, names):
        two = pair(lake, made, before, after)
        first, second = (bootstrap.estimate(judged_by, one, seed=seed) for one in (two.old, two.new))
        fall = low = high = None
        if first.value is not None and second.value is not None:
            fall = sign * (first.value - second.value)
            low, high = bootstrap.interval(-sign * bootstrap.differences(judged_by, two.old, two.new, seed=seed))
        wrong, right = changed(judged_by, two)
        found.append(
            SliceChange(
                made.id, made.role, judged_by.name, len(two.names), first, second, fall, low, high, wrong, right
            )
        )
    return sorted(found, key=lambda one: (one.fall is None, -(one.fall or 0.0), one.slice))


def forgetting(lake: Lake, model: str, metric: str | None = None) -> Forgetting:
    """The forgetting table of a model: slices by runs, over all its evaluated runs.

    Raises BadInput when no run of the model was evaluated, or none with that metric.
    """
    every = sorted(runs.list(lake, model=model), key=lambda run: (run.started_at, run.id))
    if not every:
        raise BadInput(f"no run makes a model {model!r}; see: lakeloop runs list")
    name = metric or metric_registry.OF_TASK[every[-1].task][0]
    measured: dict[tuple[str, str], float | None] = {}
    for run in every:
        rows = [row for row in runs.metrics(lake, run.id) if row["evaluation"] is not None and row["metric"] == name]
        for row in sorted(rows, key=lambda r: r["at"]):
            measured[run.id, row["slice"]] = row["value"]
    known = [run.id for run in every if any(run.id == one for one, _ in measured)]
    if not known:
        raise BadInput(f"no run of {model!r} was evaluated with {name}; run: lakeloop evaluate {every[-1].id}")
    best = max if name not in _LOWER and metric_registry.get(name).higher_is_better else min
    values, forgotten = dict[str, list[float | None]](), dict[str, float | None]()
    for slice in sorted({one for _, one in measured}):
        line = [measured.get((run, slice)) for run in known]
        there = [one for one in line if one is not None]
        values[slice] = line
        forgotten[slice] = None if line[-1] is None else abs(best(there) - line[-1])
    return Forgetting(model, name, known, values, forgotten)


# A cost matrix is the policy's: which way is better is known without it.
_LOWER = (classification_metrics.Costs.name,)


def _alone(metric: Metric, found: EvaluatedPredictions) -> np.ndarray:
    """The metric of each image by itself, float64 (n,); nan where it cannot be said."""
    if isinstance(metric, MetricOfSums):
        with np.errstate(invalid="ignore", divide="ignore"):
            return metric.of_sums(metric.statistics(found))
    return np.array([metric.value(found.take(np.array([i]))) for i in range(len(found))])
