"""Trains a model: from slices and a recipe to a finished run. `lakeloop train` calls it.

`begin` creates the whole run before the first step: splits, recipe and initial weights are in its folder. Starting and
resuming a run are therefore the same.
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
from training.fit.training_loop import ProgressCallback, fit
from training.metrics import metric_registry
from training.models import trained_model
from training.registry import runs
from training.registry.recipe import Recipe
from training.registry.runs import Run
from training.tasks import task_registry

if TYPE_CHECKING:
    from lake.storage.store import Lake

# Settings that define the network: a run that continues from another run keeps them.
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
    progress: ProgressCallback | None = None,
    tensorboard: Path | None = None,
) -> Run:
    """Trains a version of the model `name` on slices. Returns the finished run.

    `parent`: a run, or the name of a model, to continue from with its weights, architecture, size, geometry and
    classes. `weights`: a file of pretrained weights. Raises BadInput before anything is written if something does not
    fit, and what `training_loop.fit` raises.
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
        run = runs.get(lake, processes.broadcast(begun.id if begun else None))
        return go_on(lake, run, processes=processes, workers=workers, progress=progress, tensorboard=tensorboard)


def resume(lake: Lake, name: str, device: str = "auto", **options: Any) -> Run:
    """Continues a stopped, killed or failed run at its newest checkpoint. `options`: those of `training_loop.fit`."""
    with Processes(device) as processes:
        return go_on(lake, runs.get(lake, name), processes=processes, **options)


def go_on(lake: Lake, run: Run, *, processes: Processes, **options: Any) -> Run:
    """Trains a run that `begin` created. `options`: those of `training_loop.fit`."""
    if run.status not in ("running", "done"):
        run = runs.change(lake, run, status="running", error=None, ended_at=None)
    if run.kind == "probe":
        return train_probe.fit(lake, run)
    return fit(lake, run, processes=processes, **options)


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
    """Creates a run with all that it needs in its folder, without training it."""
    parent_run = trained_model.find(lake, parent) if parent else None
    if parent_run is not None:
        recipe = _like(recipe, parent_run)
        if weights is not None:
            raise BadInput("use --from or --weights, not both: the weights come from one of them")
    task = task_registry.get(recipe.task, recipe.label_smoothing)
    if recipe.metric and recipe.metric != "loss":
        metric_registry.get(recipe.metric)
    data = splits.gather(
        lake,
        recipe.task,
        train=train,
        replay=replay,
        validation=validation,
        test=test,
        protected=recipe.protect,
        share=recipe.validation,
        known=parent_run.classes if parent_run else (),
    )
    if (recipe.patience or recipe.metric) and not data.facts["splits"]["validation"]["images"]:
        raise BadInput("early stopping needs validation images: give --validation SLICE, or a larger validation share")
    drawn: list[str] = []
    network = None
    with checkpoint.seeded(recipe.seed):
        if recipe.kind == "finetune":
            network = task.network(
                recipe.architecture,
                data.classes,
                pretrained=recipe.pretrained and parent_run is None,
                weights=weights,
                trust_sha256=trust_sha256,
                dropout=recipe.dropout,
            )
            if parent_run is not None:
                state = trained_model.state_of(lake, parent_run)
                drawn = forgetting.carry_over(network, state, parent_run.classes, data.classes)
                if "temperature" in dict(network.named_buffers()):  # calibrated again at the end
                    network.get_buffer("temperature").fill_(1.0)
            else:
                drawn = [n for n, _ in network.named_parameters() if not recipe.pretrained or _is_head(n)]
                if recipe.wise_ft < 1.0:
                    raise BadInput("wise_ft averages with an older model; name the model with --from")
    facts = {"weights": str(weights), "trusted_sha256": trust_sha256} if weights else {}
    run = runs.create(
        lake,
        name,
        recipe,
        data=data.facts,
        classes=data.classes,
        parent=parent_run.id if parent_run else None,
        search=search,
        environment=facts,
    )
    trained_model.begin(runs.folder(lake, run.id), recipe, data.items, network, drawn, warm=parent_run is not None)
    return run


def _is_head(name: str) -> bool:
    return not name.startswith("backbone.")


def _like(recipe: Recipe, parent: Run) -> Recipe:
    """The recipe with the parent's network. Raises BadInput if the recipe names another network."""
    defaults = Recipe()
    if recipe.kind != parent.kind:
        raise BadInput(f"run {parent.id} is a {parent.kind}; to continue from it, use --set kind={parent.kind}")
    for key in NETWORK if recipe.kind == "finetune" else ("embedder",):
        value, parents = getattr(recipe, key), getattr(parent.recipe, key)
        if value not in (parents, getattr(defaults, key)):
            raise BadInput(f"{key} is {value!r}, but the run {parent.id} to continue from has {parents!r}")
        recipe = replace(recipe, **{key: parents})
    return recipe
