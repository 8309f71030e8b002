"""From slices and a recipe to a finished run: what `lakeloop train` calls.

A run is begun whole before its first step: splits, recipe and initial weights are in its folder, so that starting it
and resuming it are one thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from training.data import splits
from training.fit import checkpoint, forgetting, train_probe
from training.fit.distributed import Processes
from training.fit.training_loop import Progress, fit
from training.metrics import metric_registry
from training.models import trained_model
from training.registry import runs
from training.registry.recipe import Recipe
from training.registry.runs import Run
from training.tasks import task_registry

if TYPE_CHECKING:
    from lake.storage.store import Lake

# What makes a network what it is: a run that goes on from another keeps it.
NETWORK = ("task", "architecture", "size", "geometry")


def train(
    lake: Lake,
    *,
    train: Sequence[str],
    replay: Sequence[str] = (),
    validation: Sequence[str] = (),
    test: Sequence[str] = (),
    recipe: Recipe | None = None,
    name: str = "model",
    parent: str | None = None,
    weights: Path | None = None,
    trust_sha256: str | None = None,
    search: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress | None = None,
    tensorboard: Path | None = None,
) -> Run:
    """Trains a version of the model `name` on slices; the finished run.

    `parent`: a run, or a model by name, whose weights it goes on from; its architecture, size, geometry and classes
    come with it. `weights`: a file of pretrained weights. Raises BadInput before anything is written when something
    does not fit, and whatever `fit` raises.
    """
    recipe = recipe or Recipe()
    with Processes(device) as processes:
        begun = None
        if processes.first:
            begun = begin(
                lake,
                train=train,
                replay=replay,
                validation=validation,
                test=test,
                recipe=recipe,
                name=name,
                parent=parent,
                weights=weights,
                trust_sha256=trust_sha256,
                search=search,
            )
        made = runs.get(lake, processes.told(begun.id if begun else None))
        return go_on(
            lake, made, device=device, workers=workers, progress=progress, tensorboard=tensorboard, processes=processes
        )


def resume(lake: Lake, name: str, device: str = "auto", **how: Any) -> Run:
    """Goes on with a run that was stopped, killed or failed, from its newest checkpoint. Takes what `fit` takes."""
    with Processes(device) as processes:
        return go_on(lake, runs.get(lake, name), processes=processes, **how)


def go_on(lake: Lake, run: Run, *, processes: Processes, **how: Any) -> Run:
    """Trains a run that was begun."""
    if run.status not in ("running", "done"):
        run = runs.change(lake, run, status="running", error=None, ended_at=None)
    if run.kind == "probe":
        return train_probe.fit(lake, run)
    return fit(lake, run, processes=processes, **{k: v for k, v in how.items() if k != "device"})


def begin(
    lake: Lake,
    *,
    train: Sequence[str],
    replay: Sequence[str] = (),
    validation: Sequence[str] = (),
    test: Sequence[str] = (),
    recipe: Recipe,
    name: str = "model",
    parent: str | None = None,
    weights: Path | None = None,
    trust_sha256: str | None = None,
    search: str | None = None,
) -> Run:
    """A run whose folder has all it needs, not yet trained."""
    before = trained_model.find(lake, parent) if parent else None
    if before is not None:
        recipe = _like(recipe, before)
        if weights is not None:
            raise BadInput("--from and --weights contradict each other: weights come from one of them")
    asked = task_registry.get(recipe.task, recipe.label_smoothing)
    if recipe.metric and recipe.metric != "loss":
        metric_registry.get(recipe.metric)
    gathered = splits.gather(
        lake,
        recipe.task,
        train=train,
        replay=replay,
        validation=validation,
        test=test,
        protected=recipe.protect,
        share=recipe.validation,
        known=before.classes if before else (),
    )
    if (recipe.patience or recipe.metric) and not gathered.facts["splits"]["validation"]["images"]:
        raise BadInput("stopping early needs validation images: give --validation SLICE, or a larger validation share")
    drawn: list[str] = []
    network = None
    with checkpoint.seeded(recipe.seed):
        if recipe.kind == "finetune":
            network = asked.network(
                recipe.architecture,
                gathered.classes,
                pretrained=recipe.pretrained and before is None,
                weights=weights,
                trust_sha256=trust_sha256,
                dropout=recipe.dropout,
            )
            if before is not None:
                state = trained_model.state_of(lake, before)
                drawn = forgetting.carry_over(network, state, before.classes, gathered.classes)
                if "temperature" in dict(network.named_buffers()):  # found anew at the end
                    network.get_buffer("temperature").fill_(1.0)
            else:
                drawn = [n for n, _ in network.named_parameters() if not recipe.pretrained or _is_head(n)]
                if recipe.wise_ft < 1.0:
                    raise BadInput("wise_ft averages with an older model: name it with --from")
    facts = {"weights": str(weights), "trusted_sha256": trust_sha256} if weights else {}
    made = runs.create(
        lake,
        name,
        recipe,
        data=gathered.facts,
        classes=gathered.classes,
        parent=before.id if before else None,
        search=search,
        environment=facts,
    )
    trained_model.begin(runs.folder(lake, made.id), recipe, gathered.items, network, drawn, warm=before is not None)
    return made


def _is_head(name: str) -> bool:
    return not name.startswith("backbone.")


def _like(recipe: Recipe, before: Run) -> Recipe:
    """The recipe with the network of the run it goes on from. Raises BadInput when it asks for another one."""
    usual, old = Recipe(), before.recipe
    if recipe.kind != before.kind:
        raise BadInput(f"run {before.id} is a {before.kind}: go on from it with --set kind={before.kind}")
    for key in NETWORK if recipe.kind == "finetune" else ("embedder",):
        asked, has = getattr(recipe, key), getattr(old, key)
        if asked not in (has, getattr(usual, key)):
            raise BadInput(f"{key} is {asked!r}, but run {before.id} to go on from has {has!r}")
        recipe = replace(recipe, **{key: has})
    return recipe
