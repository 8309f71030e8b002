"""A slice is a named, numbered set of images that stays what it was."""

import pyarrow as pa
import pytest

from lake import slices
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.storage import image_rows, schema, store
from tests.lake.prediction_rows import add, image


@pytest.fixture
def answered(lk: OpenLake) -> OpenLake:
    """Three images: 0 and 1 called cat, 2 called dog; 0 answered twice."""
    add(lk, [{"label": "cat"}, {"label": "cat"}, {"label": "dog"}, {"image_id": image(0), "label": "cow"}])
    rows = [{"image_id": image(i), "ingested_at": store.now()} for i in range(3)]
    lk.insert("images", image_rows.images_table([row | {"data": b"x"} for row in rows]))
    return lk


def members(lk: OpenLake, slice_: slices.Slice) -> list[str]:
    return list(slices.members(lk, slice_).to_pylist())


def test_a_slice_by_filter(answered: OpenLake) -> None:
    slice_ = slices.create(answered, "cats", where="label = 'cat'")
    assert (slice_.id, slice_.kind, slice_.definition, slice_.size) == ("cats@1", "where", "label = 'cat'", 2)
    assert slice_.predictions_version == answered.version("samples")
    assert members(answered, slice_) == sorted([image(0), image(1)])


def test_a_slice_by_ids_of_images_and_predictions(answered: OpenLake) -> None:
    prediction = answered.sql("SELECT prediction_id FROM predictions WHERE label = 'dog'")["prediction_id"][0].as_py()
    slice_ = slices.create(answered, "mine", ids=[image(0), prediction.upper(), image(0)])
    assert members(answered, slice_) == sorted([image(0), image(2)])
    assert slice_.definition == "2 ids"


def test_a_slice_by_cluster(answered: OpenLake) -> None:
    rows = [{"id": "t/0", "tree": "t", "node": "0", "image_id": image(i)} for i in (1, 0)]
    answered.insert("cluster_members", pa.Table.from_pylist(rows, schema=schema.CLUSTER_MEMBERS.arrow()))
    assert members(answered, slices.create(answered, "node", cluster="t/0")) == sorted([image(0), image(1)])


def test_a_slice_by_several_clusters_has_every_image_once(answered: OpenLake) -> None:
    inside = {"t/": [0, 1, 2], "t/0": [0, 1], "t/1": [2]}
    rows = [
        {"id": node, "tree": "t", "node": node[2:], "image_id": image(i)} for node, some in inside.items() for i in some
    ]
    answered.insert("cluster_members", pa.Table.from_pylist(rows, schema=schema.CLUSTER_MEMBERS.arrow()))
    for nodes in (["t/0", "t/1"], ["t/", "t/0"], ["t/1", "t/0", "t/1"]):
        slice_ = slices.create(answered, "both", cluster=nodes)
        assert members(answered, slice_) == sorted(image(i) for i in range(3))
    assert slice_.definition == "t/1, t/0"
    with pytest.raises(BadInput, match="no node 't/9'"):
        slices.create(answered, "both", cluster=["t/0", "t/9"])
    with pytest.raises(BadInput, match="a cluster slice needs a node"):
        slices.create(answered, "both", cluster=[])


def test_the_next_of_the_same_name_is_the_next_version(answered: OpenLake) -> None:
    first = slices.create(answered, "cats", where="label = 'cat'")
    add(answered, [{"label": "cat"}])
    second = slices.create(answered, "cats", where="label = 'cat'")
    assert (first.version, first.size, second.version, second.size) == (1, 2, 2, 3)
    assert slices.get(answered, "cats") == second
    assert slices.get(answered, "cats@1") == first
    assert len(members(answered, first)) == 2
    slices.create(answered, "all", where="true")
    assert [s.id for s in slices.list(answered)] == ["all@1", "cats@2", "cats@1"]


def test_a_creation_that_was_interrupted_is_not_seen_and_not_reused(answered: OpenLake, monkeypatch) -> None:
    insert = OpenLake.insert

    def stopping(self, name, rows):
        if name == "slices":
            raise KeyboardInterrupt
        return insert(self, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(OpenLake, "insert", stopping)
        with pytest.raises(KeyboardInterrupt):
            slices.create(answered, "cats", where="label = 'cat'")
    assert slices.list(answered) == []
    slice_ = slices.create(answered, "cats", where="label = 'dog'")
    assert members(answered, slice_) == [image(2)]


@pytest.mark.parametrize("name", ["", "../x", "a b", "a@1", ".hidden", "a/b", "x" * 101, "a'b", "naïve"])
def test_a_bad_name_is_refused(answered: OpenLake, name: str) -> None:
    with pytest.raises(BadInput, match="slice name"):
        slices.create(answered, name, where="true")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({}, "exactly one"),
        ({"where": "true", "cluster": "t/0"}, "exactly one"),
        ({"where": "label = 'cow' AND label = 'cat'"}, "the slice would be empty"),
        ({"where": "lable = 'cat'"}, "Candidate bindings"),
        ({"ids": []}, "would be empty"),
        ({"ids": ["cat.jpg"]}, "is not an id"),
        ({"ids": [image("nobody")]}, f"does not have 1 of the ids, the first is {image('nobody')}"),
        ({"ids": ["7099c41c-4eda-5a1b-b05e-eaddb9b56cbb"]}, "does not have 1"),
        ({"cluster": "t/9"}, "no node 't/9'"),
        ({"cluster": "t/9' OR '1' = '1"}, "no node"),
    ],
)
def test_what_gives_no_images_is_refused(answered: OpenLake, how: dict, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        slices.create(answered, "x", **how)
    assert slices.list(answered) == []


def test_a_slice_that_is_not_there(answered: OpenLake) -> None:
    slices.create(answered, "cats", where="true")
    slices.tag(answered, slices.get(answered, "cats"), "gold")
    for name in ("dogs", "cast", "cats@2", "cats@x", "cats@golden"):
        with pytest.raises(BadInput, match=rf"no slice '{name}'; .*the lake has cats"):
            slices.get(answered, name)
    with pytest.raises(BadInput, match="did you mean cats"):
        slices.get(answered, "cast")
    with pytest.raises(BadInput, match="did you mean cats@gold"):
        slices.get(answered, "cats@golden")
