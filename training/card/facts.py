"""What a model card says, gathered: the one place its numbers come from.

Everything is read from the tables runs, metrics, gates, releases, slices, embedders, and, for the plots, from stored
answers beside labels. Nothing is measured here and no model is asked: what was not recorded is None, or not there.
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

# Versions that the forgetting table shows beside this one, at most.
SHOWN_RUNS = 6


@dataclass(frozen=True)
class Measured:
    """A row of `metrics`: a value on `n` images with the ends of its 95 % interval, None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    n: int | None


# slice NAME@VERSION -> metric -> what the newest evaluation found
Figures = Mapping[str, Mapping[str, Measured]]


@dataclass(frozen=True)
class Gate:
    """A row of `gates`. `slices`: as `gate.SliceVerdict` has them, with their sentence."""

    id: str
    baseline: str
    outcome: str
    blocks: bool
    at: Any
    policy: dict[str, Any]
    slices: list[dict[str, Any]]


@dataclass(frozen=True)
class Answered:
    """What is true of images, and what the run said of them: labels and confidences (0 to 1, None when unknown)."""

    true: list[str]
    said: list[str]
    confidence: list[float | None]


@dataclass(frozen=True)
class Facts:
    """Everything on a card. `version`: None for a run that is no version. `baseline`: what it was judged against, else
    the run it began from, else the version before it. `metric`: the one that weak slices are told by. `line`: the
    model's evaluated runs up to this one, the oldest first, with their figures. `training`: rows of `metrics` that are
    of no evaluation. `answered`: on the images of all slices measured; None when the task has no one class an image.
    """

    run: Run
    version: Version | None
    history: list[ReleaseEvent]
    baseline: Run | None
    names: Mapping[str, str]  # run id -> NAME@V where it is a version
    slices: Mapping[str, Slice]
    metric: str
    figures: Figures
    before: Figures
    line: list[tuple[Run, Figures]]
    gate: Gate | None
    training: list[dict[str, Any]]
    base: EmbedderRecord | None
    answered: Answered | None

    @property
    def title(self) -> str:
        """NAME@V, else the model's name and the run."""
        return self.version.id if self.version else f"{self.run.model}, run {self.run.id}"

    @property
    def name(self) -> str:
        """What it is loaded by: NAME@V, else the run."""
        return self.version.id if self.version else self.run.id

    def called(self, run: str) -> str:
        """NAME@V of a run that is a version, else its id."""
        return self.names.get(run, run)


def facts(lake: Lake, name: str, *, answers: bool = True) -> Facts:
    """The facts of NAME@V, of a run, or of a model's promoted, else newest, run. `answers`: read `answered`, too.

    Raises BadInput when there is none, and for a run that is not done.
    """
    run = trained_model.find(lake, name)
    if run.status != "done":
        raise BadInput(f"run {run.id} is {run.status}: there is a card of a run that is done; see: lakeloop runs list")
    registered = versions.list(lake, run.model)
    version = next((one for one in registered if one.run == run.id), None)
    gate = _gate(lake, run, version.gate if version else None)
    everyone = {one.id: one for one in runs.list(lake, model=run.model)}
    older = [one for one in registered if version and one.version < version.version]
    chosen = gate.baseline if gate else run.parent or (older[-1].run if older else None)
    baseline = runs.get(lake, chosen) if chosen else None
    figures = figures_of(lake, run)
    there = {one.id: one for one in slices.list(lake, deleted=True)}
    return Facts(
        run,
        version,
        [one for one in releases.history(lake, run.model) if one.run == run.id],
        baseline,
        {one.run: one.id for one in versions.list(lake)},
        {one: there[one] for one in sorted(figures) if one in there},
        _main_metric(run, figures),
        figures,
        figures_of(lake, baseline) if baseline else {},
        _line(lake, run, figures, everyone),
        gate,
        [row for row in runs.metrics(lake, run.id) if row["evaluation"] is None],
        _base(lake, run),
        _answered(lake, run, [there[one] for one in sorted(figures) if one in there]) if answers else None,
    )


def figures_of(lake: Lake, run: Run) -> dict[str, dict[str, Measured]]:
    """The newest value of every metric on every slice that the run was evaluated on."""
    found = dict[str, dict[str, Measured]]()
    rows = [row for row in runs.metrics(lake, run.id) if row["evaluation"] is not None and row["slice"] is not None]
    for row in sorted(rows, key=lambda r: (r["at"], r["evaluation"])):
        found.setdefault(row["slice"], {})[row["metric"]] = Measured(row["value"], row["low"], row["high"], row["n"])
    return {name: found[name] for name in sorted(found)}


def higher_is_better(metric: str) -> bool | None:
    """Which way a metric is better; None for a team's own that is not installed here."""
    if metric in (classification_metrics.Costs.name, "loss"):
        return False
    try:
        return metric_registry.get(metric).higher_is_better
    except BadInput:
        return None


def weak(found: Facts) -> list[str]:
    """The slices whose whole interval lies on the bad side of the best slice's interval, the worst first."""
    known = {name: some[found.metric] for name, some in found.figures.items() if found.metric in some}
    said = {name: one for name, one in known.items() if None not in (one.value, one.low, one.high)}
    better = higher_is_better(found.metric)
    if not said or better is None:
        return []
    sign = 1.0 if better else -1.0
    near: Callable[[Measured], float] = lambda m: sign * float((m.low if better else m.high) or 0.0)  # noqa: E731
    far: Callable[[Measured], float] = lambda m: sign * float((m.high if better else m.low) or 0.0)  # noqa: E731
    best = max(near(one) for one in said.values())
    below = [name for name, one in said.items() if far(one) < best]
    return sorted(below, key=lambda name: (sign * float(said[name].value or 0.0), name))


# ----------------------------------------------------------------------------------------------------------


def _main_metric(run: Run, figures: Figures) -> str:
    """What the run was chosen by, when it was evaluated with it; else what its task is judged by."""
    measured = {name for some in figures.values() for name in some}
    wanted = [
        str(run.settings.get("metric") or ""),
        task_registry.get(run.task).metric,
        *metric_registry.OF_TASK.get(run.task, ()),
    ]
    return next((name for name in wanted if name in measured), wanted[1])


def _gate(lake: Lake, run: Run, id: str | None) -> Gate | None:
    """The verdict that its promotion rests on, else the newest on it."""
    columns = ["id", "baseline", "outcome", "blocks", "policy", "slices", "at"]
    rows = lake.scan("gates", columns, f"candidate = {store.literal(run.id)}").to_pylist()
    rows = sorted(rows, key=lambda row: (row["id"] == id, row["at"], row["id"]))
    if not rows:
        return None
    row = rows[-1]
    return Gate(**row | {"policy": json.loads(row["policy"]), "slices": json.loads(row["slices"])})


def _line(lake: Lake, run: Run, figures: Figures, everyone: Mapping[str, Run]) -> list[tuple[Run, Figures]]:
    before = [one for one in everyone.values() if (one.started_at, one.id) < (run.started_at, run.id)]
    line: list[tuple[Run, Figures]] = []
    for one in sorted(before, key=lambda r: (r.started_at, r.id), reverse=True):
        if len(line) < SHOWN_RUNS and (found := figures_of(lake, one)):
            line.insert(0, (one, found))
    return [*line, (run, figures)] if figures else line


def _base(lake: Lake, run: Run) -> EmbedderRecord | None:
    """The embedder whose vectors or whose published weights it is built on, as the lake has recorded it."""
    if run.kind == "probe":
        name = run.data.get("result", {}).get("embedder") or run.settings.get("embedder")
    elif run.parent or not run.settings.get("pretrained") or run.environment.get("weights"):
        return None
    else:
        name = run.settings.get("architecture")
    return next((one for one in lake.embedders() if one.name == name), None)


def _answered(lake: Lake, run: Run, measured: Sequence[Slice]) -> Answered | None:
    if run.task != "classification":
        return None
    truths = dict[str, Any]()
    for one in measured:
        if one.deleted_at is None:
            truths |= evaluate.ground_truth_rows(lake, one, run.task)
    answers = evaluate.prediction_rows(lake, run.id, sorted(truths))
    names = sorted(name for name in truths.keys() & answers.keys() if answers[name]["label"] is not None)
    return Answered(
        [truths[name]["label"] for name in names],
        [answers[name]["label"] for name in names],
        [answers[name]["confidence"] for name in names],
    )
