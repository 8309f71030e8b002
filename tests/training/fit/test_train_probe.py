"""A probe is a run and a model like any other: from stored vectors, in a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from embeddings.backfill.vector_columns import store_vectors
from lake import slices
from lake.errors import BadInput
from lake.open_lake import OpenLake
from tests.conftest import MakeLake
from tests.training.conftest import striped
from training.fit import train_model
from training.models import trained_model
from training.registry import runs
from training.registry.recipe import Recipe

PROBE = Recipe(kind="probe")


@pytest.fixture
def vectors(make_lake: MakeLake, installed: None) -> OpenLake:
    """Stripes whose vectors say which way they lie; `held`'s last image has none."""
    lake = make_lake("vectors", embedders=["random"])
    names = striped(lake, "first", 30) + striped(lake, "second", 10, 100) + striped(lake, "held", 20, 200)
    record = lake.register_embedder("random")
    lake.bind_embedder(replace(record, dim=8, weights_sha256="d" * 64))
    truth = {r["image_id"]: r["label"] for r in lake.sql("SELECT image_id, label FROM labels").to_pylist()}
    rng = np.random.default_rng(0)
    vectors_of = {}
    for name in names[:-1]:
        vector = rng.normal(0, 0.8, 8) + np.eye(8)[int(truth[name] == "upright")] * 2
        vectors_of[name] = (vector / np.linalg.norm(vector)).astype(np.float32)
    store_vectors(lake, record.column, vectors_of)
    return lake


@pytest.fixture
def installed() -> None:
    """Nothing embeds here: the lake has its vectors already."""


@pytest.mark.parametrize("hidden", [0, 4])
def test_a_probe_is_a_model(vectors: OpenLake, hidden: int) -> None:
    recipe = replace(PROBE, hidden=hidden, metric="auroc")
    run = train_model.train(
        vectors, train=["first"], replay=["second"], validation=["held"], recipe=recipe, name="quick"
    )
    assert (run.kind, run.status, run.classes) == ("probe", "done", ("lying", "upright"))
    assert run.data["result"]["validation"]["auroc"] > 0.7
    assert run.data["result"]["without_vector"] == 1
    # Vectors this alike make some images near-duplicates of held ones.
    count = run.data["splits"]["train"]["images"]
    assert 15 <= count <= 30
    assert {(r["split"], r["n"]) for r in runs.metrics(vectors, run.id)} == {("train", count), ("validation", 19)}
    model = trained_model.load(vectors, "quick")
    image_ids = vectors.slice("held").members()
    predictions = list(model.predictions_of(vectors, image_ids))
    assert len(predictions) == 19
    assert [a.image_id for a in predictions] == [i for i in image_ids if i in {a.image_id for a in predictions}]
    truth = {row["image_id"]: row["label"] for row in vectors.slice("held").table().to_pylist()}
    right = np.mean([a.label == truth[a.image_id] for a in predictions])
    assert right == pytest.approx(run.data["result"]["validation"]["accuracy"])
    with pytest.raises(BadInput, match="is done"):
        train_model.resume(vectors, run.id)


def test_replay_weighs_what_the_recipe_says(vectors: OpenLake) -> None:
    """Replayed images all called upright: the more they weigh, the more is called upright."""
    rows = vectors.slice("second").table().to_pylist()
    slices.create(vectors, "old", ids=[r["image_id"] for r in rows if r["label"] == "upright"])

    def bias(replay: float) -> float:
        recipe = replace(PROBE, replay=replay, validation=0.0)
        model = trained_model.load(
            vectors, train_model.train(vectors, train=["first"], replay=["old"], recipe=recipe).id
        )
        assert isinstance(model, trained_model.ProbeModel)
        return float(model.probe.bias[1] - model.probe.bias[0])

    assert bias(0.9) > bias(0.5) > bias(0.1)


def test_a_probe_continues_only_from_a_probe(vectors: OpenLake) -> None:
    first = train_model.train(vectors, train=["first"], recipe=replace(PROBE, validation=0.0), name="quick")
    second = train_model.train(
        vectors, train=["second"], replay=["first"], recipe=replace(PROBE, validation=0.0), parent="quick"
    )
    assert second.parent == first.id
    with pytest.raises(BadInput, match="set kind=probe"):
        train_model.train(vectors, train=["first"], parent="quick")


def test_no_vectors_no_probe(stock: OpenLake) -> None:
    with pytest.raises(BadInput, match="embedder"):
        train_model.train(stock, train=["first"], recipe=PROBE)
    assert [r.status for r in runs.list(stock)] == ["failed"]
