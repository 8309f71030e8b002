"""Training learns, keeps the best epoch, holds on to what it knew, and records it all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddings.embedders import torch_import
from lake import open_lake, slices
from lake.errors import BadInput, CouldNot
from lake.open_lake import OpenLake
from tests.training.conftest import TINY, striped
from training.fit import train_model
from training.models import tensor_file, trained_model
from training.registry import runs
from training.registry.recipe import Recipe

ON_CPU: dict[str, Any] = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def _learned(tmp_path_factory: pytest.TempPathFactory, _stocked: Path) -> tuple[Path, str]:
    place = tmp_path_factory.mktemp("learned") / "lake"
    shutil.copytree(_stocked, place)
    torch_import.torch().set_num_threads(1)
    run = train_model.train(
        open_lake.open(str(place)),
        train=["first"],
        validation=["held"],
        test=["second"],
        recipe=replace(TINY, epochs=6),
        name="lines",
        **ON_CPU,
    )
    return place, run.id


@pytest.fixture
def learned(tmp_path: Path, _learned: tuple[Path, str]) -> OpenLake:
    """A copy of `stock` in which `trained` was trained once for all."""
    shutil.copytree(_learned[0], tmp_path / "learned")
    return open_lake.open(str(tmp_path / "learned"))


@pytest.fixture
def trained(learned: OpenLake, _learned: tuple[Path, str]) -> runs.Run:
    return runs.get(learned, _learned[1])


def test_a_run_learns_and_is_recorded_whole(learned: OpenLake, trained: runs.Run) -> None:
    run = runs.get(learned, trained.id)
    assert (run.status, run.kind, run.model, run.parent, run.error) == ("done", "finetune", "lines", None, None)
    result = run.data["result"]
    assert result["validation"]["balanced_accuracy"] >= 0.75
    assert result["best_epoch"] in range(1, 7)
    assert 0.05 < result["temperature"] < 20
    assert run.environment["packages"]["torch"]
    assert set(run.artifacts) == {"model", "items", "recipe"}
    rows = runs.metrics(learned, run.id)
    by_epoch = [r["value"] for r in rows if r["split"] == "validation" and r["metric"] == "balanced_accuracy"]
    assert len(by_epoch) == 6
    assert max(by_epoch) == pytest.approx(result["validation"]["balanced_accuracy"])
    assert [r["epoch"] for r in rows if r["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r["n"] for r in rows if r["split"] == "test" and r["metric"] == "accuracy"] == [16]
    folder = runs.folder(learned, run.id)
    assert not (folder / "checkpoint.safetensors").exists()
    assert Recipe.of(json.loads((folder / "recipe.json").read_text())) == run.recipe


def test_a_saved_model_gives_the_predictions_that_were_evaluated(learned: OpenLake, trained: runs.Run) -> None:
    model = trained_model.load(learned, "lines")
    held = learned.slice("held").members()
    predictions = list(model.predictions_of(learned, held))
    assert [a.image_id for a in predictions] == held
    assert all(sum(s for _, s in a.scores) == pytest.approx(1.0) for a in predictions)
    truth = {row["image_id"]: row["label"] for row in learned.slice("held").table().to_pylist()}
    right = [a.label == truth[a.image_id] for a in predictions]
    assert np.mean(right) == pytest.approx(trained.data["result"]["validation"]["accuracy"])
    from lake.images import decode

    opened = [(i.image_id, decode.pixels(decode.open_image(i.data))) for i in learned.images(held[:3])]
    by_id = {a.image_id: a for a in predictions}
    for prediction in model.predictions(opened):
        assert prediction.confidence == pytest.approx(by_id[prediction.image_id].confidence, abs=1e-5)


def test_another_file_in_a_models_place_is_refused(learned: OpenLake, trained: runs.Run) -> None:
    path = runs.folder(learned, trained.id) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BadInput, match="its SHA-256 differs"):
        trained_model.load(learned, trained.id)
    path.unlink()
    with pytest.raises(BadInput, match="is missing at"):
        trained_model.load(learned, trained.id)


def test_a_warm_start_adds_classes_and_keeps_the_old_predictions(
    learned: OpenLake, tiny: Recipe, trained: runs.Run
) -> None:
    from tests import pictures as drawn
    from tests.training.conftest import add

    add(learned, "grain", [drawn.encoded(drawn.noise(n, 40, 40)) for n in range(12)], ["grain"] * 12)
    run = train_model.begin(
        learned, train=["grain"], replay=["first"], validation=["held"], recipe=tiny, parent="lines"
    )
    assert (run.parent, run.classes) == (trained.id, ("lying", "upright", "grain"))
    began, said = tensor_file.read(runs.folder(learned, run.id) / trained_model.INITIAL)
    before = trained_model.state_of(learned, trained)
    assert said["warm"]
    assert said["drawn"] == ["head.weight", "head.bias"]
    for name, tensor in before.items():
        if name != "temperature":
            assert (began[name][: len(tensor)] if tensor.ndim else began[name]).equal(tensor), name
    done = train_model.resume(learned, run.id, **ON_CPU)
    assert done.status == "done"
    # What the model was before the first step is the first point of its curves.
    assert runs.metrics(learned, run.id)[0]["epoch"] == 0


def test_a_protected_slice_stops_the_run_and_the_old_model_stays(
    learned: OpenLake, tiny: Recipe, trained: runs.Run
) -> None:
    """Trained on lying stripes only: everything becomes lying, and the protected upright ones are lost."""
    rows = learned.slice("first").table().to_pylist()
    slices.create(learned, "lying", ids=[r["image_id"] for r in rows if r["label"] == "lying"])
    slices.create(learned, "guard", ids=learned.slice("held").members())
    recipe = replace(tiny, protect=("guard",), margin=0.1, epochs=5, rate=0.05, schedule="constant", validation=0.0)
    run = train_model.train(learned, train=["lying"], recipe=recipe, parent="lines", **ON_CPU)
    assert "guard@1 fell from" in run.data["result"]["ended"]
    assert run.data["result"]["best_epoch"] == 0
    old, new = trained_model.state_of(learned, trained), trained_model.state_of(learned, run)
    assert all(new[name].equal(tensor) for name, tensor in old.items() if name != "temperature")
    rows = [r for r in runs.metrics(learned, run.id) if r["slice"] == "guard@1"]
    guarded = [r for r in rows if r["metric"] == "balanced_accuracy"]
    assert guarded[-1]["value"] < guarded[0]["value"] - 0.1


def test_switches_against_forgetting_hold_the_weights(learned: OpenLake, tiny: Recipe, trained: runs.Run) -> None:
    def distance(**settings: Any) -> float:
        recipe = tiny.changed({"epochs": 2, "schedule": "constant", "validation": 0.0} | settings)
        run = train_model.train(learned, train=["second"], recipe=recipe, parent="lines", **ON_CPU)
        old, new = trained_model.state_of(learned, trained), trained_model.state_of(learned, run)
        names = [name for name in old if name.endswith("weight")]
        return float(sum(((new[n] - old[n]) ** 2).sum() for n in names)) ** 0.5

    free = distance(optimiser="sgd", rate=0.02)
    assert distance(optimiser="sgd", rate=0.02, l2_sp=10.0) < 0.85 * free
    assert distance(optimiser="sgd", rate=0.02, wise_ft=0.5) == pytest.approx(0.5 * free, rel=0.01)
    assert distance(optimiser="sgd", rate=0.02, wise_ft=0.0) == 0.0


def test_a_frozen_backbone_stays(stock: OpenLake, tiny: Recipe) -> None:
    recipe = replace(tiny, freeze="backbone", epochs=1)
    run = train_model.train(stock, train=["first"], recipe=recipe, **ON_CPU)
    began, _ = tensor_file.read(runs.folder(stock, run.id) / trained_model.INITIAL)
    now = trained_model.state_of(stock, run)
    changed = {name for name in began if not began[name].equal(now[name])}
    assert changed == {"head.weight", "head.bias", "temperature"}


def test_patience_ends_a_run_early(stock: OpenLake, tiny: Recipe) -> None:
    recipe = replace(tiny, rate=1e-12, patience=2, epochs=50, metric="accuracy")
    run = train_model.train(stock, train=["first"], validation=["held"], recipe=recipe, **ON_CPU)
    assert run.data["result"]["ended"] == "no gain in 2 epochs"
    assert max(r["epoch"] for r in runs.metrics(stock, run.id)) <= 8


def test_a_metric_computed_from_the_rows_chooses_the_epoch(stock: OpenLake, tiny: Recipe) -> None:
    recipe = replace(tiny, metric="auroc", epochs=1, balance="weights", precision="bfloat16")
    run = train_model.train(stock, train=["first"], validation=["held"], recipe=recipe, **ON_CPU)
    assert 0 <= run.data["result"]["validation"]["auroc"] <= 1
    with pytest.raises(BadInput, match="no metric 'aurok'"):
        train_model.train(stock, train=["first"], recipe=replace(tiny, metric="aurok"))


def test_an_infinite_loss_names_the_way_out(stock: OpenLake, tiny: Recipe) -> None:
    recipe = replace(tiny, optimiser="sgd", rate=1e3, momentum=0.99, backbone_rate=100.0, epochs=40)
    with pytest.raises(CouldNot, match="try a lower rate"):
        train_model.train(stock, train=["first"], recipe=recipe, **ON_CPU)
    assert runs.list(stock)[0].status == "failed"


def test_an_unreadable_image_is_left_out_and_recorded(stock: OpenLake, tiny: Recipe) -> None:
    from tests import pictures as drawn
    from tests.training.conftest import add, stripes

    broken = drawn.encoded(stripes(700, True))[:200]
    names = add(stock, "torn", [drawn.encoded(stripes(701, False)), broken], ["lying", "upright"])
    run = train_model.train(
        stock, train=["torn"], replay=["first"], recipe=replace(tiny, epochs=1, validation=0), **ON_CPU
    )
    assert list(run.data["result"]["unreadable"]) == [names[1]]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"recipe": Recipe(wise_ft=0.5, architecture="test_resnet", pretrained=False)}, "name the model with --from"),
        ({"recipe": Recipe(patience=3, validation=0.0)}, "needs validation images"),
        (
            {"recipe": Recipe(architecture="resnet81", validation=0.5)},
            "no architecture 'resnet81'; did you mean resnet",
        ),
        ({"parent": "nobody"}, "no model or run 'nobody'"),
        ({"name": "a/b"}, "a/b"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    stock: OpenLake, how: dict[str, Any], said: str
) -> None:
    recipe = Recipe(architecture="test_resnet", pretrained=False)
    with pytest.raises(BadInput, match=said):
        train_model.begin(stock, **(dict[str, Any](train=["first"], recipe=recipe) | how))
    assert not runs.list(stock)


def test_a_lake_grows_and_a_run_keeps_its_images(stock: OpenLake, tiny: Recipe) -> None:
    run = train_model.begin(stock, train=["first"], recipe=replace(tiny, epochs=1))
    striped(stock, "first", 4, 800)
    done = train_model.resume(stock, run.id, **ON_CPU)
    assert [one["id"] for one in done.data["slices"]] == ["first@1"]
