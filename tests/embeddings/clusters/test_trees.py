"""Stored trees: names, undo, and every image once after any cuts; the commands."""

import argparse
import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.backfill.vector_columns import store_vectors
from embeddings.clusters.drilldown import cluster
from embeddings.clusters.trees import rename, uncut
from lake.errors import BadInput
from lake.open_lake import OpenLake
from search_app.cli.embeddings import cluster as clustering
from tests.conftest import MakeLake
from tests.embeddings.islands import islands, lake_of
from tests.lake.prediction_rows import add, image

MOMENT = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of 40 images with two trees' worth of structure, to copy."""
    from lake import open_lake

    path = tmp_path_factory.mktemp("grown") / "lake"
    open_lake.create(str(path), embedders=["random"])

    def make(name: str, embedders: Any) -> OpenLake:
        return open_lake.open(str(path))

    lake_of(make, islands([14, 10, 8], strays=8, spread=0.1))
    return path


@settings(max_examples=6)
@given(
    actions=st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from(["kmeans", "hdbscan", "uncut"]), st.integers(2, 4)), max_size=3
    )
)
def test_any_cuts_keep_every_image_once(grown: Path, tmp_path_factory: pytest.TempPathFactory, actions: Any) -> None:
    from lake import open_lake

    path = tmp_path_factory.mktemp("cuts") / "lake"
    shutil.copytree(grown, path)
    lk = open_lake.open(str(path))
    tree = cluster(lk, method="kmeans", k=3).tree
    for which, deed, size in actions:
        nodes = sorted(lk.sql("SELECT id FROM clusters WHERE size >= 5")["id"].to_pylist())
        node = nodes[which % len(nodes)]
        if deed != "uncut":
            options: Any = {"k": size} if deed == "kmeans" else {"min_cluster_size": size}
            cluster(lk, node=node, method=deed, **options)
        elif node.partition("/")[2] in lk.sql("SELECT parent FROM clusters")["parent"].to_pylist():
            uncut(lk, node)
    rows = lk.sql("SELECT node, parent, size, noise_share FROM clusters").to_pylist()
    members_of = {
        row["node"]: lk.scan("cluster_members", ["image_id"], f"id = '{tree}/{row['node']}'")["image_id"].to_pylist()
        for row in rows
    }
    assert set(lk.scan("cluster_members", ["node"])["node"].to_pylist()) == set(members_of)
    for row in rows:
        inside = members_of[row["node"]]
        assert len(inside) == len(set(inside)) == row["size"]
        below = [name for child in rows if child["parent"] == row["node"] for name in members_of[child["node"]]]
        if below:
            assert sorted(below) == sorted(inside)
        assert (row["noise_share"] is not None) == bool(below)


def test_a_name_survives_cuts_of_other_nodes(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 15, 10]))
    tree = cluster(lk, method="kmeans", k=3)
    rename(lk, f"{tree.tree}/1", " odd ones ")
    cluster(lk, node=f"{tree.tree}/0", method="kmeans", k=2)
    cluster(lk, node=f"{tree.tree}/1", method="kmeans", k=2)
    names = lk.sql("SELECT node, name, noise_share FROM clusters WHERE name IS NOT NULL").to_pylist()
    assert names == [{"node": "1", "name": "odd ones", "noise_share": 0.0}]
    rename(lk, f"{tree.tree}/1", "")
    assert lk.sql("SELECT count(name) AS n FROM clusters")["n"].to_pylist() == [0]
    with pytest.raises(BadInput, match="printable"):
        rename(lk, f"{tree.tree}/1", "x" * 101)
    with pytest.raises(BadInput, match="no node"):
        rename(lk, f"{tree.tree}/7", "x")


def test_a_cut_can_be_undone(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 15]))
    tree = cluster(lk, method="kmeans", k=2)
    cluster(lk, node=f"{tree.tree}/0", method="kmeans", k=2)
    cluster(lk, node=f"{tree.tree}/0.1", method="kmeans", k=2)
    assert uncut(lk, f"{tree.tree}/0") == 4
    assert sorted(lk.sql("SELECT node FROM clusters")["node"].to_pylist()) == ["", "0", "1"]
    assert sorted(lk.sql("SELECT DISTINCT node FROM cluster_members")["node"].to_pylist()) == ["", "0", "1"]
    assert lk.sql("SELECT noise_share FROM clusters WHERE node = '0'")["noise_share"].to_pylist() == [None]
    with pytest.raises(BadInput, match="was not opened"):
        uncut(lk, f"{tree.tree}/0")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """`lakeloop WORDS --json`, with the commands of this module only."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--lake")
    common.add_argument("--json", action="store_true")
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()

    def add_command(
        name: str, command: Any, help: str, to: Any = None, writes: bool = False
    ) -> argparse.ArgumentParser:
        command_parser: argparse.ArgumentParser = (to or commands).add_parser(name, parents=[common], help=help)
        command_parser.set_defaults(run=command, writes=writes)
        return command_parser

    clustering.register(add_command)
    capsys.readouterr()
    given_ = parser.parse_args([*words, "--json"])
    assert given_.run(given_) == 0
    return json.loads(capsys.readouterr().out)


def test_the_commands(make_lake: MakeLake, capsys: pytest.CaptureFixture[str]) -> None:
    lk = lake_of(make_lake, islands([20, 12]))
    output = run(capsys, "cluster", "--lake", lk.uri, "--method", "kmeans", "-k", "2")
    assert {"tree", "nodes", "seconds", "method", "remark", "embedder"} == set(output)
    assert [(n["path"], n["size"], n["noise"], len(n["medoids"])) for n in output["nodes"]] == [
        ("0", 20, False, 12),
        ("1", 12, False, 12),
    ]
    top = f"{output['tree']}/"
    assert len(run(capsys, "cluster", "sweep", "--lake", lk.uri, "--node", top)["cuts"]) >= 2
    compared = run(
        capsys, "cluster", "compare", "--lake", lk.uri, "--node", top, "--method", "hdbscan", "--method", "kmeans"
    )
    assert [c["method"] for c in compared["cuts"]] == ["hdbscan", "kmeans"]
    assert run(capsys, "cluster", "rename", "--lake", lk.uri, "--node", f"{top}0", "big")["name"] == "big"
    assert run(capsys, "cluster", "list", "--lake", lk.uri)["trees"][0]["size"] == 32
    add(lk, [{"image_id": image("new"), "timestamp": MOMENT}])
    store_vectors(lk, "emb_random", {image("new"): islands([1])[0]})
    assert run(capsys, "cluster", "assign", "--lake", lk.uri, "--tree", output["tree"])["nodes"] == {"": 1, "0": 1}
    days = run(capsys, "cluster", "volume", "--lake", lk.uri, "--tree", output["tree"])["days"]
    assert [(d["node"], d["day"], d["predictions"], d["assigned"]) for d in days] == [
        ("", "2026-03-01", 1, 1),
        ("0", "2026-03-01", 1, 1),
    ]
    assert run(capsys, "cluster", "uncut", "--lake", lk.uri, "--node", top)["nodes"] == 2
    written = lk.sql("SELECT action FROM audit ORDER BY timestamp")["action"].to_pylist()
    assert written == ["cluster", "cluster rename", "cluster assign", "cluster uncut"]
