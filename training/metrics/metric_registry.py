"""Metrics by name: the built-in ones, and those that installed packages announce.

A package announces a metric as an entry point in the group `lakeloop.metrics`: a class without constructor arguments,
or a function of (ground_truth_rows, prediction_rows) that returns a float.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from lake.errors import BadInput
from training.metrics.classification_metrics import (
    Accuracy,
    Auroc,
    BalancedAccuracy,
    CalibrationError,
    CostMatrix,
    Costs,
    MacroF1,
)
from training.metrics.detection_metrics import MeanAveragePrecision, MeanAveragePrecision50
from training.metrics.metric import EvaluatedPredictions, Metric, Row
from training.metrics.segmentation_metrics import MeanIou

ENTRY_POINT_GROUP = "lakeloop.metrics"


class FunctionMetric:
    """A package's function of (ground_truth_rows, prediction_rows) as a metric.

    The function may have the attributes `higher_is_better` (else True) and `tasks` (else all).
    """

    tasks: Sequence[str] = ("classification", "detection", "segmentation")

    def __init__(self, name: str, function: Callable[[Sequence[Row], Sequence[Row]], float]) -> None:
        self.name, self.function = name, function
        self.higher_is_better: bool = getattr(function, "higher_is_better", True)
        self.tasks = getattr(function, "tasks", self.tasks)

    def value(self, evaluated: EvaluatedPredictions) -> float:
        return float(self.function(evaluated.ground_truth_rows, evaluated.prediction_rows))


BUILT_IN: Mapping[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "balanced_accuracy": BalancedAccuracy,
    "f1_macro": MacroF1,
    "auroc": Auroc,
    "ece": CalibrationError,
    "miou": MeanIou,
    "map_50": MeanAveragePrecision50,
    "map": MeanAveragePrecision,
}
OF_TASK: Mapping[str, Sequence[str]] = {
    "classification": ("accuracy", "balanced_accuracy", "f1_macro", "auroc", "ece"),
    "segmentation": ("miou",),
    "detection": ("map_50", "map"),
}


def get(name: str, costs: CostMatrix | None = None) -> Metric:
    """The metric of that name. `costs`: the cost matrix of the metric `cost`, which needs one.

    Raises BadInput for an unknown name, with the nearest names.
    """
    if name == Costs.name:
        if not costs:
            raise BadInput("the metric cost needs a cost matrix: add the table [costs] to the policy")
        return Costs(costs)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    announced = entry_points()
    if name in announced:
        return _load(name, announced[name])
    names = [*BUILT_IN, Costs.name, *announced]
    nearest = difflib.get_close_matches(name, names, 3) or names
    raise BadInput(f"no metric {name!r}; did you mean {', '.join(nearest)}?")


def entry_points() -> dict[str, metadata.EntryPoint]:
    """The metrics that installed packages announce, by name."""
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}


def of_task(task: str) -> list[str]:
    """The names of the metrics that an evaluation of this task measures: built-in and announced ones."""
    return [*OF_TASK.get(task, ()), *(name for name in entry_points() if task in get(name).tasks)]


def _load(name: str, point: metadata.EntryPoint) -> Metric:
    loaded: Any = point.load()
    if isinstance(loaded, type):
        metric: Metric = loaded()
        metric.name = name
        return metric
    if not callable(loaded):
        raise BadInput(f"metric {name!r} must be a class or a function of (ground_truth_rows, prediction_rows)")
    return FunctionMetric(name, loaded)
