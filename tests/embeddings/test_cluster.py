"""A node's children are its images, each once; the same input gives the same nodes."""

from typing import Any

import numpy as np
import pytest

from embeddings.backfill import store_vectors
from embeddings.cluster import METHODS, Tree, cluster, partition
from embeddings.embedder import bind, record_of
from lake import slices
from lake.errors import BadInput
from lake.store import Lake
from tests.conftest import MakeLake
from tests.embeddings.colour import Random
from tests.lake.answers import add, image


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def islands(counts: list[int], strays: int = 0, spread: float = 0.03, seed: int = 0) -> np.ndarray:
    """Points around different axes, one after the other, then strays that belong to none."""
    rng = np.random.default_rng(seed)
    around = [np.eye(8)[i] + rng.normal(0, spread, (n, 8)) for i, n in enumerate(counts)]
    return unit(np.concatenate([*around, rng.normal(size=(strays, 8))]))


def holding(make_lake: MakeLake, points: np.ndarray, name: str = "lake") -> Lake:
    """A lake where the i-th image has the i-th vector, a label a or b in turn, and some have two rows."""
    lk = make_lake(name, embedders=["random"])
    rows: list[dict[str, Any]] = [{"image_id": image(i), "label": "ab"[i % 2]} for i in range(len(points))]
    add(lk, rows + rows[::5])
    bind(lk, record_of(lk, None), Random())
    store_vectors(lk, "emb_random", {image(i): points[i] for i in range(len(points))})
    return lk


def members(lk: Lake, made: Tree) -> dict[str, set[str]]:
    found = {}
    for node in made.nodes:
        listed = lk.scan("cluster_members", ["image_id"], f"id = '{made.tree}/{node.path}'")["image_id"].to_pylist()
        assert len(listed) == len(set(listed)) == node.size
        found[node.path] = set(listed)
    return found


def shape(made: Tree) -> list[tuple[Any, ...]]:
    return [(n.path, n.parent, n.size, n.noise, n.method, n.medoids) for n in made.nodes]


@pytest.mark.parametrize("method", METHODS)
def test_children_partition_their_parent(make_lake: MakeLake, method) -> None:
    lk = holding(make_lake, islands([30, 20, 15], strays=8))
    made = cluster(lk, method=method)
    parts = members(lk, made)
    assert set().union(*parts.values()) == {image(i) for i in range(73)}
    assert sum(map(len, parts.values())) == 73
    assert [n.path for n in made.nodes] == [str(i) for i in range(len(made.nodes))]
    sizes = [n.size for n in made.nodes if not n.noise]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_two_islands_are_two_clusters(make_lake: MakeLake, method) -> None:
    lk = holding(make_lake, islands([20, 12]))
    made = cluster(lk, method=method, k=2 if method == "kmeans" else None)
    assert [members(lk, made)[n.path] for n in made.nodes] == [
        {image(i) for i in range(20)},
        {image(i) for i in range(20, 32)},
    ]
    assert all(n.compactness > 0.98 for n in made.nodes)


def test_noise_is_last_and_marked(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([25, 25], strays=10, spread=0.01))
    made = cluster(lk, method="hdbscan")
    assert [n.noise for n in made.nodes] == [False] * (len(made.nodes) - 1) + [True]
    assert members(lk, made)[made.nodes[-1].path] <= {image(i) for i in range(50, 60)}
    root = lk.sql(f"SELECT * FROM clusters WHERE id = '{made.tree}/'").to_pylist()[0]
    assert root["noise_share"] == pytest.approx(made.nodes[-1].size / 60)
    assert (root["size"], root["method"], root["parent"], root["embedder"]) == (60, "root", None, "random")


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_the_same_images_and_seed_give_the_same_nodes(make_lake: MakeLake, method) -> None:
    points = islands([20, 15, 9], strays=6, spread=0.2)
    one, other = holding(make_lake, points, "one"), holding(make_lake, points, "other")
    assert shape(cluster(one, method=method, seed=4)) == shape(cluster(other, method=method, seed=4))


def test_a_node_is_opened_below_itself_and_opening_again_replaces(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([20, 20, 10, 10], spread=0.1))
    root = cluster(lk, method="kmeans", k=2)
    child = f"{root.tree}/0"
    first = cluster(lk, node=child, method="kmeans", k=4)
    assert {(n.path, n.parent) for n in first.nodes} == {(f"0.{i}", "0") for i in range(4)}
    assert set().union(*members(lk, first).values()) == members(lk, root)["0"]
    cluster(lk, node=f"{root.tree}/0.0", method="kmeans", k=2)
    again = cluster(lk, node=child, method="kmeans", k=2)
    nodes = lk.sql("SELECT node FROM clusters ORDER BY node")["node"].to_pylist()
    assert nodes == ["", "0", "0.0", "0.1", "1"]
    assert set(lk.sql("SELECT DISTINCT node FROM cluster_members")["node"].to_pylist()) == set(nodes)
    assert set().union(*members(lk, again).values()) == members(lk, root)["0"]
    assert again.tree == root.tree


def test_opening_the_root_again_replaces_the_whole_tree(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([20, 20]))
    root = cluster(lk, method="kmeans", k=5)
    again = cluster(lk, node=f"{root.tree}/", method="kmeans", k=2)
    assert [n.path for n in again.nodes] == ["0", "1"]
    assert sorted(lk.sql("SELECT node FROM clusters")["node"].to_pylist()) == ["", "0", "1"]


def test_medoids_are_members_nearest_first(make_lake: MakeLake) -> None:
    points = islands([30, 10])
    lk = holding(make_lake, points)
    made = cluster(lk, method="kmeans", k=2)
    known = {image(i): points[i] for i in range(len(points))}
    for node in made.nodes:
        inside = members(lk, made)[node.path]
        assert set(node.medoids) <= inside
        assert len(node.medoids) == len(set(node.medoids)) == min(12, node.size)
        centre = np.mean([known[name] for name in inside], axis=0)
        cosines = [float(known[name] @ centre) for name in node.medoids]
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[0] == pytest.approx(max(float(known[name] @ centre) for name in inside))


def test_only_images_that_pass_the_filter(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([20, 20]))
    made = cluster(lk, where="label = 'a'", method="kmeans", k=2)
    assert set().union(*members(lk, made).values()) == {image(i) for i in range(0, 40, 2)}


def test_images_without_a_vector_are_left_out(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([10, 10]))
    add(lk, [{"image_id": image("late")}])
    assert sum(n.size for n in cluster(lk, method="kmeans", k=2).nodes) == 20


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_images_are_said(make_lake: MakeLake, count: int) -> None:
    lk = holding(make_lake, islands([5]))
    chosen = ", ".join(f"'{image(i)}'" for i in range(count)) or "''"
    with pytest.raises(BadInput, match=f"{count} images with a random vector are too few to cluster; 4 are needed"):
        cluster(lk, where=f"image_id IN ({chosen})")


@pytest.mark.parametrize("method", METHODS)
def test_identical_images_are_one_cluster(make_lake: MakeLake, method) -> None:
    lk = holding(make_lake, np.tile(np.eye(8, dtype=np.float32)[0], (12, 1)))
    made = cluster(lk, method=method)
    assert sum(n.size for n in made.nodes) == 12
    assert len([n for n in made.nodes if not n.noise]) <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_few_images_are_partitioned_too(method, count: int) -> None:
    labels, used, params, _ = partition(islands([count], spread=0.5), method, None, 0)
    assert labels.shape == (count,)
    assert used in ("kmeans", "hdbscan")
    assert params


def test_auto_says_when_density_finds_nothing() -> None:
    rng = np.random.default_rng(0)
    labels, used, params, remark = partition(unit(rng.normal(size=(300, 8))), "auto", None, 0)
    assert (used, len(set(labels.tolist()))) == ("kmeans", params["k"])
    assert "k-means was used instead" in str(remark)


def test_a_number_of_clusters_is_a_wish_for_kmeans() -> None:
    labels, used, params, remark = partition(islands([20, 20]), "auto", 5, 0)
    assert (used, params, len(set(labels.tolist())), remark) == ("kmeans", {"k": 5}, 5, None)


@pytest.mark.parametrize("k", [-1, 0, 1, 41])
def test_k_is_from_two_to_the_number_of_images(make_lake: MakeLake, k: int) -> None:
    lk = holding(make_lake, islands([20, 20]))
    with pytest.raises(BadInput, match=f"k is {k}; it must be from 2 to the number of images"):
        cluster(lk, method="kmeans", k=k)
    assert lk.dataset("clusters").count_rows() == 0


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"method": "agnes"}, "method 'agnes' is none of auto, kmeans, hdbscan"),
        ({"node": "0.1"}, "no node '0.1'; a node is TREE/PATH"),
        ({"node": "abc/0"}, "no node"),
        ({"node": "x/' OR '1' = '1"}, "no node"),
        ({"node": "x/0", "where": "true"}, "give --node alone"),
        ({"embedder": "resnet18"}, "has no embedder 'resnet18'"),
        ({"where": "label"}, "not true or false"),
    ],
)
def test_bad_arguments_are_refused(make_lake: MakeLake, how: dict, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        cluster(holding(make_lake, islands([5])), **how)


def test_nothing_embedded_yet_is_said(make_lake: MakeLake) -> None:
    with pytest.raises(BadInput, match="nothing is embedded with random yet"):
        cluster(make_lake(embedders=["random"]))


def test_a_node_can_be_kept_as_a_slice(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([12, 8]))
    made = cluster(lk, method="kmeans", k=2)
    kept = slices.create(lk, "small", cluster=f"{made.tree}/1")
    cluster(lk, node=f"{made.tree}/", method="kmeans", k=3)
    assert set(slices.members(lk, kept).to_pylist()) == {image(i) for i in range(12, 20)}
