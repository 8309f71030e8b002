"""A node's children are its images, each once; the same input gives the same nodes."""

import datetime as dt
import json
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embeddings.backfill.vector_columns import store_vectors
from embeddings.clusters.drilldown import ClusterTree, cluster
from embeddings.clusters.trees import trees
from embeddings.embedders.embedder import bind, record_of
from lake import slices
from lake.errors import BadInput
from lake.open_lake import OpenLake
from tests.conftest import MakeLake
from tests.embeddings.colour import Random
from tests.embeddings.islands import islands, lake_of
from tests.lake.prediction_rows import add, image, label

pytestmark = pytest.mark.slow

QUICK = ["auto", "kmeans", "hdbscan"]
MOMENT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def members(lk: OpenLake, tree: ClusterTree) -> dict[str, set[str]]:
    by_path = {}
    for node in tree.nodes:
        image_ids = lk.scan("cluster_members", ["image_id"], f"id = '{tree.tree}/{node.path}'")["image_id"].to_pylist()
        assert len(image_ids) == len(set(image_ids)) == node.size
        by_path[node.path] = set(image_ids)
    return by_path


def shape(tree: ClusterTree) -> list[tuple[Any, ...]]:
    return [(n.path, n.parent, n.size, n.noise, n.method, n.medoids, n.borderline, n.persistence) for n in tree.nodes]


@pytest.mark.parametrize("method", QUICK)
def test_children_partition_their_parent(make_lake: MakeLake, method) -> None:
    lk = lake_of(make_lake, islands([30, 20, 15], strays=8))
    tree = cluster(lk, method=method)
    parts = members(lk, tree)
    assert set().union(*parts.values()) == {image(i) for i in range(73)}
    assert sum(map(len, parts.values())) == 73
    assert [n.path for n in tree.nodes] == [str(i) for i in range(len(tree.nodes))]
    sizes = [n.size for n in tree.nodes if not n.noise]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_two_islands_are_two_clusters(make_lake: MakeLake, method) -> None:
    lk = lake_of(make_lake, islands([20, 12]))
    tree = cluster(lk, method=method, k=2 if method == "kmeans" else None)
    assert [members(lk, tree)[n.path] for n in tree.nodes] == [
        {image(i) for i in range(20)},
        {image(i) for i in range(20, 32)},
    ]
    assert all(n.compactness > 0.98 for n in tree.nodes)


def test_noise_is_last_and_marked(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([25, 25], strays=10, spread=0.01))
    tree = cluster(lk, method="hdbscan")
    assert [n.noise for n in tree.nodes] == [False] * (len(tree.nodes) - 1) + [True]
    assert members(lk, tree)[tree.nodes[-1].path] <= {image(i) for i in range(50, 60)}
    root = lk.sql(f"SELECT * FROM clusters WHERE id = '{tree.tree}/'").to_pylist()[0]
    assert root["noise_share"] == pytest.approx(tree.nodes[-1].size / 60)
    assert (root["size"], root["method"], root["parent"], root["embedder"]) == (60, "root", None, "random")


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_the_same_images_and_seed_give_the_same_nodes(make_lake: MakeLake, method) -> None:
    points = islands([20, 15, 9], strays=6, spread=0.2)
    first, second = lake_of(make_lake, points, "one"), lake_of(make_lake, points, "other")
    assert shape(cluster(first, method=method, seed=4)) == shape(cluster(second, method=method, seed=4))


def test_a_node_is_opened_below_itself_and_opening_again_replaces(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 20, 10, 10], spread=0.1))
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
    lk = lake_of(make_lake, islands([20, 20]))
    root = cluster(lk, method="kmeans", k=5)
    again = cluster(lk, node=f"{root.tree}/", method="kmeans", k=2)
    assert [n.path for n in again.nodes] == ["0", "1"]
    assert sorted(lk.sql("SELECT node FROM clusters")["node"].to_pylist()) == ["", "0", "1"]


def test_medoids_are_members_nearest_first(make_lake: MakeLake) -> None:
    points = islands([30, 10])
    lk = lake_of(make_lake, points)
    tree = cluster(lk, method="kmeans", k=2)
    known = {image(i): points[i] for i in range(len(points))}
    for node in tree.nodes:
        inside = members(lk, tree)[node.path]
        assert set(node.medoids) <= inside
        assert len(node.medoids) == len(set(node.medoids)) == min(12, node.size)
        centre = np.mean([known[name] for name in inside], axis=0)
        cosines = [float(known[name] @ centre) for name in node.medoids]
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[0] == pytest.approx(max(float(known[name] @ centre) for name in inside))


def test_only_images_that_pass_the_filter(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 20]))
    tree = cluster(lk, where="label = 'a'", method="kmeans", k=2)
    assert set().union(*members(lk, tree).values()) == {image(i) for i in range(0, 40, 2)}


def test_images_without_a_vector_are_left_out(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([10, 10]))
    add(lk, [{"image_id": image("late")}])
    assert sum(n.size for n in cluster(lk, method="kmeans", k=2).nodes) == 20


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_refused(make_lake: MakeLake, count: int) -> None:
    lk = lake_of(make_lake, islands([5]))
    chosen = ", ".join(f"'{image(i)}'" for i in range(count)) or "''"
    with pytest.raises(BadInput, match=f"{count} images with a random vector are too few to cluster; 2 are needed"):
        cluster(lk, where=f"image_id IN ({chosen})")


@pytest.mark.parametrize("method", QUICK)
def test_identical_images_are_one_cluster(make_lake: MakeLake, method) -> None:
    lk = lake_of(make_lake, np.tile(np.eye(8, dtype=np.float32)[0], (12, 1)))
    tree = cluster(lk, method=method)
    assert sum(n.size for n in tree.nodes) == 12
    assert len([n for n in tree.nodes if not n.noise]) <= 1


@pytest.mark.parametrize("k", [-1, 0, 1, 41])
def test_k_is_from_two_to_the_number_of_images(make_lake: MakeLake, k: int) -> None:
    lk = lake_of(make_lake, islands([20, 20]))
    with pytest.raises(BadInput, match=f"k is {k}; it must be from 2 to the number of images"):
        cluster(lk, method="kmeans", k=k)
    assert lk.dataset("clusters").count_rows() == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "agnes"}, "method is 'agnes'; it must be one of auto, kmeans, hdbscan, evoc"),
        ({"node": "0.1"}, "no node '0.1'; a node is TREE/PATH"),
        ({"node": "abc/0"}, "no node"),
        ({"node": "x/' OR '1' = '1"}, "no node"),
        ({"node": "x/0", "where": "true"}, "one of them only"),
        ({"slice": "x", "where": "true"}, "one of them only"),
        ({"node": "x/0", "embedder": "random"}, "a node has its own images and embedder"),
        ({"slice": "x"}, "no slice 'x'"),
        ({"words": ["cat"]}, "random embeds images only; words need a CLIP embedder"),
        ({"method": "hdbscan", "k": 3}, "k is for k-means"),
        ({"method": "kmeans", "min_cluster_size": 3}, "k-means takes k"),
        ({"min_cluster_size": 6}, "min_cluster_size is 6; it must be from 2 to the number of images"),
        ({"embedder": "resnet18"}, "has no embedder 'resnet18'"),
        ({"where": "label"}, "not true or false"),
    ],
)
def test_bad_arguments_are_refused(make_lake: MakeLake, options: dict, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        cluster(lake_of(make_lake, islands([5])), **options)


def test_a_lake_without_vectors_is_refused(make_lake: MakeLake) -> None:
    with pytest.raises(BadInput, match="the lake has no random vectors yet"):
        cluster(make_lake(embedders=["random"]))


def test_a_node_can_be_saved_as_a_slice(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([12, 8]))
    tree = cluster(lk, method="kmeans", k=2)
    slice_ = slices.create(lk, "small", cluster=f"{tree.tree}/1")
    cluster(lk, node=f"{tree.tree}/", method="kmeans", k=3)
    assert set(slices.members(lk, slice_).to_pylist()) == {image(i) for i in range(12, 20)}


def test_one_commit_makes_the_cut(make_lake: MakeLake) -> None:
    """Rows of `clusters` come last and together: a run that is killed before leaves the node as it was, uncut."""
    lk = lake_of(make_lake, islands([12, 8]))
    before = lk.version("clusters")
    tree = cluster(lk, method="kmeans", k=2)
    assert lk.version("clusters") == before + 1
    interrupted = {"id": f"{tree.tree}/0.0", "tree": tree.tree, "node": "0.0", "image_id": image(0)}
    lk.insert("cluster_members", pa.Table.from_pylist([interrupted], schema=lk.dataset("cluster_members").schema))
    again = cluster(lk, node=f"{tree.tree}/0", method="kmeans", k=2)
    assert set().union(*members(lk, again).values()) == {image(i) for i in range(12)}


def test_similarity_is_the_cosine_to_the_mean(make_lake: MakeLake) -> None:
    points = islands([30, 10], spread=0.2)
    lk = lake_of(make_lake, points)
    tree = cluster(lk, method="kmeans", k=2)
    known = {image(i): points[i] for i in range(len(points))}
    for path in ("", "0", "1"):
        rows = lk.scan("cluster_members", ["image_id", "similarity", "assigned_at"], f"id = '{tree.tree}/{path}'")
        assert rows["assigned_at"].null_count == rows.num_rows
        inside = np.stack([known[name] for name in rows["image_id"].to_pylist()])
        centre = inside.mean(axis=0) / np.linalg.norm(inside.mean(axis=0))
        assert np.allclose(rows["similarity"], inside @ centre, atol=1e-6)
    node = tree.nodes[0]
    nearest = sorted(members(lk, tree)["0"], key=lambda name: (rows_of(lk, tree, "0")[name], name))
    assert node.borderline == nearest[:6]


def rows_of(lk: OpenLake, tree: ClusterTree, path: str) -> dict[str, float]:
    rows = lk.scan("cluster_members", ["image_id", "similarity"], f"id = '{tree.tree}/{path}'")
    return dict(zip(rows["image_id"].to_pylist(), rows["similarity"].to_pylist(), strict=True))


def test_a_node_summarises_its_predictions(make_lake: MakeLake) -> None:
    """Image i of 12 was answered "ship" with confidence i / 100; 0 to 5 are labelled car, 6 has a verdict."""
    lk = make_lake(embedders=["random"], columns={"site": "string"})
    bind(lk, record_of(lk, None), Random())
    points = islands([12, 8])
    answers = [
        {"image_id": image(i), "label": "ship" if i < 12 else "car", "confidence": i / 100, "site": "AB"[i // 12],
         "timestamp": MOMENT + dt.timedelta(days=i)}
        for i in range(20)
    ]  # fmt: skip
    ids = add(lk, answers)
    label(lk, *[(image(i), "car" if i < 6 else "ship", MOMENT) for i in range(6)], (image(12), "car", MOMENT))
    verdicts = [(6, "incorrect", 0), (7, "correct", 0), (8, "incorrect", 0), (8, "correct", 1), (9, "unsure", 0)]
    rows = [
        {"event_id": str(uuid.uuid4()), "prediction_id": ids[i], "image_id": image(i), "origin": "customer",
         "timestamp": MOMENT + dt.timedelta(hours=hour), "verdict": verdict, "ingested_at": MOMENT}
        for i, verdict, hour in verdicts
    ]  # fmt: skip
    lk.insert("reviews", pa.Table.from_pylist(rows, schema=lk.dataset("reviews").schema))
    store_vectors(lk, "emb_random", {image(i): points[i] for i in range(20)})
    tree = cluster(lk, method="kmeans", k=2)
    ships = tree.nodes[0].summary
    assert (ships.answers, ships.known, ships.wrong) == (12, 9, 7)
    assert ships.errors == [image(i) for i in (6, 5, 4, 3, 2, 1)]
    assert ships.confidence == pytest.approx(np.mean(np.arange(12) / 100))
    assert ships.labels == [{"label": "ship", "n": 12}]
    assert (ships.first_at, ships.last_at) == (MOMENT, MOMENT + dt.timedelta(days=11))
    assert tree.nodes[0].suggested == "site A, predicted ship"
    assert tree.nodes[1].suggested == "car, site B"
    stored = lk.sql(f"SELECT * FROM clusters WHERE id = '{tree.tree}/0'").to_pylist()[0]
    assert (stored["known"], stored["wrong"], stored["errors"]) == (9, 7, ships.errors)
    assert json.loads(stored["labels"]) == ships.labels
    assert (stored["first_at"], stored["suggested"]) == (MOMENT, "site A, predicted ship")
    root = lk.sql(f"SELECT * FROM clusters WHERE id = '{tree.tree}/'").to_pylist()[0]
    assert (root["answers"], root["known"], root["wrong"], root["suggested"]) == (20, 10, 7, None)


class Texts:
    """`left` points along the first axis, `right` along the second."""

    def embed_texts(self, texts: Any) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[[["left", "right"].index(text) for text in texts]]


def test_words_name_nodes_that_have_no_other_name(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([12, 8]))
    tree = cluster(lk, method="kmeans", k=2, words=["right", "left"], model=Texts())
    assert [n.suggested for n in tree.nodes] == ["left", "right"]


def test_a_slice_can_be_clustered(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([12, 8]))
    slices.create(lk, "some", ids=[str(uuid.UUID(int=i)) for i in range(4, 16)])
    tree = cluster(lk, slice="some", method="kmeans", k=2)
    assert set().union(*members(lk, tree).values()) == {image(i) for i in range(4, 16)}
    (root,) = trees(lk)
    assert (root.tree, root.slice, root.where, root.size, root.nodes) == (tree.tree, "some@1", None, 12, 3)
