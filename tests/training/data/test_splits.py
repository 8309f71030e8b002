"""Splits from slices: pinned, disjoint up to near-duplicates, the same in every run, and all of it on record."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from embeddings.backfill.vector_columns import store_vectors
from lake import slices
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.storage import schema, store
from tests import pictures as drawn
from tests.conftest import MakeLake
from tests.training.conftest import add, striped, stripes
from training.data import splits


def use(result: splits.Splits, use: str) -> list[str]:
    rows = result.items.to_pylist()
    return sorted(row["image_id"] for row in rows if row["use"] == use)


def test_named_slices_become_the_splits(stock: OpenLake) -> None:
    result = splits.gather(stock, "classification", train=["first"], replay=["second"], validation=["held"])
    assert [len(use(result, one)) for one in ("train", "replay", "validation", "test")] == [48, 16, 32, 0]
    assert result.classes == ("lying", "upright")
    assert result.facts["compared"] == {"by": "identity"}
    assert result.facts["validation"] == "slices"
    said = {(one["use"], one["id"], one["images"]) for one in result.facts["slices"]}
    assert said == {("train", "first@1", 48), ("replay", "second@1", 16), ("validation", "held@1", 32)}
    split = result.facts["splits"]["train"]
    assert split["images_sha256"] == splits.digest(use(result, "train"))
    assert split["classes"] == {"lying": 24, "upright": 24}


def test_an_image_set_aside_is_set_aside_in_every_run(stock: OpenLake) -> None:
    small = splits.gather(stock, "classification", train=["first"], share=0.3)
    both = splits.gather(stock, "classification", train=["second", "first"], share=0.3)
    assert 4 <= len(use(small, "validation")) <= 26
    assert set(use(small, "validation")) <= set(use(both, "validation"))
    assert not {*use(both, "train")} & {*use(both, "validation")}
    assert len(both.items) == 64


def test_hashes_are_spread_evenly() -> None:
    shares = np.array([splits.hashed_share(str(n)) for n in range(4_000)])
    assert ((shares >= 0) & (shares < 1)).all()
    assert np.histogram(shares, 10, (0, 1))[0].min() > 330


def test_an_image_is_in_one_split_only(stock: OpenLake) -> None:
    members = stock.slice("first").members()
    slices.create(stock, "part", ids=members[:10])
    result = splits.gather(stock, "classification", train=["first"], validation=["part"], test=["held"])
    assert use(result, "validation") == members[:10]
    assert use(result, "train") == members[10:]
    assert result.facts["left_out"] == {"held out for validation or test": 10}


def test_protected_images_are_not_trained_on(stock: OpenLake) -> None:
    members = stock.slice("first").members()
    slices.create(stock, "night", ids=members[:5])
    result = splits.gather(stock, "classification", train=["first"], protected=["night"], share=0.0)
    assert use(result, "protected") == members[:5]
    assert use(result, "train") == members[5:]


def test_evaluation_slices_are_not_trained_on(stock: OpenLake) -> None:
    members = stock.slice("first").members()
    slices.create(stock, "exam", ids=members[:6], role="regression")
    result = splits.gather(stock, "classification", train=["first"], share=0.0)
    assert use(result, "train") == members[6:]
    assert result.facts["left_out"] == {"in or nearly in exam@1": 6}
    with pytest.raises(BadInput, match="held@1 is a slice for evaluation"):
        splits.gather(stock, "classification", train=["held"])


def test_images_without_label_or_bytes_are_counted(stock: OpenLake) -> None:
    files = [drawn.encoded(stripes(n, True)) for n in range(300, 304)]
    names = add(stock, "mixed", files, ["upright", None, "lying", None])
    result = splits.gather(stock, "classification", train=["mixed"], share=0.0)
    assert len(use(result, "train")) == 2
    assert result.facts["left_out"] == {"without a label for the task": 2}
    add(stock, "bare", [drawn.encoded(stripes(999, True))], [None])
    with pytest.raises(BadInput, match="nothing is left to train on in bare@1: 1 without a label for the task"):
        splits.gather(stock, "classification", train=["bare"])
    assert names


def test_a_frozen_slice_keeps_its_labels(stock: OpenLake) -> None:
    before = splits.gather(stock, "classification", train=["first"], share=0.0)
    one = stock.slice("first").members()[0]
    row = {
        "event_id": "00000000-0000-0000-0000-000000000001",
        "image_id": one,
        "timestamp": store.now() + dt.timedelta(days=1),
        "task": "classification",
        "label": "slanted",
        "origin": "human",
    }
    stock.insert("labels", pa.Table.from_pylist([row], schema=schema.LABELS.arrow()))
    after = splits.gather(stock, "classification", train=["first"], share=0.0)
    assert after.facts["splits"] == before.facts["splits"]
    assert after.classes == ("lying", "upright")
    slices.create(stock, "first", ids=stock.slice("first@1").members())
    assert splits.gather(stock, "classification", train=["first"], share=0.0).classes == ("lying", "slanted", "upright")


def test_classes_of_the_older_model_come_first(stock: OpenLake) -> None:
    result = splits.gather(stock, "classification", train=["first"], known=("upright", "gone"))
    assert result.classes == ("upright", "gone", "lying")


def test_images_have_the_labels_of_the_time_of_the_split(stock: OpenLake) -> None:
    result = splits.gather(stock, "classification", train=["first"], share=0.0)
    items = splits.images_of(stock, "classification", result.items, "train")
    assert [i.image_id for i in items] == stock.slice("first").members()
    truth = dict(stock.sql("SELECT image_id, label FROM labels").to_pylist()[0].items())
    assert {i.image_id: i.ground_truth.label for i in items}[truth["image_id"]] == truth["label"]


def test_ground_truth_of_a_slice(stock: OpenLake) -> None:
    result = splits.ground_truth_of(stock, slices.get(stock, "second"), "classification")
    assert result.column_names[:4] == ["image_id", "label", "boxes", "masks"]
    assert result["image_id"].to_pylist() == stock.slice("second").members()
    assert set(result["label"].to_pylist()) == {"lying", "upright"}
    assert splits.ground_truth_of(stock, slices.get(stock, "second"), "detection").num_rows == 0


def test_near_duplicates_are_never_in_two_splits(make_lake: MakeLake) -> None:
    """Three pictures, each also slightly brighter; vectors say which are alike, thumbnails that they are the same."""
    from lake.ingest import ingest

    lake = make_lake("twins", embedders=["resnet18"])
    folder = lake.folder.parent / "in"  # type: ignore[union-attr]
    folder.mkdir()
    for number in range(12):
        scene = drawn.scene(number, 240, 160)
        for name, image in (("a", scene), ("b", scene.point(lambda v: min(255, int(v * 1.04))))):
            (folder / f"{number:02}{name}.png").write_bytes(drawn.encoded(image))
    ingest.ingest(lake, folder, workers=1)
    names = {row["source"][-7:-4]: row["image_id"] for row in lake.scan("images", ["image_id", "source"]).to_pylist()}
    rng = np.random.default_rng(0)
    vectors = {f"{n:02}": rng.normal(size=512) for n in range(12)}
    from dataclasses import replace

    record = lake.register_embedder("resnet18")
    lake.bind_embedder(replace(record, dim=512, weights_sha256="0" * 64))
    store_vectors(
        lake,
        record.column,
        {i: (vectors[k[:2]] / np.linalg.norm(vectors[k[:2]])).astype("f4") for k, i in names.items()},
    )
    said = [
        {"event_id": f"{i:08}-0000-0000-0000-000000000000", "image_id": name, "timestamp": store.now(),
         "task": "classification", "label": "xy"[i % 2], "origin": "human"}
        for i, name in enumerate(sorted(names.values()))
    ]  # fmt: skip
    lake.insert("labels", pa.Table.from_pylist(said, schema=schema.LABELS.arrow()))
    slices.create(lake, "all", where="true")
    slices.create(lake, "held", ids=[names["00a"], names["01b"]])
    given = splits.gather(lake, "classification", train=["all"], validation=["held"])
    assert given.facts["left_out"] == {
        "held out for validation or test": 2,
        "near-duplicates of images held out": 2,
    }
    assert len(use(given, "train")) == 20
    assert given.facts["compared"]["embedder"] == "resnet18"
    aside = splits.gather(lake, "classification", train=["all"], share=0.4)
    held = {*use(aside, "validation")}
    assert 0 < len(held) < 24
    for number in range(12):
        assert (names[f"{number:02}a"] in held) == (names[f"{number:02}b"] in held)


def test_components_of_pairs() -> None:
    assert splits.components([("b", "a"), ("c", "b"), ("x", "y")]) == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x"}


def test_an_unknown_slice_is_named(stock: OpenLake) -> None:
    with pytest.raises(BadInput, match="first"):
        splits.gather(stock, "classification", train=["frist"])
    with pytest.raises(BadInput, match="with --train SLICE"):
        splits.gather(stock, "classification", train=[])


def test_striped_slices_are_what_the_tests_think(stock: OpenLake) -> None:
    assert len(striped(stock, "more", 6, 400)) == 6


def test_an_image_with_an_incomplete_label_is_neither_trained_on_nor_background(stock: OpenLake) -> None:
    members = stock.slice("first").members()
    label = stock.look_up("labels", schema.LABELS.arrow().names, "image_id", members[:2]).to_pylist()
    rows = [r | {"event_id": f"new-{n}", "timestamp": store.now(), "incomplete": True} for n, r in enumerate(label)]
    stock.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))
    slices.create(stock, "partly", ids=members)
    result = splits.gather(stock, "classification", train=["partly"], share=0.0)
    assert use(result, "train") == members[2:]
    assert result.facts["left_out"] == {"with an incomplete label for the task": 2}
    known = stock.sql("SELECT count(*) AS n FROM samples_reviewed WHERE true_label IS NULL")["n"].to_pylist()
    assert known == [2]
