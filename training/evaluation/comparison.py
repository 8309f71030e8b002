"""Compares two runs on the same images: newly wrong, newly right; and what a model forgot.

It reads stored predictions and metrics. It predicts nothing and decides nothing.
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
class PairedPredictions:
    """The predictions of two runs on the same labelled images, in the order of `image_ids`. Both know all classes."""

    image_ids: list[str]
    old: EvaluatedPredictions
    new: EvaluatedPredictions


@dataclass(frozen=True)
class SliceChange:
    """The metric of one slice for two runs. `fall`: how much worse it became, in the metric's unit, with the ends of
    its 95 % interval by paired bootstrap; None if a value is undefined. `newly_wrong`, `newly_right`: image_ids.
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
    """A metric of every evaluated run of a model on every slice. `runs`: ids, oldest first.

    `values[slice][i]`: the newest value of run i; None if it was not measured. `forgotten[slice]`: the best value so
    far minus that of the newest run (reversed if lower is better), 0 if the newest is the best; None if the newest run
    was not measured.
    """

    model: str
    metric: str
    runs: list[str]
    values: dict[str, list[float | None]]
    forgotten: dict[str, float | None]


def paired_predictions(lake: Lake, slice_: Slice, old: Run, new: Run) -> PairedPredictions:
    """The stored predictions of two runs on the labelled images of a slice.

    Raises BadInput if their tasks differ, or if one run lacks predictions that the other has.
    """
    if old.task != new.task:
        raise BadInput(f"run {old.id} is for {old.task}, run {new.id} for {new.task}: they cannot be compared")
    ground_truth = evaluate.ground_truth_rows(lake, slice_, new.task)
    old_rows, new_rows = (evaluate.prediction_rows(lake, run.id, sorted(ground_truth)) for run in (old, new))
    for run, own, other in ((old, old_rows, new_rows), (new, new_rows, old_rows)):
        # Images without a prediction of either run cannot be read. No prediction at all means: not evaluated.
        missing = len(other.keys() - own.keys()) if own or other else len(ground_truth)
        if missing:
            raise BadInput(
                f"run {run.id} has no prediction for {missing:,} images of {slice_.id}; run: lakeloop evaluate {run.id}"
            )
    image_ids = sorted(old_rows)
    labels = {row["label"] for rows in (old_rows, new_rows) for row in rows.values() if row["label"] is not None}
    classes = sorted(labels)
    return PairedPredictions(
        image_ids,
        evaluate.pair_rows(ground_truth, old_rows, image_ids, classes),
        evaluate.pair_rows(ground_truth, new_rows, image_ids, classes),
    )


def changed_images(metric: Metric, pair: PairedPredictions) -> tuple[list[str], list[str]]:
    """The image_ids that are newly wrong, and newly right.

    With one class per image, by correct and wrong. Otherwise by the metric of each image alone, most changed first.
    """
    if not pair.image_ids:
        return [], []
    if (pair.old.ground_truth >= 0).any():
        old, new = (side.ground_truth == side.predicted for side in (pair.old, pair.new))
        gain = new.astype(np.float64) - old
    else:
        sign = 1.0 if metric.higher_is_better else -1.0
        gain = sign * np.nan_to_num(_per_image(metric, pair.new) - _per_image(metric, pair.old))
    order = np.argsort(gain, kind="stable")
    wrong = [pair.image_ids[i] for i in order if gain[i] < 0]
    return wrong, [pair.image_ids[i] for i in order[::-1] if gain[i] > 0]


def compare(
    lake: Lake, old: str, new: str, names: Sequence[str] = (), *, metric: str | None = None, seed: int = 0
) -> list[SliceChange]:
    """Every evaluated slice for both runs, the largest fall first. Raises BadInput as `paired_predictions` does."""
    old_run, new_run = runs.get(lake, old), runs.get(lake, new)
    measure = metric_registry.get(metric or metric_registry.OF_TASK[new_run.task][0])
    sign = 1.0 if measure.higher_is_better else -1.0
    changes = []
    for slice_ in evaluate.slices_of(lake, names):
        pair = paired_predictions(lake, slice_, old_run, new_run)
        before, after = (bootstrap.estimate(measure, side, seed=seed) for side in (pair.old, pair.new))
        fall = low = high = None
        if before.value is not None and after.value is not None:
            fall = sign * (before.value - after.value)
            low, high = bootstrap.interval(-sign * bootstrap.differences(measure, pair.old, pair.new, seed=seed))
        wrong, right = changed_images(measure, pair)
        n = len(pair.image_ids)
        changes.append(
            SliceChange(slice_.id, slice_.role, measure.name, n, before, after, fall, low, high, wrong, right)
        )
    return sorted(changes, key=lambda change: (change.fall is None, -(change.fall or 0.0), change.slice))


def forgetting(lake: Lake, model: str, metric: str | None = None) -> Forgetting:
    """The forgetting table of a model: slices by runs, over all its evaluated runs.

    Raises BadInput if no run of the model was evaluated, or none with this metric.
    """
    all_runs = sorted(runs.list(lake, model=model), key=lambda run: (run.started_at, run.id))
    if not all_runs:
        raise BadInput(f"there is no run of a model {model!r}; see: lakeloop runs list")
    name = metric or metric_registry.OF_TASK[all_runs[-1].task][0]
    measured: dict[tuple[str, str], float | None] = {}
    for run in all_runs:
        rows = [row for row in runs.metrics(lake, run.id) if row["evaluation"] is not None and row["metric"] == name]
        for row in sorted(rows, key=lambda row: row["at"]):
            measured[run.id, row["slice"]] = row["value"]
    with_values = {run for run, _ in measured}
    evaluated = [run.id for run in all_runs if run.id in with_values]
    if not evaluated:
        raise BadInput(f"no run of {model!r} was evaluated with {name}; run: lakeloop evaluate {all_runs[-1].id}")
    best = max if name not in _LOWER_IS_BETTER and metric_registry.get(name).higher_is_better else min
    values, forgotten = dict[str, list[float | None]](), dict[str, float | None]()
    for slice_ in sorted({slice_ for _, slice_ in measured}):
        series = [measured.get((run, slice_)) for run in evaluated]
        known = [value for value in series if value is not None]
        values[slice_] = series
        forgotten[slice_] = None if series[-1] is None else abs(best(known) - series[-1])
    return Forgetting(model, name, evaluated, values, forgotten)


# The metric cost needs a policy's cost matrix, but its direction is known without it.
_LOWER_IS_BETTER = (classification_metrics.Costs.name,)


def _per_image(metric: Metric, evaluated: EvaluatedPredictions) -> np.ndarray:
    """The metric of each image alone, float64 (n,); nan where it is undefined."""
    if isinstance(metric, MetricOfSums):
        with np.errstate(invalid="ignore", divide="ignore"):
            return metric.of_sums(metric.statistics(evaluated))
    return np.array([metric.value(evaluated.take(np.array([i]))) for i in range(len(evaluated))])
