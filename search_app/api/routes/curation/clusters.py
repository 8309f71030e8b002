"""/v1/clusters: the trees of clusters, their nodes and members; opening a node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from lake.slices import cluster_nodes
from lake.sql.tables import plain
from search_app.api import schemas, writes
from search_app.api.paging import Cursor, Key, Limit, page
from search_app.api.problems import Problem, not_found
from search_app.api.schemas import TreeId
from search_app.api.writes import Body

if TYPE_CHECKING:
    from search_app.api.service import Service
    from search_app.api.writes import Audit, Writes

PATH = "/v1/clusters"
# 50,000 points took 13 s on two cores (docs/architecture.md). A job of the kind cluster takes any number.
MOST_OPENED = 20_000
MOST_MEMBERS = 10_000
_HEX = "2a0986669d4b1c0b7f3e5a9c8d7e6f504132241506f7e8d9cabbac9d8e7f6051"
_NODE = {"node": "0.3", "parent": "0", "size": 214, "noise": False, "medoids": [_HEX], "suggested": "cracked"}
_TREE = {"tree": "1f0c2a9b", "embedder": "efficientnet-lite0", "size": 1_204, "nodes": 9, "name": None}
NodePath = Annotated[
    str, Query(pattern=r"^([0-9]{1,6}(\.[0-9]{1,6}){0,40})?$", description="path of the node; empty: the root")
]


class OpenNode(Body):
    """How to open a node: its images are clustered again, and replace what is below it."""

    node: str = Field(default="", pattern=r"^([0-9]{1,6}(\.[0-9]{1,6}){0,40})?$", description="empty: the root")
    method: Literal["auto", "kmeans", "hdbscan", "evoc"] = "auto"
    k: int | None = Field(default=None, ge=2, le=1_000, description="number of k-means clusters")
    min_cluster_size: int | None = Field(default=None, ge=2, le=100_000, description="smallest cluster of HDBSCAN")
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


def routes(service: Service, writer: Writes) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses=schemas.page_of(_TREE))
    def trees(limit: Limit = 100, cursor: Cursor = None) -> dict[str, Any]:
        """Every tree, the newest first. A job of the kind cluster makes one."""
        from embeddings.clusters import trees

        def key(tree: trees.TreeSummary) -> Key:
            return -round(1e6 * tree.created_at.timestamp()), tree.tree

        part, following = page(sorted(trees.trees(lake), key=key), key, cursor, limit)
        return {"items": [plain(vars(tree)) for tree in part], "next": following}

    @router.get(PATH + "/{tree}", responses=schemas.page_of(_NODE))
    def nodes(tree: TreeId, limit: Limit = 100, cursor: Cursor = None) -> dict[str, Any]:
        """The nodes of a tree, each before those below it: size, medoids, errors, names."""
        rows = lake.look_up("clusters", _columns(), "tree", [tree]).to_pylist()
        if not rows:
            raise _unknown(tree)
        rows.sort(key=_place)
        part, following = page(rows, _place, cursor, limit)
        items = [row | {"labels": json.loads(row["labels"] or "[]")} for row in part]
        return {"items": plain(items), "next": following}

    @router.get(PATH + "/{tree}/members", responses=schemas.page_of(_HEX))
    def members(
        tree: TreeId,
        node: NodePath = "",
        limit: Annotated[int, Query(ge=1, le=MOST_MEMBERS)] = 1_000,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        """image_ids of a node, sorted."""
        with not_found("unknown_node"):
            names = cluster_nodes.members(lake, [f"{tree}/{node}"])
        part, following = page(names, lambda name: (name,), cursor, limit)
        return {"items": part, "next": following}

    @router.post(
        PATH + "/{tree}/open",
        response_class=Response,
        status_code=201,
        openapi_extra=writes.body(OpenNode, {"node": "0.3"}, {"node": "0", "method": "kmeans", "k": 8}),
        responses={
            201: {
                "description": "the nodes below it now",
                "content": schemas.example({"tree": "1f0c2a9b", "method": "hdbscan", "nodes": [_NODE]}),
            }
        },
    )
    async def open_node(tree: TreeId, request: Request) -> Response:
        """Clusters the images of a node again. A node of more than 20,000 images takes a job of the kind cluster."""

        def write(how: OpenNode, audit: Audit) -> dict[str, Any]:
            from embeddings.clusters.drilldown import cluster

            node = f"{tree}/{how.node}"
            with not_found("unknown_node"):
                cluster_nodes.embedder(lake, node)
            size = lake.look_up("clusters", ["size"], "id", [node])["size"][0].as_py()
            if size > MOST_OPENED:
                detail = f"{node} has {size:,} images; a request may open a node of {MOST_OPENED:,}"
                raise Problem(422, "too_many", f"{detail}. Start a job: POST /v1/jobs of the kind cluster")
            options = how.model_dump(exclude={"node"})
            with service.long_work.taken():
                result = cluster(lake, node=node, **options)
            audit("cluster", tree, {"node": node, **options})
            return {
                "tree": result.tree,
                "method": result.method,
                "remark": result.remark,
                "seconds": result.seconds,
                "nodes": [child.facts() for child in result.nodes],
            }

        return await writer.run(request, OpenNode, write, 201)

    def _columns() -> list[str]:
        return [field.name for field in lake.dataset("clusters").schema if field.name not in ("id", "params")]

    return router


def _place(row: dict[str, Any]) -> Key:
    """Orders nodes as a tree is read. The first number keeps the root's key from being empty."""
    return 0, *(int(part) for part in row["node"].split(".") if part)


def _unknown(tree: str) -> Problem:
    return Problem(404, "unknown_tree", f"no tree {tree[:100]!r}; GET {PATH} lists them")
