"""A node's children are its images, each once; the same input gives the same nodes."""

import argparse
import datetime as dt
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.backfill.backfill import store_vectors
from embeddings.clusters.cuts import compare, sweep
from embeddings.clusters.trees import Tree, cluster, rename, trees, uncut
from embeddings.embedders.embedder import bind, record_of
from lake import slices
from lake.errors import BadInput
from lake.storage.store import Lake
from search_app.cli.embeddings import cluster as clustering
from tests.conftest import MakeLake
from tests.embeddings.colour import Random
from tests.lake.answers import add, image, label

# EVoC compiles for many seconds: test_partition.py has it once.
QUICK = ["auto", "kmeans", "hdbscan"]


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
    return [(n.path, n.parent, n.size, n.noise, n.method, n.medoids, n.borderline, n.persistence) for n in made.nodes]


@pytest.mark.parametrize("method", QUICK)
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


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_said(make_lake: MakeLake, count: int) -> None:
    lk = holding(make_lake, islands([5]))
    chosen = ", ".join(f"'{image(i)}'" for i in range(count)) or "''"
    with pytest.raises(BadInput, match=f"{count} images with a random vector are too few to cluster; 2 are needed"):
        cluster(lk, where=f"image_id IN ({chosen})")


@pytest.mark.parametrize("method", QUICK)
def test_identical_images_are_one_cluster(make_lake: MakeLake, method) -> None:
    lk = holding(make_lake, np.tile(np.eye(8, dtype=np.float32)[0], (12, 1)))
    made = cluster(lk, method=method)
    assert sum(n.size for n in made.nodes) == 12
    assert len([n for n in made.nodes if not n.noise]) <= 1


@pytest.mark.parametrize("k", [-1, 0, 1, 41])
def test_k_is_from_two_to_the_number_of_images(make_lake: MakeLake, k: int) -> None:
    lk = holding(make_lake, islands([20, 20]))
    with pytest.raises(BadInput, match=f"k is {k}; it must be from 2 to the number of images"):
        cluster(lk, method="kmeans", k=k)
    assert lk.dataset("clusters").count_rows() == 0


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"method": "agnes"}, "method 'agnes' is none of auto, kmeans, hdbscan, evoc"),
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
def test_bad_arguments_are_refused(make_lake: MakeLake, how: dict, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        cluster(holding(make_lake, islands([5])), **how)


def test_nothing_embedded_yet_is_said(make_lake: MakeLake) -> None:
    with pytest.raises(BadInput, match="the lake has no random vectors yet"):
        cluster(make_lake(embedders=["random"]))


def test_a_node_can_be_kept_as_a_slice(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([12, 8]))
    made = cluster(lk, method="kmeans", k=2)
    kept = slices.create(lk, "small", cluster=f"{made.tree}/1")
    cluster(lk, node=f"{made.tree}/", method="kmeans", k=3)
    assert set(slices.members(lk, kept).to_pylist()) == {image(i) for i in range(12, 20)}


def test_one_commit_makes_the_cut(make_lake: MakeLake) -> None:
    """Rows of `clusters` come last and together: a run that is killed before leaves the node as it was, uncut."""
    lk = holding(make_lake, islands([12, 8]))
    before = lk.version("clusters")
    made = cluster(lk, method="kmeans", k=2)
    assert lk.version("clusters") == before + 1
    interrupted = {"id": f"{made.tree}/0.0", "tree": made.tree, "node": "0.0", "image_id": image(0)}
    lk.insert("cluster_members", pa.Table.from_pylist([interrupted], schema=lk.dataset("cluster_members").schema))
    again = cluster(lk, node=f"{made.tree}/0", method="kmeans", k=2)
    assert set().union(*members(lk, again).values()) == {image(i) for i in range(12)}


def test_similarity_is_the_cosine_to_the_mean(make_lake: MakeLake) -> None:
    points = islands([30, 10], spread=0.2)
    lk = holding(make_lake, points)
    made = cluster(lk, method="kmeans", k=2)
    known = {image(i): points[i] for i in range(len(points))}
    for path in ("", "0", "1"):
        rows = lk.scan("cluster_members", ["image_id", "similarity", "assigned_at"], f"id = '{made.tree}/{path}'")
        assert rows["assigned_at"].null_count == rows.num_rows
        inside = np.stack([known[name] for name in rows["image_id"].to_pylist()])
        centre = inside.mean(axis=0) / np.linalg.norm(inside.mean(axis=0))
        assert np.allclose(rows["similarity"], inside @ centre, atol=1e-6)
    node = made.nodes[0]
    inside = sorted(members(lk, made)["0"], key=lambda name: (rows_of(lk, made, "0")[name], name))
    assert node.borderline == inside[:6]


def rows_of(lk: Lake, made: Tree, path: str) -> dict[str, float]:
    rows = lk.scan("cluster_members", ["image_id", "similarity"], f"id = '{made.tree}/{path}'")
    return dict(zip(rows["image_id"].to_pylist(), rows["similarity"].to_pylist(), strict=True))


MOMENT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def test_a_node_tells_what_is_known_of_its_answers(make_lake: MakeLake) -> None:
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
    made = cluster(lk, method="kmeans", k=2)
    ships = made.nodes[0].contents
    assert (ships.answers, ships.known, ships.wrong) == (12, 9, 7)
    assert ships.errors == [image(i) for i in (6, 5, 4, 3, 2, 1)]
    assert ships.confidence == pytest.approx(np.mean(np.arange(12) / 100))
    assert ships.labels == [{"label": "ship", "n": 12}]
    assert (ships.first_at, ships.last_at) == (MOMENT, MOMENT + dt.timedelta(days=11))
    assert made.nodes[0].suggested == "site A, answered ship"
    assert made.nodes[1].suggested == "car, site B"
    stored = lk.sql(f"SELECT * FROM clusters WHERE id = '{made.tree}/0'").to_pylist()[0]
    assert (stored["known"], stored["wrong"], stored["errors"]) == (9, 7, ships.errors)
    assert json.loads(stored["labels"]) == ships.labels
    assert (stored["first_at"], stored["suggested"]) == (MOMENT, "site A, answered ship")
    root = lk.sql(f"SELECT * FROM clusters WHERE id = '{made.tree}/'").to_pylist()[0]
    assert (root["answers"], root["known"], root["wrong"], root["suggested"]) == (20, 10, 7, None)


class Texts:
    """`left` points along the first axis, `right` along the second."""

    def embed_texts(self, texts: Any) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[[["left", "right"].index(one) for one in texts]]


def test_words_name_what_nothing_else_names(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([12, 8]))
    made = cluster(lk, method="kmeans", k=2, words=["right", "left"], model=Texts())
    assert [n.suggested for n in made.nodes] == ["left", "right"]


def test_a_slice_can_be_clustered(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([12, 8]))
    slices.create(lk, "some", ids=[str(uuid.UUID(int=i)) for i in range(4, 16)])
    made = cluster(lk, slice="some", method="kmeans", k=2)
    assert set().union(*members(lk, made).values()) == {image(i) for i in range(4, 16)}
    (root,) = trees(lk)
    assert (root.tree, root.slice, root.where, root.size, root.nodes) == (made.tree, "some@1", None, 12, 3)


def test_a_name_survives_cuts_of_other_nodes(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([20, 15, 10]))
    made = cluster(lk, method="kmeans", k=3)
    rename(lk, f"{made.tree}/1", " odd ones ")
    cluster(lk, node=f"{made.tree}/0", method="kmeans", k=2)
    cluster(lk, node=f"{made.tree}/1", method="kmeans", k=2)
    names = lk.sql("SELECT node, name, noise_share FROM clusters WHERE name IS NOT NULL").to_pylist()
    assert names == [{"node": "1", "name": "odd ones", "noise_share": 0.0}]
    rename(lk, f"{made.tree}/1", "")
    assert lk.sql("SELECT count(name) AS n FROM clusters")["n"].to_pylist() == [0]
    with pytest.raises(BadInput, match="printable"):
        rename(lk, f"{made.tree}/1", "x" * 101)
    with pytest.raises(BadInput, match="no node"):
        rename(lk, f"{made.tree}/7", "x")


def test_a_cut_can_be_undone(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([20, 15]))
    made = cluster(lk, method="kmeans", k=2)
    cluster(lk, node=f"{made.tree}/0", method="kmeans", k=2)
    cluster(lk, node=f"{made.tree}/0.1", method="kmeans", k=2)
    assert uncut(lk, f"{made.tree}/0") == 4
    assert sorted(lk.sql("SELECT node FROM clusters")["node"].to_pylist()) == ["", "0", "1"]
    assert sorted(lk.sql("SELECT DISTINCT node FROM cluster_members")["node"].to_pylist()) == ["", "0", "1"]
    assert lk.sql("SELECT noise_share FROM clusters WHERE node = '0'")["noise_share"].to_pylist() == [None]
    with pytest.raises(BadInput, match="was not opened"):
        uncut(lk, f"{made.tree}/0")


def test_a_sweep_shows_cliffs_and_saves_nothing(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([40, 20, 9]))
    made = cluster(lk, method="kmeans", k=2)
    before = lk.version("clusters"), lk.version("cluster_members")
    cuts = sweep(lk, node=f"{made.tree}/", sizes=[5, 15, 30])
    assert [(c.params["min_cluster_size"], c.clusters) for c in cuts] == [(5, 3), (15, 2), (30, 0)]
    assert [c.noise_share for c in cuts] == pytest.approx([0, 9 / 69, 1])
    assert cuts[0].largest_share == pytest.approx(40 / 69)
    assert 0 < (cuts[0].persistence or 0) <= 1
    assert cuts[2].persistence is None
    assert len(sweep(lk, node=f"{made.tree}/")) >= 3
    assert (lk.version("clusters"), lk.version("cluster_members")) == before
    with pytest.raises(BadInput, match="sizes are"):
        sweep(lk, node=f"{made.tree}/", sizes=[70])


def test_methods_are_compared_with_the_first(make_lake: MakeLake) -> None:
    lk = holding(make_lake, islands([40, 20]))
    made = cluster(lk, method="kmeans", k=2)
    one, two = compare(lk, f"{made.tree}/", ["hdbscan", "kmeans"], k=2)
    assert (one.method, one.clusters, one.agreement) == ("hdbscan", 2, None)
    assert (two.method, two.clusters, two.agreement) == ("kmeans", 2, pytest.approx(1.0))
    with pytest.raises(BadInput, match="which methods"):
        compare(lk, f"{made.tree}/", [])


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of 40 images with two trees' worth of structure, to copy."""
    from lake import open_lake

    place = tmp_path_factory.mktemp("grown") / "lake"
    open_lake.create(str(place), embedders=["random"])

    def make(name: str, embedders: Any) -> Lake:
        return open_lake.open(str(place))

    holding(make, islands([14, 10, 8], strays=8, spread=0.1))
    return place


@settings(max_examples=6)
@given(
    deeds=st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from(["kmeans", "hdbscan", "uncut"]), st.integers(2, 4)), max_size=3
    )
)
def test_any_cuts_keep_every_image_once(grown: Path, tmp_path_factory: pytest.TempPathFactory, deeds: Any) -> None:
    from lake import open_lake

    place = tmp_path_factory.mktemp("cuts") / "lake"
    shutil.copytree(grown, place)
    lk = open_lake.open(str(place))
    tree = cluster(lk, method="kmeans", k=3).tree
    for which, deed, size in deeds:
        nodes = sorted(lk.sql("SELECT id FROM clusters WHERE size >= 5")["id"].to_pylist())
        node = nodes[which % len(nodes)]
        if deed != "uncut":
            how: Any = {"k": size} if deed == "kmeans" else {"min_cluster_size": size}
            cluster(lk, node=node, method=deed, **how)
        elif node.partition("/")[2] in lk.sql("SELECT parent FROM clusters")["parent"].to_pylist():
            uncut(lk, node)
    rows = lk.sql("SELECT node, parent, size, noise_share FROM clusters").to_pylist()
    held = {
        row["node"]: lk.scan("cluster_members", ["image_id"], f"id = '{tree}/{row['node']}'")["image_id"].to_pylist()
        for row in rows
    }
    assert set(lk.scan("cluster_members", ["node"])["node"].to_pylist()) == set(held)
    for row in rows:
        inside = held[row["node"]]
        assert len(inside) == len(set(inside)) == row["size"]
        below = [name for child in rows if child["parent"] == row["node"] for name in held[child["node"]]]
        if below:
            assert sorted(below) == sorted(inside)
        assert (row["noise_share"] is not None) == bool(below)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """`lakeloop WORDS --json`, with the commands of this module only."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--lake")
    common.add_argument("--json", action="store_true")
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()

    def add_command(name: str, command: Any, help: str, to: Any = None) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = (to or commands).add_parser(name, parents=[common], help=help)
        made.set_defaults(run=command)
        return made

    clustering.register(add_command)
    capsys.readouterr()
    given_ = parser.parse_args([*words, "--json"])
    assert given_.run(given_) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_says_all_of_it(make_lake: MakeLake, capsys: pytest.CaptureFixture[str]) -> None:
    lk = holding(make_lake, islands([20, 12]))
    made = run(capsys, "cluster", "--lake", lk.uri, "--method", "kmeans", "-k", "2")
    assert {"tree", "nodes", "seconds", "method", "remark", "embedder"} == set(made)
    assert [(n["path"], n["size"], n["noise"], len(n["medoids"])) for n in made["nodes"]] == [
        ("0", 20, False, 12),
        ("1", 12, False, 12),
    ]
    top = f"{made['tree']}/"
    assert len(run(capsys, "cluster", "sweep", "--lake", lk.uri, "--node", top)["cuts"]) >= 2
    compared = run(
        capsys, "cluster", "compare", "--lake", lk.uri, "--node", top, "--method", "hdbscan", "--method", "kmeans"
    )
    assert [c["method"] for c in compared["cuts"]] == ["hdbscan", "kmeans"]
    assert run(capsys, "cluster", "rename", "--lake", lk.uri, "--node", f"{top}0", "big")["name"] == "big"
    assert run(capsys, "cluster", "list", "--lake", lk.uri)["trees"][0]["size"] == 32
    add(lk, [{"image_id": image("new"), "timestamp": MOMENT}])
    store_vectors(lk, "emb_random", {image("new"): islands([1])[0]})
    assert run(capsys, "cluster", "assign", "--lake", lk.uri, "--tree", made["tree"])["nodes"] == {"": 1, "0": 1}
    days = run(capsys, "cluster", "volume", "--lake", lk.uri, "--tree", made["tree"])["days"]
    assert [(d["node"], d["day"], d["answers"], d["assigned"]) for d in days] == [
        ("", "2026-03-01", 1, 1),
        ("0", "2026-03-01", 1, 1),
    ]
    assert run(capsys, "cluster", "uncut", "--lake", lk.uri, "--node", top)["nodes"] == 2
    written = lk.sql("SELECT action FROM audit ORDER BY timestamp")["action"].to_pylist()
    assert written == ["cluster", "cluster rename", "cluster assign", "cluster uncut"]
