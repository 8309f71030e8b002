"""New images join the nodes they are like; nobody who was there moves; a second run adds nothing."""

import datetime as dt
import uuid
from typing import Any

import numpy as np
import pytest

from embeddings.backfill.vector_columns import store_vectors
from embeddings.clusters.assign import assign, volume
from embeddings.clusters.drilldown import cluster
from lake import slices
from lake.errors import BadInput
from lake.open_lake import OpenLake
from tests.conftest import MakeLake
from tests.embeddings.islands import islands, lake_of, unit
from tests.lake.prediction_rows import add, image, label

pytestmark = pytest.mark.slow

MOMENT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def arrive(lk: OpenLake, points: np.ndarray, **facts: Any) -> list[str]:
    """Images named new0, new1, ... with these vectors, one answer each."""
    names = [image(f"new{i}") for i in range(len(points))]
    add(lk, [{"image_id": name, "label": "a", "timestamp": MOMENT, **facts} for name in names])
    store_vectors(lk, "emb_random", dict(zip(names, points, strict=True)))
    return names


def members_by_path(lk: OpenLake) -> dict[str, set[str]]:
    rows = lk.scan("cluster_members", ["node", "image_id"]).to_pylist()
    by_path: dict[str, set[str]] = {}
    for row in rows:
        assert row["image_id"] not in by_path.setdefault(row["node"], set())
        by_path[row["node"]].add(row["image_id"])
    return by_path


def axis(number: int, count: int, spread: float = 0.02, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit(np.eye(8)[number] + rng.normal(0, spread, (count, 8)))


def test_new_images_join_similar_ones_at_every_level(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([30, 20]))
    tree = cluster(lk, method="kmeans", k=2).tree
    cluster(lk, node=f"{tree}/0", method="kmeans", k=2)
    before = members_by_path(lk)
    new = arrive(lk, np.concatenate([axis(0, 3), axis(1, 2)]))
    assignment = assign(lk, tree)
    assert (assignment.images, assignment.none) == (5, 0)
    after = members_by_path(lk)
    assert {path: after[path] - before[path] for path in ("", "0", "1")} == {
        "": set(new),
        "0": set(new[:3]),
        "1": set(new[3:]),
    }
    assert (after["0.0"] | after["0.1"]) - (before["0.0"] | before["0.1"]) == set(new[:3])
    assert all(before[path] <= after[path] for path in before)
    sizes = lk.sql("SELECT node, size FROM clusters").to_pylist()
    assert {row["node"]: row["size"] for row in sizes} == {path: len(names) for path, names in after.items()}


def test_running_it_again_adds_nothing(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([30, 20]))
    tree = cluster(lk, method="kmeans", k=2).tree
    arrive(lk, axis(0, 3))
    assign(lk, tree)
    before = lk.version("cluster_members"), lk.version("clusters")
    again = assign(lk, tree)
    assert (again.images, again.nodes, again.none) == (0, {}, 0)
    assert (lk.version("cluster_members"), lk.version("clusters")) == before


def test_sizes_of_an_interrupted_run_are_repaired(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([30, 20]))
    tree = cluster(lk, method="kmeans", k=2).tree
    sizes = "SELECT node, size FROM clusters ORDER BY node"
    uncounted = lk.dataset("clusters").to_table()
    arrive(lk, axis(0, 3))
    assign(lk, tree)
    counted = lk.sql(sizes).to_pylist()
    lk.update("clusters", uncounted)
    assert lk.sql(sizes).to_pylist() != counted
    assign(lk, tree)
    assert lk.sql(sizes).to_pylist() == counted


def test_similarity_is_to_the_first_members(make_lake: MakeLake) -> None:
    points = islands([30, 20])
    lk = lake_of(make_lake, points)
    tree = cluster(lk, method="kmeans", k=2).tree
    (new,) = arrive(lk, axis(0, 1, spread=0.05))
    assign(lk, tree)
    rows = lk.scan("cluster_members", ["node", "similarity", "assigned_at"], f"image_id = '{new}'").to_pylist()
    centre = points[:30].mean(axis=0)
    expected = float(axis(0, 1, spread=0.05)[0] @ centre / np.linalg.norm(centre))
    assert {row["node"]: row["similarity"] for row in rows}["0"] == pytest.approx(expected, abs=1e-5)
    assert all(row["assigned_at"] is not None for row in rows)


def test_an_image_that_fits_no_child_becomes_noise(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([25, 25], strays=10, spread=0.01))
    tree = cluster(lk, method="hdbscan")
    assert tree.nodes[-1].noise
    (new,) = arrive(lk, axis(7, 1))
    share = tree.nodes[-1].size / 60
    assert assign(lk, tree.tree).nodes == {"": 1, tree.nodes[-1].path: 1}
    root = lk.sql(f"SELECT noise_share FROM clusters WHERE id = '{tree.tree}/'")["noise_share"].to_pylist()
    assert root == [pytest.approx((tree.nodes[-1].size + 1) / 61)]
    assert root[0] > share
    assert new in members_by_path(lk)[tree.nodes[-1].path]


def test_an_image_that_fits_no_child_stays_above_without_noise(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([25, 25], spread=0.01))
    tree = cluster(lk, method="kmeans", k=2).tree
    (new,) = arrive(lk, axis(7, 1))
    assignment = assign(lk, tree)
    assert (assignment.nodes, assignment.none) == ({"": 1}, 1)
    assert [path for path, names in members_by_path(lk).items() if new in names] == [""]
    recut = cluster(lk, node=f"{tree}/", method="kmeans", k=3)
    assert sum(n.size for n in recut.nodes) == 51, "a new cut takes it in"


def test_only_images_that_pass_the_trees_filter_are_assigned(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 20]))
    filtered = cluster(lk, where="label = 'a'", method="kmeans", k=2).tree
    slices.create(lk, "bs", where="label = 'b'")
    sliced = cluster(lk, slice="bs", method="kmeans", k=2).tree
    slices.create(lk, "listed", ids=[str(uuid.UUID(int=i)) for i in range(12)])
    listed = cluster(lk, slice="listed", method="kmeans", k=2).tree
    arrive(lk, axis(0, 2))
    assert (assign(lk, filtered).images, assign(lk, sliced).images) == (2, 0)
    with pytest.raises(BadInput, match="a fixed list of images"):
        assign(lk, listed)
    with pytest.raises(BadInput, match="no node 'x/'"):
        assign(lk, "x")


def test_images_without_a_vector_are_counted(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 20]))
    tree = cluster(lk, method="kmeans", k=2).tree
    filtered = cluster(lk, where="label = 'a'", method="kmeans", k=2).tree
    add(lk, [{"prediction_id": str(uuid.uuid4()), "image_id": image(n), "label": n[0]} for n in ("a1", "a2", "b1")])
    assert (assign(lk, tree).images, assign(lk, tree).without_vector) == (0, 3)
    assert assign(lk, filtered).without_vector == 2


def test_copies_join_copies_only(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, np.tile(np.eye(8, dtype=np.float32)[0], (12, 1)))
    tree = cluster(lk).tree
    arrive(lk, np.eye(8, dtype=np.float32)[[0, 1]])
    assignment = assign(lk, tree)
    assert (assignment.nodes, assignment.none) == ({"": 2, "0": 1}, 1)


def test_a_node_whose_members_were_erased_gets_no_images(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([12, 8]))
    tree = cluster(lk, method="kmeans", k=2).tree
    lk.delete("cluster_members", f"tree = '{tree}'")
    lk.delete("samples", "model = 'm'")
    arrive(lk, axis(0, 2))
    assignment = assign(lk, tree)
    assert (assignment.nodes, assignment.none) == ({"": 2}, 2)
    assert lk.sql("SELECT node, size FROM clusters ORDER BY node")["size"].to_pylist() == [2, 0, 0]


def test_images_without_a_vector_wait(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 20]))
    tree = cluster(lk, method="kmeans", k=2).tree
    add(lk, [{"image_id": image("late")}])
    assert assign(lk, tree).images == 0


def test_a_large_node_is_voted_on_by_a_sample(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    from embeddings.clusters import assign as module

    monkeypatch.setattr(module, "MAX_MEMBERS", 20)
    monkeypatch.setattr(module, "MIN_CHILD_MEMBERS", 5)
    lk = lake_of(make_lake, islands([60, 12]))
    tree = cluster(lk, method="kmeans", k=2).tree
    arrive(lk, np.concatenate([axis(0, 2), axis(1, 2)]))
    assert assign(lk, tree).nodes == {"": 4, "0": 2, "1": 2}


def test_volume_and_errors_by_day(make_lake: MakeLake) -> None:
    """Answers of the standing images have no time: only what arrived counts."""
    lk = lake_of(make_lake, islands([30, 20]))
    tree = cluster(lk, method="kmeans", k=2).tree
    new = arrive(lk, np.concatenate([axis(0, 3), axis(1, 1)]))
    label(lk, (new[0], "a", MOMENT), (new[1], "b", MOMENT))
    assign(lk, tree)
    volumes = {(volume_.node, volume_.day): volume_ for volume_ in volume(lk, tree)}
    day = MOMENT.date()
    assert set(volumes) == {("", day), ("0", day), ("1", day)}
    zero, volume_ = volumes["0", day], volumes["1", day]
    assert (zero.predictions, zero.images, zero.assigned) == (3, 3, 3)
    assert (zero.known, zero.wrong, zero.error_rate) == (2, 1, 0.5)
    assert (volume_.predictions, volume_.known, volume_.error_rate) == (1, 0, None)
