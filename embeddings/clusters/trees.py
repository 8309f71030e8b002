"""Stored drill-down trees: nodes and members, in the tables `clusters` and `cluster_members`.

A node's path is its place in the tree: "" is the root, "0.3" the fourth child of the first child. A node's children
partition it; noise is a child of its own, marked and last. `drilldown.py` makes the nodes.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embeddings.clusters.cluster_summary import ClusterSummary
from embeddings.embedders import embedder as embedders
from lake.errors import BadInput
from lake.slices import cluster_nodes
from lake.storage import schema, store
from lake.storage.store import literal
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    import numpy as np

    from lake.storage.store import EmbedderRecord, Lake

MAX_NAME = 100


@dataclass(frozen=True)
class ClusterNode:
    """One cluster; the fields are the columns of `clusters` with the same names.

    `medoids`: image_ids nearest to its centre, the nearest first; `borderline`: those that fit least, the worst first
    (of HDBSCAN's noise: those with the highest GLOSH score); `noise`: whether it has the images of no cluster.
    """

    path: str
    parent: str
    size: int
    noise: bool
    method: str
    compactness: float
    medoids: list[str]
    borderline: list[str]
    persistence: float | None = None
    summary: ClusterSummary = field(default_factory=ClusterSummary)
    suggested: str | None = None
    name: str | None = None

    def facts(self) -> dict[str, Any]:
        """All fields, those of the summary too, on one level; JSON values except the times."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "summary"}
        summary = [name for name in ClusterSummary.__dataclass_fields__ if name != "values"]
        return own | {name: getattr(self.summary, name) for name in summary}


@dataclass(frozen=True)
class TreeSummary:
    """A tree of the lake. `where`, `slice`: the images it was made of; `nodes`: their number, with the root."""

    tree: str
    embedder: str
    where: str | None
    slice: str | None
    size: int
    nodes: int
    name: str | None
    created_at: dt.datetime


def trees(lake: Lake) -> list[TreeSummary]:
    """Every tree of the lake, the newest first."""
    rows = lake.dataset("clusters").to_table(
        columns=["tree", "node", "embedder", "where", "params", "size", "name", "created_at"]
    )
    node_counts: dict[str, int] = {}
    for tree in rows["tree"].to_pylist():
        node_counts[tree] = node_counts.get(tree, 0) + 1
    summaries = [
        TreeSummary(
            row["tree"],
            row["embedder"],
            row["where"],
            json.loads(row["params"] or "{}").get("slice"),
            row["size"],
            node_counts[row["tree"]],
            row["name"],
            row["created_at"],
        )
        for row in rows.to_pylist()
        if row["node"] == ""
    ]
    return sorted(summaries, key=lambda tree: (tree.created_at, tree.tree), reverse=True)


def find(lake: Lake, node: str) -> tuple[str, str, EmbedderRecord]:
    """Tree, path and embedder of a node TREE/PATH. Raises BadInput if the lake does not have it."""
    record = embedders.record_of(lake, cluster_nodes.embedder(lake, node))
    tree, _, path = node.partition("/")
    return tree, path, record


def members(lake: Lake, record: EmbedderRecord, node: str) -> tuple[list[str], np.ndarray]:
    """A node's images that still have a vector, sorted, and their vectors, float32 (n, dim)."""
    return image_vectors(lake, record, cluster_nodes.members(lake, [node]))


def rename(lake: Lake, node: str, name: str | None) -> None:
    """Names a node, with up to 100 characters; None or "" removes the name. Raises BadInput for any other name."""
    find(lake, node)
    name = (name or "").strip()
    if len(name) > MAX_NAME or not name.isprintable():
        raise BadInput(f"name {name[:40]!r}: use up to {MAX_NAME} printable characters")
    _update(lake, node, {"name": name or None})


def uncut(lake: Lake, node: str) -> int:
    """Removes everything below a node; the node stays. Returns how many nodes were removed.

    Raises BadInput if the lake does not have the node, or if nothing is below it.
    """
    tree, path, _ = find(lake, node)
    count = int(lake.dataset("clusters").count_rows(filter=_below(tree, path)))
    if not count:
        raise BadInput(f"node {node!r} was not opened; there is nothing to undo")
    lake.delete("clusters", _below(tree, path))
    _update(lake, node, {"noise_share": None})
    lake.delete("cluster_members", _below(tree, path))
    return count


def node_row(node: ClusterNode, origin: dict[str, Any]) -> dict[str, Any]:
    """The node's row of `clusters`; `origin` has the columns that say how the node was made."""
    facts = node.facts()
    facts["labels"] = json.dumps(facts["labels"], ensure_ascii=False)
    facts |= {"id": f"{origin['tree']}/{node.path}", "node": node.path, "created_at": store.now()}
    return facts | origin


def stored_row(lake: Lake, node: str) -> dict[str, Any]:
    """The row of `clusters` of a node TREE/PATH that exists."""
    row: dict[str, Any] = lake.dataset("clusters").to_table(filter=f"id = {literal(node)}").to_pylist()[0]
    return row


def save_nodes(lake: Lake, rows: list[dict[str, Any]]) -> None:
    """Writes rows of `clusters`, replacing those of the same nodes."""
    lake.update("clusters", pa.Table.from_pylist(rows, schema=schema.CLUSTERS.arrow()))


def replace_members_below(
    lake: Lake, tree: str, path: str, paths: list[str], names: list[str], nodes: np.ndarray, similarity: np.ndarray
) -> None:
    """Removes what is below a node, and inserts its new children's members.

    Rows of nodes go first; the new members come before their nodes' rows, which are the commit.
    """
    if lake.dataset("clusters").count_rows(filter=_below(tree, path)):
        lake.delete("clusters", _below(tree, path))
    # An interrupted clustering may have left members without rows of nodes.
    if lake.dataset("cluster_members").count_rows(filter=_below(tree, path)):
        lake.delete("cluster_members", _below(tree, path))
    insert_members(lake, tree, paths, names, nodes, similarity)


def insert_members(
    lake: Lake, tree: str, paths: list[str], names: list[str], nodes: np.ndarray, similarity: np.ndarray
) -> None:
    """Inserts images as members; `nodes[i]` is the index in `paths` of the node of `names[i]`."""
    node_of = pa.array(nodes)
    columns = {
        "id": pa.array([f"{tree}/{path}" for path in paths], pa.string()).take(node_of),
        "tree": pa.repeat(pa.scalar(tree, pa.string()), len(names)),
        "node": pa.array(paths, pa.string()).take(node_of),
        "image_id": pa.array(names, pa.string()),
        "similarity": pa.array(similarity, pa.float32()),
        "assigned_at": pa.nulls(len(names), schema.UTC),
    }
    lake.insert("cluster_members", pa.table(columns, schema=schema.CLUSTER_MEMBERS.arrow()))


def _below(tree: str, path: str) -> str:
    """The Lance filter of all nodes below a node."""
    prefix = f"{path}." if path else ""
    return f"tree = {literal(tree)} AND node <> '' AND starts_with(node, {literal(prefix)})"


def _update(lake: Lake, node: str, columns: dict[str, Any]) -> None:
    save_nodes(lake, [stored_row(lake, node) | columns])
