"""Drill-down: cluster the lake, look at the medoids, open a node and cluster its members afresh.

A node's path says where it is: "" is the root, "0.3" the fourth child of the first. A node's children partition it;
what HDBSCAN puts in no cluster is a child of its own, marked as noise and last. Projection and clustering are fitted
anew for every node: a parent's projection hides what separates its children.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from embeddings import embedder as embedders
from embeddings.vectors import of_images
from lake import schema, store
from lake import where as filters
from lake.errors import BadInput
from lake.extras import require

if TYPE_CHECKING:
    from lake.store import EmbedderRecord, Lake

Method = Literal["auto", "kmeans", "hdbscan"]
METHODS: tuple[Method, ...] = ("auto", "kmeans", "hdbscan")

# HDBSCAN is quadratic here: 20,000 points of 50 dimensions take a minute and a half on two cores.
HDBSCAN_MOST = 20_000
AUTO_HDBSCAN_MOST = 5_000
# `auto` takes k-means when HDBSCAN leaves more than this share in no cluster, or puts more than that share in one:
# such a split isolates nothing.
NOISE_SHARE_MOST = 0.6
LARGEST_SHARE_MOST = 0.6
REDUCED_DIM = 50
FEWEST = 4
MEDOIDS = 12


@dataclass(frozen=True)
class Node:
    """One cluster. `medoids`: image_ids nearest to its centre first; `noise`: it is what fitted nowhere."""

    path: str
    parent: str
    size: int
    noise: bool
    method: str
    compactness: float
    medoids: list[str]


@dataclass(frozen=True)
class Tree:
    """What a clustering made: `nodes` are the new ones. `remark` says when `auto` had to choose otherwise."""

    tree: str
    embedder: str
    nodes: list[Node]
    seconds: float
    remark: str | None = None


def cluster(
    lake: Lake,
    *,
    embedder: str | None = None,
    where: str | None = None,
    node: str | None = None,
    method: Method = "auto",
    k: int | None = None,
    seed: int = 0,
) -> Tree:
    """Clusters the lake's images (those that pass `where`) into a new tree, or the members of `node` (TREE/PATH).

    Opening a node again replaces its children and everything below. `k` is k-means' number of clusters (so `auto`
    with a `k` is k-means); without it it grows with the number of images, up to 24. The same images, method and
    seed give the same nodes.
    Raises BadInput for a node that does not exist, too few images, or images without vectors.
    """
    started = time.perf_counter()
    if method not in METHODS:
        raise BadInput(f"method {method!r} is none of {', '.join(METHODS)}")
    if node is None:
        record = embedders.record_of(lake, embedder)
        wanted = None if where is None else filters.images(lake, where)
        tree, path = uuid.uuid4().hex[:8], ""
    else:
        if where is not None or embedder is not None:
            raise BadInput("a node has its own images and embedder: give --node alone, without --where or --embedder")
        tree, path, record = _find(lake, node)
        wanted = lake.look_up("cluster_members", ["image_id"], "id", [node])["image_id"].to_pylist()
    names, vectors = of_images(lake, record, wanted)
    if len(names) < FEWEST:
        raise BadInput(f"{len(names)} images with a {record.name} vector are too few to cluster; {FEWEST} are needed")
    assigned, used, params, remark = partition(vectors, method, k, seed)
    ranked = _by_size(assigned)
    nodes = [
        _node(path, child, assigned == label, label < 0, used, names, vectors) for child, label in enumerate(ranked)
    ]
    origin = {"where": where, "seed": seed, "params": json.dumps(params, sort_keys=True)}
    if node is None:
        root = _node("", None, np.ones(len(names), bool), False, "root", names, vectors)
        _save(lake, tree, record, [root], names, np.zeros(len(names), int), {**origin, "params": None}, None)
    else:
        _forget_below(lake, tree, path)
    order = {label: child for child, label in enumerate(ranked)}
    places = np.array([order[label] for label in assigned.tolist()])
    _save(lake, tree, record, nodes, names, places, {**origin, "where": None}, path)
    return Tree(tree, record.name, nodes, time.perf_counter() - started, remark)


def partition(
    vectors: np.ndarray, method: Method, k: int | None, seed: int
) -> tuple[np.ndarray, str, dict[str, Any], str | None]:
    """Labels (n,) of unit vectors (n, dim), -1 = noise; the method used, its parameters, and a remark or None."""
    n = len(vectors)
    points = _reduce(vectors, seed)
    if method == "hdbscan" and n > HDBSCAN_MOST:
        raise BadInput(f"{n:,} images are too many for hdbscan (at most {HDBSCAN_MOST:,}): start with --method kmeans")
    remark = None
    if method == "hdbscan" or (method == "auto" and k is None and n <= AUTO_HDBSCAN_MOST):
        labels, params = _hdbscan(points)
        sizes = np.bincount(labels[labels >= 0], minlength=1) / n
        noise, found = float((labels < 0).mean()), len(sizes) if sizes.any() else 0
        if method == "hdbscan" or (found >= 2 and noise <= NOISE_SHARE_MOST and sizes.max() <= LARGEST_SHARE_MOST):
            return labels, "hdbscan", params, None
        remark = (
            f"HDBSCAN found {found} clusters, the largest with {sizes.max():.0%} of the images, and {noise:.0%} noise; "
            "k-means was used instead"
        )
    labels, params = _kmeans(points, k, seed)
    return labels, "kmeans", params, remark


def _reduce(vectors: np.ndarray, seed: int) -> np.ndarray:
    """PCA to 50 dimensions: density means little in hundreds."""
    PCA = require("sklearn.decomposition", "scikit-learn", "cluster").PCA
    dim = min(REDUCED_DIM, len(vectors) - 1, vectors.shape[1])
    if not np.ptp(vectors, axis=0).any():  # one image many times over: nothing varies, PCA would divide by zero
        return np.zeros((len(vectors), dim), vectors.dtype)
    points: np.ndarray = PCA(dim, svd_solver="randomized", random_state=seed).fit_transform(vectors)
    return points


def _kmeans(points: np.ndarray, k: int | None, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    KMeans = require("sklearn.cluster", "scikit-learn", "cluster").KMeans
    wanted = k if k is not None else int(np.clip(round((len(points) / 10) ** 0.5), 2, 24))
    if not 2 <= wanted <= len(points):
        raise BadInput(f"k is {wanted}; it must be from 2 to the number of images ({len(points)})")
    distinct = len(np.unique(points, axis=0))
    labels: np.ndarray = KMeans(min(wanted, distinct), n_init=4, random_state=seed).fit_predict(points)
    return labels, {"k": wanted}


def _hdbscan(points: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    HDBSCAN = require("hdbscan", "hdbscan", "cluster").HDBSCAN
    smallest = max(5, len(points) // 100)
    smallest = min(smallest, max(2, len(points) // 2))
    params = {"min_cluster_size": smallest, "min_samples": min(5, smallest)}
    labels: np.ndarray = HDBSCAN(**params, core_dist_n_jobs=1).fit_predict(points.astype(np.float64))
    return labels, params


def _by_size(assigned: np.ndarray) -> list[int]:
    """Labels from the largest cluster to the smallest, noise last; ties by who comes first."""
    labels, first, counts = np.unique(assigned, return_index=True, return_counts=True)
    ranked = sorted(zip(labels.tolist(), first.tolist(), counts.tolist(), strict=True),
                    key=lambda x: (x[0] < 0, -x[2], x[1]))  # fmt: skip
    return [label for label, _, _ in ranked]


def _node(
    parent: str,
    child: int | None,
    inside: np.ndarray,
    noise: bool,
    method: str,
    names: list[str],
    vectors: np.ndarray,
) -> Node:
    places = np.flatnonzero(inside)
    members = vectors[places]
    centre = members.mean(axis=0)
    length = float(np.linalg.norm(centre))
    cosines = members @ (centre / length if length else centre)
    nearest = places[np.argsort(-cosines, kind="stable")[:MEDOIDS]]
    path = "" if child is None else f"{parent}.{child}" if parent else str(child)
    return Node(path, parent, len(places), noise, method, float(cosines.mean()), [names[i] for i in nearest.tolist()])


def _find(lake: Lake, node: str) -> tuple[str, str, EmbedderRecord]:
    tree, slash, path = node.partition("/")
    found = lake.look_up("clusters", ["embedder"], "id", [node])
    if not slash or not found.num_rows:
        raise BadInput(f"no node {node!r}; a node is TREE/PATH, e.g. 1f0c2a9b/0.3 (the root: 1f0c2a9b/)")
    return tree, path, embedders.record_of(lake, found["embedder"][0].as_py())


def _forget_below(lake: Lake, tree: str, path: str) -> None:
    below = f"{path}." if path else ""
    condition = f"tree = '{tree}' AND node <> '' AND starts_with(node, '{below}')"
    lake.delete("clusters", condition)
    lake.delete("cluster_members", condition)


def _save(
    lake: Lake,
    tree: str,
    record: EmbedderRecord,
    nodes: list[Node],
    names: list[str],
    places: np.ndarray,
    origin: dict[str, Any],
    opened: str | None,
) -> None:
    """Members first: the row in clusters is the commit. `places[i]` is the index in `nodes` of the i-th image."""
    moment = store.now()
    paths = np.array([n.path for n in nodes], dtype=object)[places]
    members = {"id": [f"{tree}/{p}" for p in paths], "tree": [tree] * len(names), "node": paths.tolist()}
    lake.insert("cluster_members", pa.table(members | {"image_id": names}, schema=schema.CLUSTER_MEMBERS.arrow()))
    rows = [
        {
            "id": f"{tree}/{n.path}",
            "tree": tree,
            "node": n.path,
            "parent": opened,
            "method": n.method,
            "embedder": record.name,
            "predictions_version": lake.version("predictions"),
            "size": n.size,
            "noise": n.noise,
            "compactness": n.compactness,
            "medoids": n.medoids,
            "created_at": moment,
            **origin,
        }
        for n in nodes
    ]
    lake.insert("clusters", pa.Table.from_pylist(rows, schema=schema.CLUSTERS.arrow()))
    if opened is not None:
        noise = sum(n.size for n in nodes if n.noise) / sum(n.size for n in nodes)
        parent = lake.dataset("clusters").to_table(filter=f"id = '{tree}/{opened}'").to_pylist()[0]
        update = pa.Table.from_pylist([parent | {"noise_share": noise}], schema=schema.CLUSTERS.arrow())
        lake.update("clusters", update)
