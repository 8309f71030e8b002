"""Nodes of drill-down trees by id TREE/PATH: their images, and the embedder they were clustered with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lake.errors import BadInput

if TYPE_CHECKING:
    from lake.storage.store import Lake

NODE_FORM = "a node is TREE/PATH, e.g. 1f0c2a9b/0.3 (the root: 1f0c2a9b/); the table clusters names them"


def members(lake: Lake, nodes: Sequence[str]) -> list[str]:
    """image_ids in any of the nodes, each once, sorted. Raises BadInput without nodes and for an unknown node."""
    if not nodes:
        raise BadInput(f"which node? {NODE_FORM}")
    rows = lake.look_up("cluster_members", ["id", "image_id"], "id", [*dict.fromkeys(nodes)])
    known = set(rows["id"].to_pylist())
    for node in nodes:
        if node not in known:
            raise BadInput(f"no node {node!r}; {NODE_FORM}")
    return sorted(set(rows["image_id"].to_pylist()))


def embedder(lake: Lake, node: str) -> str:
    """Name of the embedder whose vectors were clustered. Raises BadInput for an unknown node."""
    rows = lake.look_up("clusters", ["embedder"], "id", [node])
    if "/" not in node or not rows.num_rows:
        raise BadInput(f"no node {node!r}; {NODE_FORM}")
    return str(rows["embedder"][0].as_py())
