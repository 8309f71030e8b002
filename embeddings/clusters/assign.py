"""Assigns new images to a stored tree's nodes; reports each node's volume and errors by day.

At each opened node, a new image goes to the child that its nearest members vote for, weighted by the inverse square of
their distance. If it is further from its neighbours than the members of that child are from theirs, it goes to the
node's noise; without noise it stays in the node. Earlier members never move, and assigned images are not assigned
again.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embeddings.clusters import trees
from embeddings.vectors.neighbours import nearest, neighbours
from embeddings.vectors.principal_components import PrincipalComponents
from lake import slices
from lake.errors import BadInput
from lake.sql import connections
from lake.sql import where as filters
from lake.storage import schema, store
from lake.storage.store import literal
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from lake.storage.store import EmbedderRecord, Lake

# The usual size of the smallest cluster: more voters would always outvote it.
VOTERS = 5
# An image joins a child up to this quantile of its members' distances to their own neighbours, times this slack.
CUT_QUANTILE = 0.99
CUT_SLACK = 1.1
# FAISS may report a distance of this much between copies of a vector.
ROUNDING = 1e-3
# Of more members a sample votes: of each child by its share, but at least MIN_CHILD_MEMBERS.
MAX_MEMBERS = 50_000
MIN_CHILD_MEMBERS = 200

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Assignment:
    """`images`: the number of new images; `nodes`: path -> how many of them it got, with the root "".

    `none`: how many fit none of an opened node's children and stayed in that node, which counts them.
    `without_vector`: images of the tree's scope that have no vector yet, and so could not be assigned.
    """

    tree: str
    images: int
    nodes: dict[str, int]
    none: int
    without_vector: int
    seconds: float


@dataclass(frozen=True)
class Volume:
    """One node on one day (UTC). `predictions`: its predictions; `known`: those that a label calls right or wrong.

    `error_rate` = wrong / known, None without labels; `assigned`: of the images with predictions on that day, those
    that joined after the node was made.
    """

    node: str
    day: dt.date
    predictions: int
    images: int
    assigned: int
    known: int
    wrong: int
    error_rate: float | None


@dataclass(frozen=True)
class _Voters:
    """The voting members of an opened node.

    `transform`: from vectors to points; `points`: the members', (n, d); `children`: the child each is in, (n,);
    `max_distance`: by child, the greatest mean distance to the neighbours for an image to join it.
    """

    transform: Callable[[np.ndarray], np.ndarray]
    points: np.ndarray
    children: np.ndarray
    max_distance: np.ndarray


def assign(lake: Lake, tree: str, *, seed: int = 0, progress: Progress | None = None) -> Assignment:
    """Assigns the images that arrived since to the nodes of `tree`; running it again adds nothing.

    It assigns only images that pass the tree's filter, or the filter of the slice it was made of. All members are one
    commit of `cluster_members`; sizes in `clusters` follow. Raises BadInput for an unknown tree, or a tree of a slice
    that is a list of images.
    """
    started = time.perf_counter()
    report = progress or (lambda stage: None)
    _, _, record = trees.find(lake, f"{tree}/")
    report("reading")
    names, vectors, without_vector = _new_images(lake, tree, record)
    nodes = lake.scan("clusters", ["node", "parent", "noise"], f"tree = {literal(tree)}").to_pylist()
    children_of: dict[str, list[dict[str, Any]]] = {}
    for node in sorted(nodes, key=lambda row: _order(row["node"])):
        if node["parent"] is not None:
            children_of.setdefault(node["parent"], []).append(node)
    tables: list[pa.Table] = []
    none = 0
    counts: dict[str, int] = {}

    def assign_below(path: str, rows: np.ndarray) -> None:
        nonlocal none
        members, similarity = _similarity(lake, record, tree, path, vectors[rows])
        tables.append(_member_rows(tree, path, [names[i] for i in rows.tolist()], similarity))
        counts[path] = len(rows)
        children = children_of.get(path, [])
        if not children:
            return
        report(f"node {path or 'at the root'}")
        chosen = _vote(lake, tree, children, members, vectors[rows], seed)
        none += int((chosen < 0).sum())
        for number, child in enumerate(children):
            if (chosen == number).any():
                assign_below(child["node"], rows[chosen == number])

    if names:
        assign_below("", np.arange(len(names)))
        lake.insert("cluster_members", pa.concat_tables(tables))
    _recount(lake, tree)
    return Assignment(tree, len(names), counts, none, without_vector, time.perf_counter() - started)


def volume(lake: Lake, tree: str) -> list[Volume]:
    """Predictions and errors of every node on every day; sorted by node, then day.

    Predictions without a time are left out. Raises BadInput for an unknown tree.
    """
    trees.find(lake, f"{tree}/")
    rows = connections.query(lake, VOLUME, [tree]).to_pylist()
    return [Volume(**row) for row in sorted(rows, key=lambda row: (_order(row["node"]), row["day"]))]


VOLUME = """
SELECT m.node, CAST(a.timestamp AS DATE) AS day, count(*) AS predictions, count(DISTINCT a.image_id) AS images,
       count(DISTINCT a.image_id) FILTER (m.assigned_at IS NOT NULL) AS assigned, count(a.correct) AS known,
       count_if(NOT a.correct) AS wrong, count_if(NOT a.correct) / nullif(count(a.correct), 0) AS error_rate
FROM cluster_members m JOIN predictions_labelled a USING (image_id)
WHERE m.tree = ? AND a.timestamp IS NOT NULL
GROUP BY m.node, day
"""


def _order(path: str) -> list[int]:
    return [int(step) for step in path.split(".")] if path else []


def _new_images(lake: Lake, tree: str, record: EmbedderRecord) -> tuple[list[str], np.ndarray, int]:
    """The new images with their vectors, and the number of images in the tree's scope that have no vector."""
    root = next(summary for summary in trees.trees(lake) if summary.tree == tree)
    image_ids = None
    if root.slice is not None:
        slice_ = slices.get(lake, root.slice)
        if slice_.kind != "where":
            raise BadInput(
                f"tree {tree} was made of slice {slice_.id}, a fixed list of images; make a tree with "
                "--where to have new images assigned"
            )
        image_ids = filters.images(lake, slice_.definition)
    elif root.where is not None:
        image_ids = filters.images(lake, root.where)
    names, vectors = image_vectors(lake, record, image_ids)
    every = connections.query(lake, "SELECT count(DISTINCT image_id) AS n FROM samples")["n"][0].as_py()
    without_vector = (every if image_ids is None else len(image_ids)) - len(names)
    members = lake.look_up("cluster_members", ["image_id"], "id", [f"{tree}/"])["image_id"].to_pylist()
    new = ~np.isin(np.asarray(names, str), np.asarray(members, str))
    return [name for name, is_new in zip(names, new.tolist(), strict=True) if is_new], vectors[new], without_vector


def _similarity(
    lake: Lake, record: EmbedderRecord, tree: str, path: str, vectors: np.ndarray
) -> tuple[tuple[list[str], np.ndarray], np.ndarray]:
    """The node's members, and the cosine (m,) of `vectors` to the mean of its first members."""
    node = f"{tree}/{path}"
    members = lake.look_up("cluster_members", ["image_id", "assigned_at"], "id", [node])
    names, vectors_inside = image_vectors(lake, record, members["image_id"].to_pylist())
    first = set(members.filter(members["assigned_at"].is_null())["image_id"].to_pylist())
    is_first = np.array([name in first for name in names], bool)
    centre = vectors_inside[is_first].mean(axis=0) if is_first.any() else np.zeros(vectors.shape[1], np.float32)
    length = float(np.linalg.norm(centre))
    cosine: np.ndarray = np.clip(vectors @ (centre / length if length else centre), -1, 1)
    return (names, vectors_inside), cosine


def _vote(
    lake: Lake,
    tree: str,
    children: list[dict[str, Any]],
    members: tuple[list[str], np.ndarray],
    vectors: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Index in `children` for each of the vectors, -1 for none."""
    voters = _voters(lake, tree, children, members, seed)
    if not len(voters.points):  # all its members were erased
        return np.full(len(vectors), -1)
    k = min(VOTERS, len(voters.points))
    index, distance = nearest(voters.transform(vectors), voters.points, k)
    votes = np.zeros((len(vectors), len(children)))
    weight = 1 / (distance.astype(np.float64) ** 2 + 1e-9)
    for rank in range(k):
        votes[np.arange(len(vectors)), voters.children[index[:, rank]]] += weight[:, rank]
    chosen: np.ndarray = votes.argmax(axis=1)
    noise = next((number for number, child in enumerate(children) if child["noise"]), -1)
    chosen[distance.mean(axis=1) > voters.max_distance[chosen]] = noise
    return chosen


def _voters(
    lake: Lake, tree: str, children: list[dict[str, Any]], members: tuple[list[str], np.ndarray], seed: int
) -> _Voters:
    names, vectors = members
    ids = [f"{tree}/{child['node']}" for child in children]
    rows = lake.look_up("cluster_members", ["id", "image_id"], "id", ids)
    number_of = {node: number for number, node in enumerate(ids)}
    nodes, images = rows["id"].to_pylist(), rows["image_id"].to_pylist()
    child_of = {name: number_of[node] for node, name in zip(nodes, images, strict=True)}
    child = np.array([child_of.get(name, -1) for name in names], np.int64)
    sampled = _sample(child, len(children), seed)
    vectors, child = vectors[sampled], child[sampled]
    varied = len(vectors) > 1 and bool(np.ptp(vectors, axis=0).any())
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray
    if varied:
        transform = PrincipalComponents(vectors, seed).transform
    points = transform(vectors)
    max_distance = np.full(len(children), np.inf)
    if len(points) > 1:
        _, distance = neighbours(points, min(VOTERS, len(points) - 1))
        mean_distance = distance.mean(axis=1)
        for i in np.unique(child).tolist():
            max_distance[i] = np.quantile(mean_distance[child == i], CUT_QUANTILE) * CUT_SLACK + ROUNDING
    return _Voters(transform, points, child, max_distance)


def _sample(child: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The rows of the members that vote: all that are in a child, or a sample of them."""
    present = np.flatnonzero(child >= 0)
    if len(present) <= MAX_MEMBERS:
        return present
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(count):
        own = np.flatnonzero(child == i)
        limit = max(MIN_CHILD_MEMBERS, round(MAX_MEMBERS * len(own) / len(present)))
        parts.append(own if len(own) <= limit else rng.choice(own, limit, replace=False))
    return np.sort(np.concatenate(parts))


def _member_rows(tree: str, path: str, names: list[str], similarity: np.ndarray) -> pa.Table:
    columns = {
        "id": [f"{tree}/{path}"] * len(names),
        "tree": [tree] * len(names),
        "node": [path] * len(names),
        "image_id": names,
        "similarity": pa.array(similarity, pa.float32()),
        "assigned_at": [store.now()] * len(names),
    }
    return pa.table(columns, schema=schema.CLUSTER_MEMBERS.arrow())


def _recount(lake: Lake, tree: str) -> None:
    """Updates sizes and noise shares from the members; repairs those of an earlier run that was interrupted."""
    counts = connections.query(
        lake, "SELECT node, count(*) AS n FROM cluster_members WHERE tree = ? GROUP BY node", [tree]
    )
    sizes = dict(zip(counts["node"].to_pylist(), counts["n"].to_pylist(), strict=True))
    rows = lake.dataset("clusters").to_table(filter=f"tree = {literal(tree)}").to_pylist()
    noise_sizes = {row["parent"]: sizes.get(row["node"], 0) for row in rows if row["noise"]}
    changed = []
    for row in rows:
        columns: dict[str, Any] = {"size": sizes.get(row["node"], 0)}
        if row["noise_share"] is not None and columns["size"]:
            columns["noise_share"] = noise_sizes.get(row["node"], 0) / columns["size"]
        if row["size"] != columns["size"]:
            changed.append(row | columns)
    if changed:
        lake.update("clusters", pa.Table.from_pylist(changed, schema=schema.CLUSTERS.arrow()))
