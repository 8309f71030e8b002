"""Segmentation and detection through the trainer: from labels in a lake to a saved model's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.training import shapes_data
from lake.open_lake import OpenLake
from lake.regions import masks
from tests import pictures
from training.fit.train_model import train
from training.models import trained_model
from training.registry import runs
from training.registry.recipe import Recipe


def drawn(count: int, seed: int) -> list[shapes_data.Drawing]:
    scenes = [np.asarray(pictures.scene(k)) for k in range(12)]
    return [*shapes_data.drawings(scenes, count, seed, side=48)]


@pytest.mark.parametrize(
    ("task", "architecture", "metric"),
    [
        pytest.param("segmentation", "unet-small", "miou", marks=pytest.mark.soak),
        ("detection", "centernet-small", "map_50"),
    ],
)
def test_from_labels_to_predictions(lk: OpenLake, task: str, architecture: str, metric: str) -> None:
    images = drawn(12, seed=1)
    shapes_data.bring_in(lk, images, "shapes")
    shapes_data.bring_in(lk, drawn(4, seed=2), "held-out")
    settings: dict[str, Any] = {
        "task": task,
        "architecture": architecture,
        "pretrained": False,
        "size": 48,
        "epochs": 2,
    }
    recipe = Recipe.of(settings | {"batch": 4, "rate": 3e-3, "backbone_rate": 1.0, "turn": True, "crop": 0.7})
    run = train(lk, train=["shapes"], validation=["held-out"], recipe=recipe, name="m", device="cpu", workers=0)
    assert run.status == "done"
    rows = [row for row in runs.metrics(lk, run.id) if row["metric"] == metric and row["split"] == "validation"]
    assert len(rows) == 2
    assert all(0.0 <= row["value"] <= 1.0 for row in rows)
    trained = trained_model.load(lk, run.id)
    predictions = [*trained.predictions([("first", images[0].image), ("second", images[1].image)])]
    assert [one.image_id for one in predictions] == ["first", "second"]
    for one in predictions:
        for mask in one.masks:
            assert masks.decode(mask["counts"], 48, 48).any()
            assert mask["label"] in shapes_data.SHAPES
        for box in one.boxes:
            assert 0 <= box["x"] < box["x"] + box["width"] <= 48
    again = [*trained_model.load(lk, run.id).predictions([("first", images[0].image), ("second", images[1].image)])]
    assert again == predictions
