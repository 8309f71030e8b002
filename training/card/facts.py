"""Gathers every number and fact of a model card from the tables of the lake.

It reads the tables runs, metrics, gates, releases, slices and embedders and, for the plots, stored predictions and
labels. Nothing is measured here. What was not recorded is None or missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lake import slices
from lake.errors import BadInput
from lake.storage import store
from training.evaluation import evaluate
from training.metrics import classification_metrics, metric_registry
from training.models import trained_model
from training.registry import releases, runs, versions
from training.tasks import task_registry

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import EmbedderRecord, Lake
    from training.registry.releases import ReleaseEvent
    from training.registry.runs import Run
    from training.registry.versions import Version

# The most earlier runs in the forgetting table.
SHOWN_RUNS = 6


@dataclass(frozen=True)
class MetricValue:
    """A row of `metrics`: a value on `n` images with the ends of its 95 % interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int | None


# slice NAME@VERSION -> metric -> the value of the newest evaluation
SliceValues = Mapping[str, Mapping[str, MetricValue]]


@dataclass(frozen=True)
class GateRecord:
    """A row of `gates`. `slices`: the fields of each `gate.SliceVerdict`, and its sentence."""

    id: str
    baseline: str
    outcome: str
    blocks: bool
    at: Any
    policy: dict[str, Any]
    slices: list[dict[str, Any]]


@dataclass(frozen=True)
class LabelledPredictions:
    """Ground truth, predicted labels and confidences (0 to 1, None if unknown) of the same images."""

    ground_truth: list[str]
    predicted: list[str]
    confidence: list[float | None]


@dataclass(frozen=True)
class CardFacts:
    """Everything on a card. `version`: None for a run that is no version. `baseline`: the baseline of its gate, else
    its parent, else the version before it. `main_metric`: the metric that weak slices are found by. `series`: the
    evaluated runs of the model up to this one, oldest first, with their values. `training`: rows of `metrics` that
    belong to no evaluation. `predictions`: on the images of all evaluated slices; None unless images have one class.
    """

    run: Run
    version: Version | None
    history: list[ReleaseEvent]
    baseline: Run | None
    version_ids: Mapping[str, str]  # run id -> NAME@V, for runs that are versions
    slices: Mapping[str, Slice]
    main_metric: str
    values: SliceValues
    baseline_values: SliceValues
    series: list[tuple[Run, SliceValues]]
    gate: GateRecord | None
    training: list[dict[str, Any]]
    base: EmbedderRecord | None
    predictions: LabelledPredictions | None

    @property
    def title(self) -> str:
        """NAME@V, else the name of the model and the run."""
        return self.version.id if self.version else f"{self.run.model}, run {self.run.id}"

    @property
    def name(self) -> str:
        """The name to load it by: NAME@V, else the id of the run."""
        return self.version.id if self.version else self.run.id

    def name_of(self, run: str) -> str:
        """NAME@V of a run that is a version, else its id."""
        return self.version_ids.get(run, run)


def gather(lake: Lake, name: str, *, predictions: bool = True) -> CardFacts:
    """The facts of NAME@V, of a run, or of a model's promoted, else newest, run. `predictions`: read them, too.

    Raises BadInput if there is none, or if the run is not done.
    """
    run = trained_model.find(lake, name)
    if run.status != "done":
        raise BadInput(f"run {run.id} is {run.status}; a card needs a run that is done; see: lakeloop runs list")
    own_versions = versions.list(lake, run.model)
    version = next((version for version in own_versions if version.run == run.id), None)
    gate = _gate(lake, run, version.gate if version else None)
    older = [other for other in own_versions if version and other.version < version.version]
    baseline_id = gate.baseline if gate else run.parent or (older[-1].run if older else None)
    baseline = runs.get(lake, baseline_id) if baseline_id else None
    values = values_of(lake, run)
    known = {slice_.id: slice_ for slice_ in slices.list(lake, deleted=True)}
    evaluated = {id: known[id] for id in sorted(values) if id in known}
    return CardFacts(
        run,
        version,
        [event for event in releases.history(lake, run.model) if event.run == run.id],
        baseline,
        {version.run: version.id for version in versions.list(lake)},
        evaluated,
        _main_metric(run, values),
        values,
        values_of(lake, baseline) if baseline else {},
        _series(lake, run, values),
        gate,
        [row for row in runs.metrics(lake, run.id) if row["evaluation"] is None],
        _base(lake, run),
        _predictions(lake, run, [*evaluated.values()]) if predictions else None,
    )


def values_of(lake: Lake, run: Run) -> dict[str, dict[str, MetricValue]]:
    """The newest value of every metric on every slice that the run was evaluated on."""
    values = dict[str, dict[str, MetricValue]]()
    rows = [row for row in runs.metrics(lake, run.id) if row["evaluation"] is not None and row["slice"] is not None]
    for row in sorted(rows, key=lambda row: (row["at"], row["evaluation"])):
        value = MetricValue(row["value"], row["low"], row["high"], row["n"])
        values.setdefault(row["slice"], {})[row["metric"]] = value
    return {name: values[name] for name in sorted(values)}


def higher_is_better(metric: str) -> bool | None:
    """The direction of a metric; None for a team's own metric that is not installed."""
    if metric in (classification_metrics.Costs.name, "loss"):
        return False
    try:
        return metric_registry.get(metric).higher_is_better
    except BadInput:
        return None


def weak_slices(facts: CardFacts) -> list[str]:
    """The slices whose whole interval is worse than the interval of the best slice, worst first."""
    by_slice = {name: metrics[facts.main_metric] for name, metrics in facts.values.items()
                if facts.main_metric in metrics}  # fmt: skip
    defined = {name: value for name, value in by_slice.items() if None not in (value.value, value.low, value.high)}
    better = higher_is_better(facts.main_metric)
    if not defined or better is None:
        return []
    sign = 1.0 if better else -1.0
    worst_end: Callable[[MetricValue], float] = lambda m: sign * float((m.low if better else m.high) or 0.0)  # noqa: E731
    best_end: Callable[[MetricValue], float] = lambda m: sign * float((m.high if better else m.low) or 0.0)  # noqa: E731
    best = max(worst_end(value) for value in defined.values())
    weak = [name for name, value in defined.items() if best_end(value) < best]
    return sorted(weak, key=lambda name: (sign * float(defined[name].value or 0.0), name))


# ----------------------------------------------------------------------------------------------------------


def _main_metric(run: Run, values: SliceValues) -> str:
    """The metric of the run's recipe if it was evaluated with it, else the main metric of its task."""
    measured = {name for metrics in values.values() for name in metrics}
    wanted = [
        str(run.settings.get("metric") or ""),
        task_registry.get(run.task).metric,
        *metric_registry.OF_TASK.get(run.task, ()),
    ]
    return next((name for name in wanted if name in measured), wanted[1])


def _gate(lake: Lake, run: Run, id: str | None) -> GateRecord | None:
    """The verdict that its promotion rests on, else the newest verdict on it."""
    columns = ["id", "baseline", "outcome", "blocks", "policy", "slices", "at"]
    rows = lake.scan("gates", columns, f"candidate = {store.literal(run.id)}").to_pylist()
    if not rows:
        return None
    row = max(rows, key=lambda row: (row["id"] == id, row["at"], row["id"]))
    return GateRecord(**row | {"policy": json.loads(row["policy"]), "slices": json.loads(row["slices"])})


def _series(lake: Lake, run: Run, values: SliceValues) -> list[tuple[Run, SliceValues]]:
    earlier = [r for r in runs.list(lake, model=run.model) if (r.started_at, r.id) < (run.started_at, run.id)]
    series: list[tuple[Run, SliceValues]] = []
    for other in sorted(earlier, key=lambda r: (r.started_at, r.id), reverse=True):
        if len(series) < SHOWN_RUNS and (other_values := values_of(lake, other)):
            series.insert(0, (other, other_values))
    return [*series, (run, values)] if values else series


def _base(lake: Lake, run: Run) -> EmbedderRecord | None:
    """The embedder whose vectors or published weights the run is built on, as recorded in the lake."""
    if run.kind == "probe":
        name = run.data.get("result", {}).get("embedder") or run.settings.get("embedder")
    elif run.parent or not run.settings.get("pretrained") or run.environment.get("weights"):
        return None
    else:
        name = run.settings.get("architecture")
    return next((record for record in lake.embedders() if record.name == name), None)


def _predictions(lake: Lake, run: Run, evaluated: Sequence[Slice]) -> LabelledPredictions | None:
    if run.task != "classification":
        return None
    ground_truth = dict[str, Any]()
    for slice_ in evaluated:
        if slice_.deleted_at is None:
            ground_truth |= evaluate.ground_truth_rows(lake, slice_, run.task)
    predictions = evaluate.prediction_rows(lake, run.id, sorted(ground_truth))
    common = sorted(ground_truth.keys() & predictions.keys())
    image_ids = [image_id for image_id in common if predictions[image_id]["label"] is not None]
    return LabelledPredictions(
        [ground_truth[image_id]["label"] for image_id in image_ids],
        [predictions[image_id]["label"] for image_id in image_ids],
        [predictions[image_id]["confidence"] for image_id in image_ids],
    )
