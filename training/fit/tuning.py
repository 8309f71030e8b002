"""Searches for a better recipe: tries settings or architectures one after another, compared on validation images.

Optuna proposes the settings and prunes trials. Each trial is a recorded run of its own. The study is stored in
`searches/NAME/study.sqlite` in the lake's folder: the same call continues where it was stopped. All trials train and
are evaluated on the same images.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from lake.errors import BadInput, CouldNot, LakeloopError
from lake.extras import require
from lake.slices.naming import check_name
from training.fit import checkpoint, early_stopping, train_model
from training.fit.distributed import Processes
from training.networks import backbones
from training.registry import runs
from training.registry.recipe import Recipe
from training.tasks import task_registry

if TYPE_CHECKING:
    from lake.storage.store import Lake

# The first trials are never pruned: the others are compared with them.
UNPRUNED = 4
KEPT = 10
_FLOAT = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class SearchRange:
    """The values of a setting: `choices`, or a range from `low` to `high`, uniform in its logarithm if `log`."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Trial:
    """`value`: the search's metric in the trial's best epoch, negated if lower is better."""

    run: str
    value: float
    settings: dict[str, Any]


@dataclass(frozen=True)
class TuningResult:
    """`best`: completed trials, the best first. `done` counts completed and pruned trials, not failed ones."""

    name: str
    metric: str
    done: int
    pruned: int
    failed: int
    best: list[Trial]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def space(words: Sequence[str], architectures: Sequence[str] = ()) -> dict[str, SearchRange]:
    """The ranges in words KEY=LOW..HIGH and KEY=A,B,... A range is logarithmic if its ends differ at least tenfold.

    Raises BadInput for an unknown key or architecture, or for values that the recipe does not accept.
    """
    ranges: dict[str, SearchRange] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise BadInput(f"--try {word!r}: write KEY=LOW..HIGH or KEY=A,B,..., e.g. --try rate=1e-4..1e-2")
        if key not in {f.name for f in fields(Recipe)}:
            names = [f.name for f in fields(Recipe)]
            nearest = difflib.get_close_matches(key, names, 3, 0.5) or names
            raise BadInput(f"--try: there is no setting {key!r}; did you mean {', '.join(nearest)}?")
        if key in ("seed", "task", "kind", "validation", "protect", "metric"):
            raise BadInput(f"--try {key}: trials with different values of it cannot be compared")
        ranges[key] = _range(key, text)
    if architectures:
        ranges["architecture"] = SearchRange(tuple(architectures))
    if not ranges:
        raise BadInput("name what to try with --try KEY=RANGE or --architectures A,B,...")
    for name in ranges.get("architecture", SearchRange()).choices:
        backbones.check(name)
    return ranges


def tune(
    lake: Lake,
    name: str,
    *,
    recipe: Recipe,
    tried: Mapping[str, SearchRange],
    trials: int,
    train: Sequence[str],
    replay: Sequence[str] = (),
    validation: Sequence[str] = (),
    test: Sequence[str] = (),
    model: str = "model",
    weights: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> TuningResult:
    """Runs trials until the search has `trials` of them, including those of earlier calls.

    `weights`: a folder with ARCHITECTURE.safetensors (or .pth) for architectures whose weights no package contains. A
    trial is pruned if it is worse after an epoch than the median of the earlier trials. A killed trial counts as
    failed. Raises BadInput if the search of that name has other slices, settings or ranges.
    """
    optuna = require("optuna", "optuna", "train")
    check_name(name, "search")
    if trials < 1:
        raise BadInput(f"--trials is {trials}; it must be at least 1")
    if lake.folder is None:
        raise CouldNot(f"a search needs a lake on a local disk; this lake is in {lake.uri}")
    metric = recipe.metric or task_registry.get(recipe.task).metric
    request = {
        "recipe": json.loads(recipe.json()),
        "tried": {key: asdict(values) for key, values in tried.items()},
        "slices": {
            "train": _pinned(lake, train),
            "replay": _pinned(lake, replay),
            "validation": _pinned(lake, validation),
            "test": _pinned(lake, test),
        },
    }
    folder = lake.folder / "searches" / name
    slices = request["slices"]

    def objective(trial: Any) -> float:
        settings = {key: _suggested(trial, key, values) for key, values in tried.items()}
        run = train_model.begin(
            lake,
            train=slices["train"],
            replay=slices["replay"],
            validation=slices["validation"],
            test=slices["test"],
            recipe=recipe.changed(settings),
            name=model,
            weights=_file(weights, str(settings.get("architecture", recipe.architecture))),
            search=name,
        )
        trial.set_user_attr("run", run.id)
        best = -math.inf

        def report(state: dict[str, Any]) -> None:
            nonlocal best
            if progress is not None:
                progress(state)
            for row in state.get("metrics", ()):
                if row["split"] == "validation" and row["metric"] == metric and row["value"] is not None:
                    best = max(best, early_stopping.directed(metric, row["value"]))
                    trial.report(best, state["epoch"])
                    if state["epoch"] < recipe.epochs and trial.should_prune():
                        raise optuna.TrialPruned(f"worse than the median after epoch {state['epoch']}")

        try:
            with Processes(device) as processes:
                done = train_model.go_on(lake, run, processes=processes, workers=workers, progress=report)
        except optuna.TrialPruned as pruned:
            runs.end(lake, runs.get(lake, run.id), "stopped", str(pruned))
            raise
        return best if done.kind == "finetune" else _probe_value(lake, done.id, metric)

    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.locked(folder):
        study = _study(optuna, folder, name, request, recipe.seed)
        _mark_killed(optuna, study)
        left = trials - len(study.get_trials(deepcopy=False))
        if left > 0:
            study.optimize(objective, n_trials=left, catch=(LakeloopError,))
        return _result(optuna, study, name, metric)


def _range(key: str, text: str) -> SearchRange:
    kind = get_type_hints(Recipe)[key]
    ends = re.fullmatch(rf"({_FLOAT})\.\.({_FLOAT})", text)
    if ends and kind in (int, float):
        low, high = (Recipe().changed({key: kind(float(end))}, "--try") for end in ends.groups())
        bottom, top = getattr(low, key), getattr(high, key)
        if bottom >= top:
            raise BadInput(f"--try {key}={text}: the first value must be below the second")
        return SearchRange((), bottom, top, bottom > 0 and top / bottom >= 10, kind is int)
    if get_origin(kind) is tuple:
        raise BadInput(f"--try {key}: a list of names cannot be a range")
    values = [getattr(Recipe().with_words([f"{key}={word}"]), key) for word in text.split(",")]
    return SearchRange(tuple(values))


def _suggested(trial: Any, key: str, values: SearchRange) -> Any:
    if values.choices:
        return trial.suggest_categorical(key, values.choices)
    if values.whole:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def _study(optuna: Any, folder: Path, name: str, request: dict[str, Any], seed: int) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.sqlite'}",
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED),
    )
    before = study.user_attrs.get("asked")
    plain = json.loads(json.dumps(request))
    if before is None:
        study.set_user_attr("asked", plain)
    elif before != plain:
        key = next(key for key in plain if plain[key] != before.get(key))
        raise BadInput(
            f"the search {name!r} was started with different values of `{key}`: give the same {key}, or another --name"
        )
    # Every call draws other trials; the same sequence of calls draws the same trials.
    done = len(study.get_trials(deepcopy=False))
    if all(values["choices"] for values in request["tried"].values()):
        space = {key: list(values["choices"]) for key, values in request["tried"].items()}
        study.sampler = optuna.samplers.GridSampler(space, seed=seed)
    else:
        study.sampler = optuna.samplers.TPESampler(seed=seed + done)
    return study


def _mark_killed(optuna: Any, study: Any) -> None:
    """Marks running trials as failed: this process holds the lock, so they were killed."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _result(optuna: Any, study: Any, name: str, metric: str) -> TuningResult:
    state = optuna.trial.TrialState
    every = study.get_trials(deepcopy=False)
    ended = [t for t in every if t.state == state.COMPLETE]
    best = sorted(ended, key=lambda t: (-t.value, t.number))
    return TuningResult(
        name,
        metric,
        len(ended) + sum(t.state == state.PRUNED for t in every),
        sum(t.state == state.PRUNED for t in every),
        sum(t.state == state.FAIL for t in every),
        [Trial(t.user_attrs["run"], float(t.value), dict(t.params)) for t in best[:KEPT]],
    )


def _pinned(lake: Lake, names: Sequence[str]) -> list[str]:
    from lake import slices

    return [slices.get(lake, name).id for name in names]


def _file(folder: Path | None, architecture: str) -> Path | None:
    if folder is None:
        return None
    paths = [folder / f"{architecture}{suffix}" for suffix in (".safetensors", ".pth", ".pt")]
    return next((path for path in paths if path.is_file()), None)


def _probe_value(lake: Lake, run: str, metric: str) -> float:
    for row in runs.metrics(lake, run):
        if row["split"] == "validation" and row["metric"] == metric and row["value"] is not None:
            return early_stopping.directed(metric, row["value"])
    raise BadInput("a search needs validation images: give --validation SLICE, or a larger validation share")
