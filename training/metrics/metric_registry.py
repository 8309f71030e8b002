"""Metrics by name: the built-in ones, and those that installed packages announce.

A team's own metric is announced as an entry point in the group `lakeloop.metrics`: a class made without arguments, or a
function of (truths, answers) that gives a float.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
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
from training.metrics.metric import Judged, Metric, Row
from training.metrics.segmentation_metrics import MeanIou

ENTRY_POINT_GROUP = "lakeloop.metrics"


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
    """The metric of that name; `cost` needs a cost matrix. Raises BadInput for an unknown one, with the nearest."""
    if name == Costs.name:
        if not costs:
            raise BadInput("the metric cost needs a cost matrix: the table [costs] of the policy")
        return Costs(costs)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    announced = own()
    if name in announced:
        return _own(name, announced[name].load())
    known = [*BUILT_IN, Costs.name, *announced]
    near = difflib.get_close_matches(name, known, 3) or known
    raise BadInput(f"no metric {name!r}; did you mean {', '.join(near)}?")


def own() -> dict[str, Any]:
    """Teams' metrics, announced by installed packages under the entry point group `lakeloop.metrics`, by name."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def of_task(task: str) -> list[str]:
    """Names of the metrics an evaluation of that task measures: the built-in ones, and teams' own that fit."""
    return [*OF_TASK.get(task, ()), *(name for name in own() if task in get(name).tasks)]


def _own(name: str, loaded: Any) -> Metric:
    if isinstance(loaded, type):
        made: Metric = loaded()
        made.name = name
        return made
    if not callable(loaded):
        raise BadInput(f"metric {name!r} is neither a class nor a function of (truths, answers)")
    return Own(name, loaded)
