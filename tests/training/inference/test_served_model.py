"""Registered models answer: by name, in batches, in the shadow of another, and as an embedder."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddings.backfill.backfill import backfill
from embeddings.embedders import embedder as embedders
from embeddings.embedders.preprocess import prepare
from lake import open_lake
from lake.errors import BadInput, WeightsMismatch
from lake.ingest import ingest
from lake.open_lake import OpenLake
from search_app.cli import main
from tests import pictures as drawn
from tests.embeddings.colour import MeanColour
from tests.embeddings.conftest import colours, installed
from tests.training.conftest import striped, stripes
from tests.training.served import two_versions, untrained
from training.evaluation import evaluate
from training.fit import train_model
from training.inference import batch, served_model, shadow
from training.models import retrained_embedder, trained_model
from training.registry import promotion
from training.registry.recipe import Recipe
from training.registry.runs import Run
from training.tasks.task import Prediction

__all__ = ["colours", "installed"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenLake, Run, Run]:
    """Slice `first` of 12 images; of the model `lines`, version 1 is promoted and 2 says something else. For looking
    only.
    """
    return two_versions(tmp_path_factory.mktemp("served") / "lake", 12)


@pytest.fixture
def served(two: tuple[OpenLake, Run, Run], tmp_path: Path) -> tuple[OpenLake, Run, Run]:
    """A copy of it to write to."""
    lake, first, second = two
    shutil.copytree(lake.uri, tmp_path / "lake")
    return open_lake.open(str(tmp_path / "lake")), first, second


def run(capsys: pytest.CaptureFixture[str], lake: OpenLake, *words: str, code: int = 0) -> Any:
    own = ["--workers", "1"] if words[0] in ("predict", "shadow") else []
    assert main.main([*words, *own, "--json", "--lake", lake.uri]) == code, capsys.readouterr().err
    output = capsys.readouterr()
    return json.loads(output.out) if code == 0 else output.err


def rows(lake: OpenLake, text: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = lake.sql(text).to_pylist()
    return result


def test_a_name_stands_for_what_is_promoted(served: tuple[OpenLake, Run, Run]) -> None:
    lake, first, second = served
    assert served_model.served_version(lake, "lines") == served_model.ServedVersion(
        "lines", 1, first.id, "classification"
    )
    assert (
        served_model.served_version(lake, "lines@2").run
        == served_model.served_version(lake, second.id).run
        == second.id
    )
    promotion.promote(lake, second.id, force=True, reason="a test")
    assert served_model.served_version(lake, "lines").version == 2
    promotion.rollback(lake, "lines")
    assert served_model.served_version(lake, "lines").version == 1
    third = promotion.register(lake, untrained(lake, "cells").id)
    promotion.retire(lake, "lines@2")
    for name, message in (
        ("line", "did you mean lines"),
        ("lines@3", "did you mean lines@"),
        ("lines@2", "retired"),
        ("cells", f"lakeloop models promote {third.id}"),
    ):
        with pytest.raises(BadInput, match=message):
            served_model.served_version(lake, name)


def test_predictions_are_logged_once_by_version_and_run(
    served: tuple[OpenLake, Run, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, first, _ = served
    done = run(capsys, lake, "predict", "lines", "--slice", "first", "--log")
    assert (done["predicted"], done["known"], sum(done["by_label"].values())) == (12, 0, 12)
    there = rows(lake, "SELECT * FROM samples WHERE model IS NOT NULL ORDER BY image_id")
    assert {(r["model"], r["model_version"], r["task"]) for r in there} == {("lines", "1", "classification")}
    assert {r["metadata"] for r in there} == {json.dumps({"run": first.id})}
    loaded = trained_model.load(lake, first.id)
    direct = {
        prediction.image_id: prediction for prediction in loaded.predictions_of(lake, [r["image_id"] for r in there])
    }
    for r in there:
        same = direct[r["image_id"]]
        assert (r["label"], r["confidence"]) == (same.label, pytest.approx(same.confidence, abs=1e-6))
    before = lake.version("samples")
    again = run(capsys, lake, "predict", "lines", "--slice", "first", "--log")
    assert (again["predicted"], again["known"], lake.version("samples")) == (0, 12, before)

    # A folder: two of its files are new, one is in the lake and answered, one is none.
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, data in (
        ("known.png", drawn.encoded(stripes(0, True))),
        ("new.png", drawn.encoded(stripes(900, True))),
        ("twin.png", drawn.encoded(stripes(900, True))),
        ("other.png", drawn.encoded(stripes(901, False))),
        ("broken.png", drawn.encoded(stripes(902, False))[:300]),
    ):
        (folder / name).write_bytes(data)
    done = run(capsys, lake, "predict", "lines", "--from", str(folder), "--log")
    assert (done["predicted"], done["known"]) == (2, 1)
    (bad,) = done["rejected"]
    assert bad["source"].endswith("broken.png")
    assert rows(lake, "SELECT count(*) AS n FROM images")[0]["n"] == 14
    assert run(capsys, lake, "predict", "lines", "--from", str(folder), "--log")["predicted"] == 0

    # Another version answers anew; a file of its answers is a log that makes the same rows.
    where = "model_version = '1' AND source LIKE '%photos%'"
    for name in ("more.jsonl", "more.parquet"):
        done = run(capsys, lake, "predict", "lines@2", "--where", where, "--out", str(tmp_path / name))
        assert done["predicted"] == 2
    assert not [*tmp_path.glob(".more*")]
    assert ingest.ingest(lake, tmp_path / "more.jsonl").predictions_new == 2
    assert ingest.ingest(lake, tmp_path / "more.parquet").predictions_known == 2
    done = run(capsys, lake, "predict", "lines@2", "--where", where, "--log")
    assert (done["predicted"], done["known"]) == (0, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "lines", "--log"], "no images: give one of"),
        (["predict", "lines", "--slice", "first"], "no output: give either"),
        (["predict", "lines", "--slice", "frist", "--log"], "did you mean first"),
        (["predict", "lanes", "--slice", "first", "--log"], "did you mean lines"),
        (["predict", "lines", "--slice", "first", "--out", "a.csv"], "must end in .jsonl or .parquet"),
        (["predict", "lines", "--from", "nowhere", "--log"], "does not exist"),
        (["shadow", "lines"], "lakeloop models shadow lines@2"),
        (["shadow", "lanes"], "did you mean lines"),
        (["shadow", "lines", "--watch", "--limit", "3"], "single pass"),
        (["embed", "--retrained", "lines"], "not the network of an embedder"),
    ],
)
def test_errors_name_the_way_out(
    two: tuple[OpenLake, Run, Run], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in run(capsys, two[0], *words, code=2)


def test_a_stopped_run_leaves_no_file_and_goes_on_in_the_lake(
    served: tuple[OpenLake, Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, _, _ = served
    monkeypatch.setattr(batch, "COMMIT_IMAGES", 5)
    version = served_model.served_version(lake, "lines")
    predictor = served_model.Predictor(lake, version.run)
    images = batch.stored(lake, slice="first")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        batch.run(lake, images, version, predictor, out=out, workers=1, progress=stop)
    assert [*tmp_path.glob("*answers*")] == []
    with pytest.raises(KeyboardInterrupt):
        batch.run(lake, images, version, predictor, log=True, workers=1, progress=stop)
    done = batch.run(lake, images, version, predictor, log=True, workers=1)
    assert (done.known, done.predicted) == (5, 7)


def test_a_shadow_predicts_beside_production_and_nowhere_else(
    served: tuple[OpenLake, Run, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    lake, _, second = served
    run(capsys, lake, "predict", "lines", "--slice", "first", "--log")
    before = lake.version("samples")
    promotion.shadow(lake, "lines@2")
    (part,) = run(capsys, lake, "shadow", "lines", "--limit", "5")
    assert (part["run"], part["predicted"], part["waiting"], part["compared"]) == (second.id, 5, 7, 5)
    (rest,) = run(capsys, lake, "shadow", "lines")
    assert (rest["predicted"], rest["waiting"], rest["compared"]) == (7, 0, 12)
    assert run(capsys, lake, "shadow", "lines")[0]["predicted"] == 0
    assert lake.version("samples") == before
    shadows = rows(lake, "SELECT s.*, p.label AS said FROM scores s JOIN samples p USING (prediction_id)")
    assert {r["id"] for r in shadows} == {f"{second.id}/{r['prediction_id']}" for r in shadows}
    truth = {prediction.image_id: prediction.label for prediction in trained_model.load(lake, second.id).predictions_of(
        lake, [r["image_id"] for r in shadows])}  # fmt: skip
    assert all(r["label"] == truth[r["image_id"]] for r in shadows)
    unlike = {r["prediction_id"] for r in shadows if r["label"] != r["said"]}
    assert 0 < len(unlike) == rest["differ"]
    seen = rows(lake, "SELECT * FROM shadow_disagreements")
    assert {r["prediction_id"] for r in seen} == unlike
    assert {(r["model"], r["model_version"], r["shadow_run"]) for r in seen} == {("lines", "1", second.id)}

    # An evaluation of the same run asks the model anew: shadow answers are answers to queries, not to images.
    evaluation = evaluate.evaluate(lake, second.id, ["first"])
    assert evaluation.predicted == 12
    assert rows(lake, f"SELECT count(*) AS n FROM scores WHERE run = '{second.id}'")[0]["n"] == 24
    assert len(rows(lake, "SELECT * FROM shadow_disagreements")) == len(unlike)


def test_a_shadow_that_watches_tries_an_unreadable_image_once(
    served: tuple[OpenLake, Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, _, second = served
    monkeypatch.setattr(shadow, "POLL_SECONDS", 0.01)
    version = served_model.served_version(lake, "lines")
    predictor = served_model.Predictor(lake, version.run)
    batch.run(lake, batch.stored(lake, slice="first")[:2], version, predictor, log=True, workers=1)
    lost = dataclasses.replace(version).event(Prediction("a" * 64, "lying", 0.5)) | {"image_id": "a" * 64}
    lake.insert("samples", _answered(lake, lost))
    promotion.shadow(lake, second.id)
    tries: list[int] = []
    ask = batch.predict_images

    def counted(lake: OpenLake, predictor: served_model.Predictor, names: list[str], workers: int | None) -> Any:
        tries.append(len(names))
        return ask(lake, predictor, names, workers)

    monkeypatch.setattr(batch, "predict_images", counted)
    stop, reports = threading.Event(), list[shadow.ShadowReport]()
    looks = iter(range(4))
    waits = stop.wait
    monkeypatch.setattr(stop, "wait", lambda seconds: stop.set() if next(looks, None) is None else waits(0))
    shadow.watch(lake, "lines", stop, reports.append, workers=1)
    assert tries == [3]
    (report,) = reports
    assert (report.predicted, report.not_predicted) == (2, {"a" * 64: "the lake does not have its bytes"})


def _answered(lake: OpenLake, event: dict[str, Any]) -> Any:
    import pyarrow as pa

    from lake.storage import schema, store

    row = event | {
        "prediction_id": "00000000-0000-4000-8000-00000000000a",
        "ingested_at": store.now(),
        "metadata": None,
    }
    return pa.Table.from_pylist([row], schema=schema.SAMPLES.arrow())


def test_a_probe_answers_from_vectors_and_embeds_what_has_none(colours: OpenLake, tmp_path: Path) -> None:
    names = striped(colours, "first", 24) + striped(colours, "second", 6, 300)
    embedder = MeanColour()
    backfill(colours, colours.embedders()[0], embedder, workers=1)
    trained = train_model.train(colours, train=["first"], recipe=Recipe(kind="probe", validation=0.0), name="tints")
    promotion.promote(colours, trained.id)
    (tmp_path / "new.png").write_bytes(drawn.encoded(stripes(700, True)))
    version = served_model.served_version(colours, "tints")
    predictor = served_model.Predictor(colours, version.run)
    images = batch.stored(colours, slice="second")
    stored = batch.run(colours, images, version, predictor, log=True, workers=1)
    fresh = batch.run(colours, batch.files(tmp_path / "new.png"), version, predictor, log=True, workers=1)
    assert (stored.predicted, fresh.predicted) == (6, 1)
    # The same image from its vector and from its bytes.
    data = colours.image(names[0])
    assert data is not None
    (by_vector,) = batch.predict_images(colours, predictor, [names[0]])
    (by_bytes,) = predictor.predictions([names[0]], [prepare(data.data, embedder.spec.preprocessing)])
    assert isinstance(by_vector, Prediction)
    assert isinstance(by_bytes, Prediction)
    assert by_vector.label == by_bytes.label
    assert by_vector.confidence == pytest.approx(by_bytes.confidence, abs=1e-5)
    with pytest.raises(BadInput, match="is a probe"):
        retrained_embedder.register(colours, trained.id)


@pytest.mark.soak
@pytest.mark.parametrize("architecture", ["efficientnet-lite0", "resnet18"])
def test_a_retrained_networks_features_are_an_embedder(lk: OpenLake, architecture: str) -> None:
    from embeddings.embedders.torch_import import torch

    names = striped(lk, "first", 3)
    trained = untrained(lk, "lines", architecture=architecture)
    promotion.promote(lk, trained.id)
    record = retrained_embedder.register(lk, "lines")
    assert (record.name, record.weights) == (f"{architecture}@lines-1", f"run {trained.id} of model lines")
    assert retrained_embedder.register(lk, trained.id) == record
    embedder = embedders.for_lake(lk, record, engine="torch")
    assert embedder.weights_sha256 == record.weights_sha256
    backfill(lk, record, embedder, workers=1)
    stored = {r["image_id"]: r[record.column] for r in lk.scan("samples", ["image_id", record.column]).to_pylist()}
    network = trained_model.load(lk, trained.id)
    assert isinstance(network, trained_model.NetworkModel)
    how = embedder.spec.preprocessing
    assert how is not None
    assert (how.crop, how.mode) == (32, "squash")
    for name in names:
        image = lk.image(name)
        assert image is not None
        pixels = torch().from_numpy(prepare(image.data, how).copy()).permute(2, 0, 1)[None].float() / 255
        with torch().no_grad():
            normal = (pixels - network.network.get_buffer("mean")) / network.network.get_buffer("std")
            features = network.network.get_submodule("backbone")(normal)[0].numpy()
        assert float(features @ np.array(stored[name])) / np.linalg.norm(features) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.soak
def test_another_networks_features_do_not_come_under_the_name(lk: OpenLake) -> None:
    first, other = (untrained(lk, "lines", seed=seed, architecture="resnet18") for seed in (0, 1))
    record = retrained_embedder.register(lk, first.id, "resnet18@lines")
    with pytest.raises(WeightsMismatch, match="another name"):
        retrained_embedder.register(lk, other.id, record.name)
    with pytest.raises(BadInput, match="call its embedder resnet18@NAME"):
        retrained_embedder.register(lk, other.id, "resnet34@lines")
