"""Drill-down: cluster the lake, look at a few images of each cluster, open a node and cluster its members afresh.

The tree is data in the lake (tables `clusters` and `cluster_members`). A node's path says where it is: "" is the root,
"0.3" the fourth child of the first. A node's children partition it; what fitted in no cluster is a child of its own,
marked as noise and last. Projection and clustering are fitted anew for every node: a parent's projection hides what
separates its children. How vectors become clusters is `partition.py`'s business, what answers say of them
`contents.py`'s.
"""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embeddings.clusters import cluster_summary as contents
from embeddings.clusters.cluster_summary import Contents
from embeddings.clusters.clustering import METHODS, Method, Partition, partition
from embeddings.embedders import embedder as embedders
from lake import slices
from lake.errors import BadInput
from lake.slices import cluster_nodes as nodes
from lake.sql import where as filters
from lake.storage import schema, store
from lake.storage.store import literal
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from embeddings.embedders.embedder import TextEmbedder
    from lake.storage.store import EmbedderRecord, Lake

FEWEST = 2
MEDOIDS = 12
BORDERLINE = 6
NAME_MOST = 100

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Node:
    """One cluster; the fields are the columns of `clusters` of the same names.

    `medoids`: image_ids nearest to its centre first; `borderline`: those that fit least, the least first (of noise:
    the most outlying by GLOSH, where HDBSCAN made it); `noise`: it is what fitted nowhere.
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
    contents: Contents = field(default_factory=Contents)
    suggested: str | None = None
    name: str | None = None

    def facts(self) -> dict[str, Any]:
        """All of it on one level, as JSON takes it but for the times."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "contents"}
        return own | {name: getattr(self.contents, name) for name in Contents.__dataclass_fields__ if name != "values"}


@dataclass(frozen=True)
class Tree:
    """What a clustering made: `nodes` are the new ones, `method` was used in the end, `remark` says why."""

    tree: str
    embedder: str
    method: str
    nodes: list[Node]
    seconds: float
    remark: str | None = None


@dataclass(frozen=True)
class Root:
    """A tree of the lake. `where`, `slice`: what it was made of; `nodes`: how many it has, the root included."""

    tree: str
    embedder: str
    where: str | None
    slice: str | None
    size: int
    nodes: int
    name: str | None
    created_at: dt.datetime


def cluster(
    lake: Lake,
    *,
    embedder: str | None = None,
    where: str | None = None,
    slice: str | None = None,
    node: str | None = None,
    method: Method = "auto",
    k: int | None = None,
    seed: int = 0,
    min_cluster_size: int | None = None,
    words: Sequence[str] = (),
    model: TextEmbedder | None = None,
    progress: Progress | None = None,
) -> Tree:
    """Clusters the lake's images (those that pass `where`, or of `slice`) into a new tree, or the members of `node`.

    `node` is TREE/PATH; opening it again replaces its children and everything below. `k` is k-means' number of
    clusters, `min_cluster_size` HDBSCAN's smallest; see `partition.partition`. The same images, method and seed give
    the same nodes. `words` are names to choose from for nodes, with an embedder of images and text (`model`: that
    embedder, loaded). `progress` is told what begins.
    Raises BadInput for a node that does not exist, too few images with a vector, or arguments that do not fit.
    """
    started = time.perf_counter()
    say = progress or (lambda stage: None)
    if sum(x is not None for x in (where, slice, node)) > 1 or (node is not None and embedder is not None):
        raise BadInput("a node has its own images and embedder: give --node, --slice or --where, and one of them only")
    if method not in METHODS:
        raise BadInput(f"method {method!r} is none of {', '.join(METHODS)}")
    params: dict[str, Any] = {}
    wanted: Sequence[str] | None = None
    if node is not None:
        tree, path, record = find(lake, node)
    else:
        record, tree, path = embedders.record_of(lake, embedder), uuid.uuid4().hex[:8], ""
        if where is not None:
            wanted = filters.images(lake, where)
        elif slice is not None:
            chosen = slices.get(lake, slice)
            wanted, params = slices.members(lake, chosen).to_pylist(), {"slice": chosen.id}
    said = _embedded_words(lake, record, words, model)
    say("reading")
    names, vectors = members(lake, record, node) if node is not None else image_vectors(lake, record, wanted)
    if len(names) < FEWEST:
        raise BadInput(f"{len(names)} images with a {record.name} vector are too few to cluster; {FEWEST} are needed")
    found = partition(vectors, method, k, seed, min_cluster_size, progress)
    say("looking into the clusters")
    places, nodes = _nodes(path, found, names, vectors)
    similarity = _similarity(vectors, places)
    whole = _centred("", None, np.arange(len(names)), False, "root", names, vectors, None)
    *inside, around = contents.of(lake, names, places, len(nodes))
    suggested = [contents.suggest(one, around) for one in inside]
    if said is not None:
        nearest = _nearest_words(said, words, vectors, places, len(nodes))
        suggested = [name or word for name, word in zip(suggested, nearest, strict=True)]
    nodes = [replace(one, contents=c, suggested=name) for one, c, name in zip(nodes, inside, suggested, strict=True)]
    say("saving")
    origin = {"tree": tree, "embedder": record.name, "predictions_version": lake.version("predictions"), "seed": seed}
    parent = None
    if node is None:
        _insert_members(lake, tree, [""], names, np.zeros(len(names), np.int64), _similarity(vectors, None))
        made = {"where": where, "params": json.dumps(params, sort_keys=True) if params else None, "parent": None}
        parent = _row(replace(whole, contents=around), origin | made)
    _replace_below(lake, tree, path, [n.path for n in nodes], names, places, similarity)
    made = {"where": None, "params": json.dumps(found.params, sort_keys=True), "parent": path}
    # Read as late as can be: somebody may have named it meanwhile.
    parent = parent or lake.dataset("clusters").to_table(filter=f"id = {literal(f'{tree}/{path}')}").to_pylist()[0]
    parent |= {"noise_share": found.noise_share}
    rows = [parent, *(_row(n, origin | made) for n in nodes)]
    lake.update("clusters", pa.Table.from_pylist(rows, schema=schema.CLUSTERS.arrow()))
    return Tree(tree, record.name, found.method, nodes, time.perf_counter() - started, found.remark)


def rename(lake: Lake, node: str, name: str | None) -> None:
    """Gives a node a person's name, up to 100 characters; None or "" takes it away. Raises BadInput."""
    find(lake, node)
    wanted = (name or "").strip()
    if len(wanted) > NAME_MOST or not wanted.isprintable():
        raise BadInput(f"name {wanted[:40]!r}: use up to {NAME_MOST} printable characters")
    _set(lake, node, {"name": wanted or None})


def uncut(lake: Lake, node: str) -> int:
    """Takes the last cut of a node back: everything below it goes, the node stays. Returns how many nodes went.

    Raises BadInput when there is no such node, or nothing below it.
    """
    tree, path, _ = find(lake, node)
    went = int(lake.dataset("clusters").count_rows(filter=_below(tree, path)))
    if not went:
        raise BadInput(f"node {node!r} was not opened; there is nothing to undo")
    lake.delete("clusters", _below(tree, path))
    _set(lake, node, {"noise_share": None})
    lake.delete("cluster_members", _below(tree, path))
    return went


def trees(lake: Lake) -> list[Root]:
    """Every tree of the lake, the newest first."""
    rows = lake.dataset("clusters").to_table(
        columns=["tree", "node", "embedder", "where", "params", "size", "name", "created_at"]
    )
    count: dict[str, int] = {}
    for tree in rows["tree"].to_pylist():
        count[tree] = count.get(tree, 0) + 1
    found = [
        Root(
            row["tree"],
            row["embedder"],
            row["where"],
            json.loads(row["params"] or "{}").get("slice"),
            row["size"],
            count[row["tree"]],
            row["name"],
            row["created_at"],
        )
        for row in rows.to_pylist()
        if row["node"] == ""
    ]
    return sorted(found, key=lambda root: (root.created_at, root.tree), reverse=True)


def find(lake: Lake, node: str) -> tuple[str, str, EmbedderRecord]:
    """Tree, path and embedder of a node TREE/PATH. Raises BadInput when there is none such."""
    record = embedders.record_of(lake, nodes.embedder(lake, node))
    tree, _, path = node.partition("/")
    return tree, path, record


def members(lake: Lake, record: EmbedderRecord, node: str) -> tuple[list[str], np.ndarray]:
    """A node's images that still have a vector, by id, and their vectors, float32 (n, dim)."""
    return image_vectors(lake, record, nodes.members(lake, [node]))


def _nodes(path: str, found: Partition, names: list[str], vectors: np.ndarray) -> tuple[np.ndarray, list[Node]]:
    """The index among the nodes of each image, and the nodes: largest first, noise last, ties by who comes first."""
    labels, first, places, counts = np.unique(found.labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -counts, labels < 0))
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels))
    places = rank[places]
    by_place = np.argsort(places, kind="stable")
    groups = np.split(by_place, np.cumsum(counts[order])[:-1])
    nodes = []
    for child, (label, inside) in enumerate(zip(labels[order].tolist(), groups, strict=True)):
        outlying = found.outlying[inside] if label < 0 and found.outlying is not None else None
        one = _centred(path, child, inside, label < 0, found.method, names, vectors, outlying)
        held = found.persistence[label] if 0 <= label < len(found.persistence) else None
        nodes.append(replace(one, persistence=held))
    return places, nodes


def _centred(
    parent: str,
    child: int | None,
    inside: np.ndarray,
    noise: bool,
    method: str,
    names: list[str],
    vectors: np.ndarray,
    outlying: np.ndarray | None,
) -> Node:
    """A node of the images at `inside`, with those that are most and least of its kind."""
    cosines = _cosines(vectors[inside])
    nearest = inside[np.argsort(-cosines, kind="stable")[:MEDOIDS]]
    least = inside[np.argsort(cosines if outlying is None else -outlying, kind="stable")[:BORDERLINE]]
    path = "" if child is None else f"{parent}.{child}" if parent else str(child)
    return Node(
        path,
        parent,
        len(inside),
        noise,
        method,
        float(cosines.mean()),
        [names[i] for i in nearest.tolist()],
        [names[i] for i in least.tolist()],
    )


def _cosines(inside: np.ndarray) -> np.ndarray:
    """Cosine (n,) of unit vectors (n, dim) to their mean; 0 where that is nought."""
    centre = inside.mean(axis=0)
    length = float(np.linalg.norm(centre))
    found: np.ndarray = np.clip(inside @ (centre / length if length else centre), -1, 1)
    return found


def _similarity(vectors: np.ndarray, places: np.ndarray | None) -> np.ndarray:
    """Cosine (n,) of each vector to the mean of its own place's; all are of one place when None."""
    if places is None:
        return _cosines(vectors)
    found = np.empty(len(vectors), np.float32)
    order = np.argsort(places, kind="stable")
    for inside in np.split(order, np.cumsum(np.bincount(places))[:-1]):
        found[inside] = _cosines(vectors[inside])
    return found


def _embedded_words(
    lake: Lake, record: EmbedderRecord, words: Sequence[str], model: TextEmbedder | None
) -> np.ndarray | None:
    if not words:
        return None
    if model is None:
        if not record.embeds_text:
            raise BadInput(f"{record.name} embeds images only; words need a CLIP embedder, e.g. clip-vit-b-32")
        loaded = embedders.for_lake(lake, record)
        assert isinstance(loaded, embedders.TextEmbedder)
        model = loaded
    return model.embed_texts(list(words))


def _nearest_words(
    said: np.ndarray, words: Sequence[str], vectors: np.ndarray, places: np.ndarray, count: int
) -> list[str]:
    """For each place the word that says best what its images have and the others have not."""
    whole = vectors.mean(axis=0)
    apart = np.stack([vectors[places == place].mean(axis=0) - whole for place in range(count)])
    best = np.argmax((apart if count > 1 else apart + whole) @ said.T, axis=1)
    return [words[i] for i in best.tolist()]


def _below(tree: str, path: str) -> str:
    """The Lance filter of all nodes below one."""
    below = f"{path}." if path else ""
    return f"tree = {literal(tree)} AND node <> '' AND starts_with(node, {literal(below)})"


def _replace_below(
    lake: Lake,
    tree: str,
    path: str,
    paths: list[str],
    names: list[str],
    places: np.ndarray,
    similarity: np.ndarray,
) -> None:
    """What was below goes, rows of nodes first; new members come before their nodes' rows, which are the commit."""
    if lake.dataset("clusters").count_rows(filter=_below(tree, path)):
        lake.delete("clusters", _below(tree, path))
    # Also of a cut that was interrupted before its rows were written.
    if lake.dataset("cluster_members").count_rows(filter=_below(tree, path)):
        lake.delete("cluster_members", _below(tree, path))
    _insert_members(lake, tree, paths, names, places, similarity)


def _insert_members(
    lake: Lake,
    tree: str,
    paths: list[str],
    names: list[str],
    places: np.ndarray,
    similarity: np.ndarray,
    moment: dt.datetime | None = None,
) -> None:
    """`places[i]` is the index in `paths` of the i-th image's node."""
    which = pa.array(places)
    columns = {
        "id": pa.array([f"{tree}/{p}" for p in paths], pa.string()).take(which),
        "tree": pa.repeat(pa.scalar(tree, pa.string()), len(names)),
        "node": pa.array(paths, pa.string()).take(which),
        "image_id": pa.array(names, pa.string()),
        "similarity": pa.array(similarity, pa.float32()),
        "assigned_at": pa.repeat(pa.scalar(moment, schema.UTC), len(names)),
    }
    lake.insert("cluster_members", pa.table(columns, schema=schema.CLUSTER_MEMBERS.arrow()))


def _row(node: Node, origin: dict[str, Any]) -> dict[str, Any]:
    """The node's row of `clusters`."""
    facts = node.facts()
    facts["labels"] = json.dumps(facts["labels"], ensure_ascii=False)
    facts |= {"id": f"{origin['tree']}/{node.path}", "node": node.path, "created_at": store.now()}
    return facts | origin


def _set(lake: Lake, node: str, changed: dict[str, Any]) -> None:
    row = lake.dataset("clusters").to_table(filter=f"id = {literal(node)}").to_pylist()[0] | changed
    lake.update("clusters", pa.Table.from_pylist([row], schema=schema.CLUSTERS.arrow()))
