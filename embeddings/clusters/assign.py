"""New images into a tree that stands: volume and errors of every node over time, drift an analyst can see.

At each opened node a new image goes to the child that its nearest members vote for (by the inverse square of their
distance), unless it is further from
its neighbours than members of that child are from theirs: then to the node's noise, or, where there is none, no
further. Nobody who was there moves, and nothing that was assigned is assigned again.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embeddings.clusters import trees as clustering
from embeddings.vectors.neighbours import nearest, neighbours
from embeddings.vectors.principal_components import Components
from lake import slices
from lake.errors import BadInput
from lake.sql import connections
from lake.sql import where as filters
from lake.storage import schema, store
from lake.storage.store import literal
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from lake.storage.store import EmbedderRecord, Lake

# As many as make the smallest cluster there usually is: more would always outvote it.
VOTERS = 5
# A child's members lie at most this far from their own neighbours, but for the last hundredth, and a tenth more.
CUT_QUANTILE = 0.99
CUT_SLACK = 1.1
# Between copies of a vector FAISS may find a distance of this much.
ROUNDING = 1e-3
# Of more members so many stand for all, each child's by its share but by at least so many.
MEMBERS_MOST = 50_000
CHILD_MEMBERS_FEWEST = 200

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Assigned:
    """`images`: how many were new; `nodes`: path -> how many it got, the root's "" included.

    `none`: how many fitted none of an opened node's children and stayed above; they are counted in that node.
    """

    tree: str
    images: int
    nodes: dict[str, int]
    none: int
    seconds: float


@dataclass(frozen=True)
class Volume:
    """One node on one day (UTC). `error_rate` = wrong / known, None when no label says; `assigned`: images that joined
    after the node was made, among those with answers that day."""

    node: str
    day: dt.date
    answers: int
    images: int
    assigned: int
    known: int
    wrong: int
    error_rate: float | None


@dataclass(frozen=True)
class _Cut:
    """An opened node: how to place vectors among its members, the members' places, which child each of them is in, and
    how far from its neighbours one of each child may be."""

    place: Callable[[np.ndarray], np.ndarray]
    points: np.ndarray
    children: np.ndarray
    furthest: np.ndarray


def assign(lake: Lake, tree: str, *, seed: int = 0, progress: Progress | None = None) -> Assigned:
    """Assigns the images that came since to the nodes of `tree`; running it again adds nothing.

    Only images the tree was made for: those that pass its filter, or the filter of the slice it was made of. All of it
    is one commit of `cluster_members`; sizes in `clusters` follow. Raises BadInput for an unknown tree, or one made of
    a slice that is a list of images.
    """
    started = time.perf_counter()
    say = progress or (lambda stage: None)
    _, _, record = clustering.find(lake, f"{tree}/")
    say("reading")
    names, vectors = _new_images(lake, tree, record)
    nodes = lake.scan("clusters", ["node", "parent", "noise"], f"tree = {literal(tree)}").to_pylist()
    below: dict[str, list[dict[str, Any]]] = {}
    for one in sorted(nodes, key=lambda row: _order(row["node"])):
        if one["parent"] is not None:
            below.setdefault(one["parent"], []).append(one)
    rows: list[pa.Table] = []
    none = 0
    counts: dict[str, int] = {}

    def place(path: str, who: np.ndarray) -> None:
        nonlocal none
        inside, similarity = _similarity(lake, record, tree, path, vectors[who])
        rows.append(_rows(tree, path, [names[i] for i in who.tolist()], similarity))
        counts[path] = len(who)
        children = below.get(path, [])
        if not children:
            return
        say(f"node {path or 'at the root'}")
        chosen = _vote(lake, record, tree, children, inside, vectors[who], seed)
        none += int((chosen < 0).sum())
        for number, child in enumerate(children):
            if (chosen == number).any():
                place(child["node"], who[chosen == number])

    if names:
        place("", np.arange(len(names)))
        lake.insert("cluster_members", pa.concat_tables(rows))
    _recount(lake, tree)
    return Assigned(tree, len(names), counts, none, time.perf_counter() - started)


def volume(lake: Lake, tree: str) -> list[Volume]:
    """Answers, and how many of them were wrong, of every node on every day; by node, then day.

    Answers without a time are left out. Raises BadInput for an unknown tree.
    """
    clustering.find(lake, f"{tree}/")
    found = connections.query(lake, VOLUME, [tree]).to_pylist()
    return [Volume(**row) for row in sorted(found, key=lambda row: (_order(row["node"]), row["day"]))]


VOLUME = """
SELECT m.node, CAST(a.timestamp AS DATE) AS day, count(*) AS answers, count(DISTINCT a.image_id) AS images,
       count(DISTINCT a.image_id) FILTER (m.assigned_at IS NOT NULL) AS assigned, count(a.correct) AS known,
       count_if(NOT a.correct) AS wrong, count_if(NOT a.correct) / nullif(count(a.correct), 0) AS error_rate
FROM cluster_members m JOIN answers_labelled a USING (image_id)
WHERE m.tree = ? AND a.timestamp IS NOT NULL
GROUP BY m.node, day
"""


def _order(path: str) -> list[int]:
    return [int(step) for step in path.split(".")] if path else []


def _new_images(lake: Lake, tree: str, record: EmbedderRecord) -> tuple[list[str], np.ndarray]:
    root = next(one for one in clustering.trees(lake) if one.tree == tree)
    wanted = None
    if root.slice is not None:
        made = slices.get(lake, root.slice)
        if made.kind != "where":
            raise BadInput(
                f"tree {tree} was made of slice {made.id}, a list of images that nothing joins; make a tree with "
                "--where to have new images assigned"
            )
        wanted = filters.images(lake, made.definition)
    elif root.where is not None:
        wanted = filters.images(lake, root.where)
    names, vectors = image_vectors(lake, record, wanted)
    there = lake.look_up("cluster_members", ["image_id"], "id", [f"{tree}/"])["image_id"].to_pylist()
    new = ~np.isin(np.asarray(names, str), np.asarray(there, str))
    return [name for name, is_new in zip(names, new.tolist(), strict=True) if is_new], vectors[new]


def _similarity(
    lake: Lake, record: EmbedderRecord, tree: str, path: str, vectors: np.ndarray
) -> tuple[tuple[list[str], np.ndarray], np.ndarray]:
    """The node's members, and the cosine (m,) of `vectors` to the mean of those who were there first."""
    node = f"{tree}/{path}"
    held = lake.look_up("cluster_members", ["image_id", "assigned_at"], "id", [node])
    names, inside = image_vectors(lake, record, held["image_id"].to_pylist())
    first = set(held.filter(held["assigned_at"].is_null())["image_id"].to_pylist())
    was_there = np.array([name in first for name in names], bool)
    centre = inside[was_there].mean(axis=0) if was_there.any() else np.zeros(vectors.shape[1], np.float32)
    length = float(np.linalg.norm(centre))
    cosine: np.ndarray = np.clip(vectors @ (centre / length if length else centre), -1, 1)
    return (names, inside), cosine


def _vote(
    lake: Lake,
    record: EmbedderRecord,
    tree: str,
    children: list[dict[str, Any]],
    inside: tuple[list[str], np.ndarray],
    vectors: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Index in `children` for each of the vectors, -1 for none."""
    cut = _cut(lake, tree, children, inside, seed)
    if not len(cut.points):  # all its members were erased
        return np.full(len(vectors), -1)
    k = min(VOTERS, len(cut.points))
    index, distance = nearest(cut.place(vectors), cut.points, k)
    votes = np.zeros((len(vectors), len(children)))
    weight = 1 / (distance.astype(np.float64) ** 2 + 1e-9)
    for rank in range(k):
        votes[np.arange(len(vectors)), cut.children[index[:, rank]]] += weight[:, rank]
    chosen: np.ndarray = votes.argmax(axis=1)
    noise = next((number for number, child in enumerate(children) if child["noise"]), -1)
    chosen[distance.mean(axis=1) > cut.furthest[chosen]] = noise
    return chosen


def _cut(
    lake: Lake, tree: str, children: list[dict[str, Any]], inside: tuple[list[str], np.ndarray], seed: int
) -> _Cut:
    names, vectors = inside
    ids = [f"{tree}/{child['node']}" for child in children]
    held = lake.look_up("cluster_members", ["id", "image_id"], "id", ids)
    number = {one: i for i, one in enumerate(ids)}
    child_of = {
        name: number[one] for one, name in zip(held["id"].to_pylist(), held["image_id"].to_pylist(), strict=True)
    }
    child = np.array([child_of.get(name, -1) for name in names], np.int64)
    chosen = _stand_ins(child, len(children), seed)
    vectors, child = vectors[chosen], child[chosen]
    varied = len(vectors) > 1 and bool(np.ptp(vectors, axis=0).any())
    place: Callable[[np.ndarray], np.ndarray] = Components(vectors, seed) if varied else np.asarray
    points = place(vectors)
    furthest = np.full(len(children), np.inf)
    if len(points) > 1:
        _, distance = neighbours(points, min(VOTERS, len(points) - 1))
        usual = distance.mean(axis=1)
        for i in np.unique(child).tolist():
            furthest[i] = np.quantile(usual[child == i], CUT_QUANTILE) * CUT_SLACK + ROUNDING
    return _Cut(place, points, child, furthest)


def _stand_ins(child: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which members vote: all that are in a child, or a sample of them."""
    present = np.flatnonzero(child >= 0)
    if len(present) <= MEMBERS_MOST:
        return present
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(count):
        own = np.flatnonzero(child == i)
        most = max(CHILD_MEMBERS_FEWEST, round(MEMBERS_MOST * len(own) / len(present)))
        parts.append(own if len(own) <= most else rng.choice(own, most, replace=False))
    return np.sort(np.concatenate(parts))


def _rows(tree: str, path: str, names: list[str], similarity: np.ndarray) -> pa.Table:
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
    """Sizes and noise shares are those of the members; also after a run that stopped before it had counted."""
    counted = connections.query(
        lake, "SELECT node, count(*) AS n FROM cluster_members WHERE tree = ? GROUP BY node", [tree]
    )
    sizes = dict(zip(counted["node"].to_pylist(), counted["n"].to_pylist(), strict=True))
    rows = lake.dataset("clusters").to_table(filter=f"tree = {literal(tree)}").to_pylist()
    noise = {row["parent"]: sizes.get(row["node"], 0) for row in rows if row["noise"]}
    changed = []
    for row in rows:
        now: dict[str, Any] = {"size": sizes.get(row["node"], 0)}
        if row["noise_share"] is not None and now["size"]:
            now["noise_share"] = noise.get(row["node"], 0) / now["size"]
        if row["size"] != now["size"]:
            changed.append(row | now)
    if changed:
        lake.update("clusters", pa.Table.from_pylist(changed, schema=schema.CLUSTERS.arrow()))
