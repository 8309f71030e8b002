"""The search for a better recipe: settings or architectures tried one after another, compared on validation images.

Optuna proposes and gives up early; every trial is a run of its own, recorded like any other. The study lies in
`searches/NAME/study.sqlite` of the lake's folder, so that the same call goes on where it was stopped. All trials train
and are judged on the very same images.
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

# Trials that are never given up, so that there is something to compare the others with.
UNPRUNED = 4
KEPT = 10
_FLOAT = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Range:
    """A setting's values: `choices`, or everything from `low` to `high`, evenly in its logarithm when `log`."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Trial:
    """`value`: the search's metric of its best epoch, so that higher is better."""

    run: str
    value: float
    settings: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """`best`: trials that came to their end, the best first. `failed` are not among `done`."""

    name: str
    metric: str
    done: int
    pruned: int
    failed: int
    best: list[Trial]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def space(words: Sequence[str], architectures: Sequence[str] = ()) -> dict[str, Range]:
    """What KEY=LOW..HIGH and KEY=A,B,... say. A range whose ends differ tenfold is searched by its logarithm.

    Raises BadInput for an unknown key or architecture, or values the recipe does not take.
    """
    found: dict[str, Range] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise BadInput(f"--try {word!r}: write KEY=LOW..HIGH or KEY=A,B,..., e.g. --try rate=1e-4..1e-2")
        if key not in {f.name for f in fields(Recipe)}:
            names = [f.name for f in fields(Recipe)]
            near = difflib.get_close_matches(key, names, 3, 0.5) or names
            raise BadInput(f"--try: there is no setting {key!r}; did you mean {', '.join(near)}?")
        if key in ("seed", "task", "kind", "validation", "protect", "metric"):
            raise BadInput(f"--try {key}: trials that differ in it cannot be compared")
        found[key] = _range(key, text)
    if architectures:
        found["architecture"] = Range(tuple(architectures))
    if not found:
        raise BadInput("what is to be tried? give --try KEY=RANGE or --architectures A,B,...")
    for name in found.get("architecture", Range()).choices:
        backbones.check(name)
    return found


def tune(
    lake: Lake,
    name: str,
    *,
    recipe: Recipe,
    tried: Mapping[str, Range],
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
) -> Found:
    """Runs trials until the search has `trials` of them, those of earlier calls among them.

    `weights`: a folder with ARCHITECTURE.safetensors (or .pth) for architectures whose weights come with no package.
    A trial is given up when after an epoch it is worse than the median of the earlier ones. A trial that was killed
    counts as failed. Raises BadInput when the search of that name was made with other slices, settings or ranges.
    """
    optuna = require("optuna", "optuna", "train")
    check_name(name)
    if trials < 1:
        raise BadInput(f"--trials is {trials}; it is at least 1")
    if lake.folder is None:
        raise CouldNot(f"searches are kept only in a lake on a local disk so far, not in {lake.uri}")
    metric = recipe.metric or task_registry.get(recipe.task).metric
    asked = {
        "recipe": json.loads(recipe.json()),
        "tried": {key: asdict(one) for key, one in tried.items()},
        "slices": {
            "train": _pinned(lake, train),
            "replay": _pinned(lake, replay),
            "validation": _pinned(lake, validation),
            "test": _pinned(lake, test),
        },
    }
    folder = lake.folder / "searches" / name
    slices = asked["slices"]

    def objective(trial: Any) -> float:
        settings = {key: _suggested(trial, key, one) for key, one in tried.items()}
        made = train_model.begin(
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
        trial.set_user_attr("run", made.id)
        best = -math.inf

        def look(said: dict[str, Any]) -> None:
            nonlocal best
            if progress is not None:
                progress(said)
            for row in said.get("metrics", ()):
                if row["split"] == "validation" and row["metric"] == metric and row["value"] is not None:
                    best = max(best, early_stopping.directed(metric, row["value"]))
                    trial.report(best, said["epoch"])
                    if said["epoch"] < recipe.epochs and trial.should_prune():
                        raise optuna.TrialPruned(f"worse than the median after epoch {said['epoch']}")

        try:
            with Processes(device) as processes:
                done = train_model.go_on(lake, made, processes=processes, workers=workers, progress=look)
        except optuna.TrialPruned as pruned:
            runs.end(lake, runs.get(lake, made.id), "stopped", str(pruned))
            raise
        return best if done.kind == "finetune" else _probes_value(lake, done.id, metric)

    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.locked(folder):
        study = _study(optuna, folder, name, asked, recipe.seed)
        _mark_killed(optuna, study)
        left = trials - len(study.get_trials(deepcopy=False))
        if left > 0:
            study.optimize(objective, n_trials=left, catch=(LakeloopError,))
        return _found(optuna, study, name, metric)


def _range(key: str, text: str) -> Range:
    kind = get_type_hints(Recipe)[key]
    ends = re.fullmatch(rf"({_FLOAT})\.\.({_FLOAT})", text)
    if ends and kind in (int, float):
        low, high = (Recipe().changed({key: kind(float(end))}, "--try") for end in ends.groups())
        bottom, top = getattr(low, key), getattr(high, key)
        if bottom >= top:
            raise BadInput(f"--try {key}={text}: the first end is not below the second")
        return Range((), bottom, top, bottom > 0 and top / bottom >= 10, kind is int)
    if get_origin(kind) is tuple:
        raise BadInput(f"--try {key}: a list of names cannot be searched")
    values = [getattr(Recipe().with_words([f"{key}={one}"]), key) for one in text.split(",")]
    return Range(tuple(values))


def _suggested(trial: Any, key: str, one: Range) -> Any:
    if one.choices:
        return trial.suggest_categorical(key, one.choices)
    if one.whole:
        return trial.suggest_int(key, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(key, one.low, one.high, log=one.log)


def _study(optuna: Any, folder: Path, name: str, asked: dict[str, Any], seed: int) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.sqlite'}",
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED),
    )
    before = study.user_attrs.get("asked")
    plain = json.loads(json.dumps(asked))
    if before is None:
        study.set_user_attr("asked", plain)
    elif before != plain:
        odd = next(key for key in plain if plain[key] != before.get(key))
        raise BadInput(f"the search {name!r} was made with other {odd}: give the same, or another --name")
    # Each call draws anew, but the same calls draw the same.
    done = len(study.get_trials(deepcopy=False))
    if all(one["choices"] for one in asked["tried"].values()):
        space = {key: list(one["choices"]) for key, one in asked["tried"].items()}
        study.sampler = optuna.samplers.GridSampler(space, seed=seed)
    else:
        study.sampler = optuna.samplers.TPESampler(seed=seed + done)
    return study


def _mark_killed(optuna: Any, study: Any) -> None:
    """What runs while nobody else works on the study was killed."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _found(optuna: Any, study: Any, name: str, metric: str) -> Found:
    state = optuna.trial.TrialState
    every = study.get_trials(deepcopy=False)
    ended = [t for t in every if t.state == state.COMPLETE]
    best = sorted(ended, key=lambda t: (-t.value, t.number))
    return Found(
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
    found = [p for p in (folder / f"{architecture}{end}" for end in (".safetensors", ".pth", ".pt")) if p.is_file()]
    return found[0] if found else None


def _probes_value(lake: Lake, run: str, metric: str) -> float:
    for row in runs.metrics(lake, run):
        if row["split"] == "validation" and row["metric"] == metric and row["value"] is not None:
            return early_stopping.directed(metric, row["value"])
    raise BadInput("a search compares on validation images: give --validation SLICE, or a larger validation share")
