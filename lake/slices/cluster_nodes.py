"""Nodes of drill-down trees, by their ids TREE/PATH: who is in them, whose vectors made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lake.errors import BadInput

if TYPE_CHECKING:
    from lake.storage.store import Lake

HOW = "a node is TREE/PATH, e.g. 1f0c2a9b/0.3 (the root: 1f0c2a9b/); the table clusters names them"


def members(lake: Lake, nodes: Sequence[str]) -> list[str]:
    """image_ids in any of the nodes, each once, sorted. Raises BadInput for no node and for one that is not there."""
    if not nodes:
        raise BadInput(f"which node? {HOW}")
    found = lake.look_up("cluster_members", ["id", "image_id"], "id", [*dict.fromkeys(nodes)])
    there = set(found["id"].to_pylist())
    for node in nodes:
        if node not in there:
            raise BadInput(f"no node {node!r}; {HOW}")
    return sorted(set(found["image_id"].to_pylist()))


def embedder(lake: Lake, node: str) -> str:
    """Name of the embedder whose vectors were clustered. Raises BadInput for a node that is not there."""
    found = lake.look_up("clusters", ["embedder"], "id", [node])
    if "/" not in node or not found.num_rows:
        raise BadInput(f"no node {node!r}; {HOW}")
    return str(found["embedder"][0].as_py())
