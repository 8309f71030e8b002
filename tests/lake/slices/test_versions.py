"""A slice is code plus a pin: its versions, tags, roles, and what stays when everything round it changes."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lake
from lake import open_lake, slices
from lake.backups import backup, restore
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.storage import schema, store
from lake.upkeep import doctor, erasure, maintenance
from tests.lake import prediction_rows, stock
from tests.lake.prediction_rows import add, image, label

pytestmark = pytest.mark.slow


@pytest.fixture
def six(lk: OpenLake) -> OpenLake:
    """Six images: even ones called cat, odd ones dog, with confidence 0.0 to 0.5; 0 and 1 are labelled."""
    add(lk, [{"label": ["cat", "dog"][n % 2], "confidence": n / 10} for n in range(6)])
    label(lk, (image(0), "cat", store.now()), (image(1), "cat", store.now()))
    return lk


def numbers(lk: OpenLake, slice_: slices.Slice) -> list[int]:
    known = {image(n): n for n in range(40)}
    return sorted(known[i] for i in slices.members(lk, slice_).to_pylist())


def test_union_intersection_and_minus(six: OpenLake) -> None:
    slices.create(six, "cats", where="label = 'cat'")
    slices.create(six, "sure", where="confidence >= 0.3")
    slice_ = slices.create(six, "either", union=["cats", "sure"])
    assert (numbers(six, slice_), slice_.kind, slice_.definition) == ([0, 2, 3, 4, 5], "union", "cats or sure")
    assert numbers(six, slices.create(six, "both", intersect=["cats@1", "sure"])) == [4]
    slice_ = slices.create(six, "rest", where="true", minus=["cats", "both"])
    assert (numbers(six, slice_), slice_.definition) == ([1, 3, 5], "true minus cats, both")
    slice_ = slices.create(six, "cats", union=["cats@1", {"ids": [image(5)]}])
    assert (slice_.id, numbers(six, slice_), slice_.definition) == ("cats@2", [0, 2, 4, 5], "cats@1 or (1 id)")


def test_a_slice_by_likeness_and_by_search(make_lake: Callable[..., OpenLake]) -> None:
    lk = make_lake(embedders=["x"])
    stock.bind(lk)
    stock.add(lk, range(6))
    stock.embed(lk, range(6))
    cosines = {n: float(stock.vector(n) @ stock.vector(0)) for n in range(6)}
    radius = 1 - sorted(cosines.values())[-3]
    slice_ = slices.create(lk, "like", like={"ids": [stock.image_id(0)], "radius": radius + 1e-4})
    near = sorted(cosines, key=lambda n: -cosines[n])[:3]
    assert slices.members(lk, slice_).to_pylist() == sorted(stock.image_id(n) for n in near)
    assert json.loads(slice_.spec or "")["like"]["embedder"] == "x"
    row = {"id": "a1b2c3d4", "name": "odd ones", "examples": [stock.image_id(1)], "embedder": "x", "seed": 0}
    row |= {"predictions_version": 1, "created_at": store.now()}
    lk.insert("searches", pa.Table.from_pylist([row], schema=schema.SEARCHES.arrow()))
    marks = [
        {"event_id": f"{n}", "search": "a1b2c3d4", "image_id": stock.image_id(n), "mark": mark, "page": 1}
        | {"timestamp": store.now()}
        for n, mark in ((1, "yes"), (2, "no"), (3, "yes"))
    ]
    lk.insert("marks", pa.Table.from_pylist(marks, schema=schema.MARKS.arrow()))
    for name in ("a1b2c3d4", "odd ones"):
        slice_ = slices.create(lk, "found", search=name)
        assert slices.members(lk, slice_).to_pylist() == sorted(stock.image_id(n) for n in (1, 3))
    with pytest.raises(BadInput, match="no search 'od ones'; did you mean odd ones"):
        slices.create(lk, "found", search="od ones")


def test_every_slice_is_made_again_from_its_spec(six: OpenLake) -> None:
    slices.create(six, "cats", where="label = 'cat'")
    hows: list[dict[str, Any]] = [
        {"where": "confidence < 0.3", "minus": ["cats"]},
        {"ids": [image(1), image(2)]},
        {"union": ["cats", {"intersect": ["cats", {"where": "confidence > 0.1"}]}]},
    ]
    for how in hows:
        slice_ = slices.create(six, "a", **how)
        again = slices.create(six, "a", spec=slices.load(json.dumps(slices.spec(six, slice_))))
        assert (numbers(six, again), again.definition) == (numbers(six, slice_), slice_.definition)
    add(six, [{"label": "cat", "confidence": 0.05}])
    assert 6 in numbers(six, slices.create(six, "later", spec=slices.spec(six, slices.get(six, "cats"))))


def test_a_live_slice_is_what_it_is_today_and_can_be_frozen(six: OpenLake) -> None:
    live = slices.create(six, "cats", where="label = 'cat'", live=True)
    assert six.dataset("slice_members").count_rows() == 0
    add(six, [{"label": "cat"}])
    assert numbers(six, live) == [0, 2, 4, 6]
    frozen = slices.save(six, slices.freeze(six, slices.get(six, "cats")))
    add(six, [{"label": "cat"}])
    assert (frozen.id, numbers(six, frozen), len(numbers(six, live))) == ("cats@2", [0, 2, 4, 6], 5)
    slices.create(six, "loop", where="true", live=True)
    round_it = slices.create(six, "loop", union=["loop", "cats"], live=True)
    with pytest.raises(BadInput, match=r"loop@2 is defined in terms of itself: loop@2 -> loop@2"):
        slices.members(six, round_it)


def test_labels_are_those_of_the_moment_it_was_made(six: OpenLake) -> None:
    first = slices.create(six, "all", where="true")
    before = slices.contents(six, first)
    label(six, (image(0), "lynx", store.now()), (image(2), "cat", store.now()))
    assert slices.contents(six, first).equals(before)
    table = six.slice("all@1").table()
    assert dict(zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True))[image(0)] == "cat"
    assert slices.balance(six, before) == [{"label": None, "images": 4}, {"label": "cat", "images": 2}]
    second = slices.create(six, "all", where="confidence > 0 OR label = 'cat'")
    found = slices.diff(six, first, second)
    assert (found.added, found.removed) == ([], [])
    assert found.labels_changed == sorted([image(0), image(2)])
    label(six, (image(1), "cat", store.now()))  # the same again
    assert slices.diff(six, second, slices.create(six, "all", where="true")).labels_changed == []
    assert six.slice("all").frame().collect().height == 6


def test_tags_history_and_deletion(six: OpenLake) -> None:
    for least in (0.0, 0.2, 0.4):
        slices.create(six, "sure", where=f"confidence >= {least}")
    slices.tag(six, slices.get(six, "sure@1"), "gold")
    slices.tag(six, slices.get(six, "sure@2"), "gold")
    assert slices.get(six, "sure@gold").version == 2
    slices.delete(six, slices.get(six, "sure@2"))
    with pytest.raises(BadInput, match=r"sure@2 was deleted on 2\d{3}-\d\d-\d\d; there is sure@3"):
        slices.get(six, "sure@2")
    with pytest.raises(BadInput, match="no slice 'sure@gold'"):
        slices.get(six, "sure@gold")
    slices.delete(six, slices.get(six, "sure@3"))
    assert slices.create(six, "sure", where="true").id == "sure@4"
    steps = slices.history(six, "sure")
    assert [(s.slice.version, s.added, s.removed, s.slice.deleted_at is None) for s in steps] == [
        (1, None, None, True),
        (2, None, None, False),
        (3, None, None, False),
        (4, 0, 0, True),
    ]
    assert set(six.scan("slice_members", ["version"])["version"].to_pylist()) == {1, 4}
    assert [f.what for f in doctor.examine(six.uri).findings if f.check == "sets"] == []
    slices.create(six, "live", union=["sure@1", "sure@4"], live=True)
    with pytest.raises(BadInput, match="live@1 is live and refers to sure@1"):
        slices.delete(six, slices.get(six, "sure@1"))
    with pytest.raises(BadInput, match="no tag 'gild'"):
        slices.untag(six, "sure", "gild")


def test_the_lake_makes_no_training_slice(six: OpenLake) -> None:
    """The leak guard in embeddings is the only way to one; it is named in the message."""
    plain = slices.create(six, "plain", where="true")
    with pytest.raises(BadInput, match=r"leak_guard\.create"):
        slices.create(six, "school", where="true", role="train")
    with pytest.raises(BadInput, match=r"leak_guard\.create"):
        slices.save(six, slices.draft(six, "school", where="true", role="train"))
    with pytest.raises(BadInput, match=r"leak_guard\.assign"):
        slices.set_role(six, plain, "train")
    with pytest.raises(BadInput, match="freeze it first"):
        slices.create(six, "school", where="true", role="train", live=True)
    assert [s.id for s in slices.list(six)] == ["plain@1"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"where": "lable = 'cat'"}, "Candidate bindings"),
        ({"where": "label ="}, "the filter 'label ='"),
        ({"where": "true", "role": "test"}, "role is 'test'; it must be one of train, evaluation, regression"),
        ({"where": "true", "minus": ["cast"]}, "no slice 'cast'; did you mean cats"),
        ({"where": "true", "minus": ["cats"]}, "the slice would be empty"),
        ({"union": ["cats"]}, "two slices or more"),
        ({"intersect": ["cats", {"wher": "true"}]}, "no 'wher'"),
        ({"spec": {"where": "true", "plus": 1}}, "no 'plus'"),
        ({"spec": {}}, "exactly one"),
        ({"ids": ["x"], "live": True}, "cannot be live"),
        ({"like": {"ids": [image(0)], "radius": 3}}, "radius is 3"),
        ({"like": {"ids": [image(0)], "radius": 0.1}}, "the lake has no embedder"),
        ({"where": "true", "new": True}, "the slice 'cats' exists already"),
    ],
)
def test_bad_definitions_are_refused_and_nothing_is_changed(six: OpenLake, how: dict[str, Any], reason: str) -> None:
    slices.create(six, "cats", where="true")
    before = stock.contents(six)
    with pytest.raises(BadInput, match=reason):
        slices.create(six, "cats", **how)
    assert stock.contents(six) == before


def test_two_creations_at_once_get_a_version_each(six: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the version between the look and the claim."""
    insert, other = OpenLake.insert, lake.open(six.uri)

    def late(self: OpenLake, name: str, rows: pa.Table) -> int:
        if name == "slices" and self is six:
            monkeypatch.setattr(OpenLake, "insert", insert)
            slices.create(other, "cats", where="label = 'dog'")
        return insert(self, name, rows)

    monkeypatch.setattr(OpenLake, "insert", late)
    slice_ = slices.create(six, "cats", where="label = 'cat'")
    assert (slice_.version, numbers(six, slice_), numbers(six, slices.get(six, "cats@1"))) == (2, [0, 2, 4], [1, 3, 5])


DEEDS = ("ingest", "label", "maintain", "forget", "slice", "delete", "restore")


def _kept(actions: list[tuple[str, int]]) -> None:
    """After all of these actions every frozen version has the ids and labels it was made with, less what was erased."""
    with tempfile.TemporaryDirectory() as folder:
        lk = open_lake.create(f"{folder}/lake", embedders=["x"])
        stock.bind(lk)
        stock.add(lk, range(8))
        stock.embed(lk, range(8))
        prediction_rows.label(lk, *((stock.image_id(n), "cat", store.now()) for n in range(4)))
        slice_ = slices.create(lk, "first", where="true")
        contents = {slice_.id: _rows(lk, slice_)}
        given, erased, next_number = {slice_.id}, set[str](), 100
        rng = np.random.default_rng(len(actions))
        for place, (deed, number) in enumerate(actions):
            name = stock.image_id(number)
            if deed == "ingest":
                stock.add(lk, [next_number])
                next_number += 1
            elif deed == "label" and name not in erased:  # the doors refuse it; here it goes straight into the table
                prediction_rows.label(lk, (name, f"class {place}", store.now()))
            elif deed == "maintain":
                maintenance.maintain(lk, older_than=maintenance.OLDER_THAN * 0)
            elif deed == "forget":
                erasure.forget(lk, [name], alone=True)
                erased.add(name)
            elif deed == "slice":
                slice_ = slices.create(lk, "first", where="true")
                assert slice_.id not in given
                given.add(slice_.id)
                contents[slice_.id] = _rows(lk, slice_)
            elif deed == "delete" and len(contents) > 1:
                gone = sorted(contents)[int(rng.integers(len(contents)))]
                slices.delete(lk, slices.get(lk, gone))
                del contents[gone]
            elif deed == "restore":
                backup.backup(lk, Path(folder) / f"copy{place}")
                restore.restore(Path(folder) / f"copy{place}", f"{folder}/lake{place}", forgotten_from=lk)
                lk = lake.open(f"{folder}/lake{place}")
        for known, rows in contents.items():
            there = slices.get(lk, known)
            assert _rows(lk, there) == {i: e for i, e in rows.items() if i not in erased}
            assert (there.size, slices.erased_count(lk, there)) == (len(rows), len(erased & rows.keys()))
        assert not any(lk.known(table, "image_id", sorted(erased)) for table in erasure.TABLES if erased)
        assert [f for f in doctor.examine(lk.uri).findings if f.severity == "wrong"] == []


def _rows(lk: OpenLake, slice_: slices.Slice) -> dict[str, list[str]]:
    table = slices.contents(lk, slice_)
    return dict(zip(table["image_id"].to_pylist(), table["label_events"].to_pylist(), strict=True))


def test_a_version_stays_through_everything_at_least_once() -> None:
    _kept([("label", 1), ("slice", 0), ("forget", 1), ("ingest", 0), ("maintain", 0), ("restore", 0), ("slice", 0),
           ("forget", 5), ("delete", 0), ("slice", 0)])  # fmt: skip


@pytest.mark.soak
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(DEEDS), st.integers(0, 7)), max_size=10))
def test_a_version_stays_through_anything(actions: list[tuple[str, int]]) -> None:
    _kept(actions)


def test_examples_that_were_erased_are_no_examples_any_more(make_lake: Callable[..., OpenLake]) -> None:
    lk = make_lake(embedders=["x"])
    stock.bind(lk)
    stock.add(lk, range(4))
    erased, other = stock.image_id(1), stock.image_id(2)
    node = {"id": "t/0", "tree": "t", "node": "0", "method": "kmeans", "embedder": "x", "predictions_version": 1}
    node |= {"noise": False, "created_at": store.now(), "size": 2, "medoids": [erased, other]}
    node |= {"borderline": [other, erased], "errors": [erased]}
    lk.insert("clusters", pa.Table.from_pylist([node], schema=schema.CLUSTERS.arrow()))
    members = [{"id": "t/0", "tree": "t", "node": "0", "image_id": i} for i in (erased, other)]
    lk.insert("cluster_members", pa.Table.from_pylist(members, schema=schema.CLUSTER_MEMBERS.arrow()))
    row = {"id": "s", "examples": [erased, other], "embedder": "x", "seed": 0, "predictions_version": 1}
    row |= {"created_at": store.now()}
    lk.insert("searches", pa.Table.from_pylist([row], schema=schema.SEARCHES.arrow()))
    backup.backup(lk, Path(lk.uri).with_name("copy"))
    report = erasure.forget(lk, [erased])
    restored = restore.restore(Path(lk.uri).with_name("copy"), lk.uri + "2", forgotten_from=lk)
    assert (report.trees, report.searches, restored.erased) == (["t"], ["s"], 1)
    for held in (lk, lake.open(lk.uri + "2")):
        found = held.sql("SELECT size, medoids, borderline, errors FROM clusters").to_pylist()
        assert found == [{"size": 1, "medoids": [other], "borderline": [other], "errors": []}]
        assert held.sql("SELECT examples FROM searches").to_pylist() == [{"examples": [other]}]
