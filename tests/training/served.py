"""Runs that were never trained: a tiny network with drawn weights, done and on record, for tests of what follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from embeddings.embedders import torch_import
from lake import open_lake
from lake.open_lake import OpenLake
from tests.training.conftest import striped
from training.data.augmentation import Preparation
from training.fit import checkpoint
from training.models import trained_model
from training.registry import promotion, runs
from training.registry.recipe import Recipe
from training.registry.runs import Run
from training.tasks import task_registry

SIDE = 32


def two_versions(place: Path, images: int) -> tuple[OpenLake, Run, Run]:
    """A lake with slice `first`; of the model `lines`, version 1 is promoted and 2 says something else."""
    lake = open_lake.create(str(place))
    striped(lake, "first", images)
    first, second = untrained(lake, seed=0), untrained(lake, seed=3)
    promotion.promote(lake, first.id)
    promotion.register(lake, second.id)
    return lake, first, second


def untrained(
    lake: OpenLake,
    name: str = "lines",
    *,
    seed: int = 0,
    classes: Sequence[str] = ("lying", "upright"),
    architecture: str = "test_resnet",
    kind: Literal["classification", "segmentation", "detection"] = "classification",
) -> Run:
    """A finished run of the model `name`."""
    torch_import.torch().set_num_threads(1)
    recipe = Recipe(task=kind, architecture=architecture, pretrained=False, size=SIDE, seed=seed)
    asked = task_registry.get(kind)
    with checkpoint.seeded(seed):
        network = asked.network(architecture, classes, pretrained=False)
    made = runs.create(lake, name, recipe, data={}, classes=classes)
    how = Preparation(SIDE, asked.geometry, {one: place for place, one in enumerate(classes)})
    path = trained_model.save(runs.folder(lake, made.id), network, recipe, classes, how)
    return runs.end(lake, made, "done", artifacts={"model": runs.artifact(lake, path)})
