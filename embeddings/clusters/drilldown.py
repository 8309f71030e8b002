"""Drill-down: clusters images into a new tree, or opens a node and clusters its members again.

Reduction and clustering are fitted again for every node: a parent's projection hides what separates its children.
`clustering.py` turns vectors into clusters, `cluster_summary.py` describes them, `trees.py` stores them.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.clusters import cluster_summary, trees
from embeddings.clusters.clustering import METHODS, Clustering, Method, cluster_vectors
from embeddings.clusters.trees import ClusterNode
from embeddings.embedders import embedder as embedders
from lake import slices
from lake.errors import BadInput
from lake.sql import where as filters
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from embeddings.embedders.embedder import TextEmbedder
    from lake.storage.store import EmbedderRecord, Lake

MIN_IMAGES = 2
MEDOIDS = 12
BORDERLINE = 6

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ClusterTree:
    """The result of a clustering: `nodes` are the new ones; `method`: the one used, `remark`: why, or None."""

    tree: str
    embedder: str
    method: str
    nodes: list[ClusterNode]
    seconds: float
    remark: str | None = None


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
) -> ClusterTree:
    """Clusters the lake's images (those that pass `where`, or of `slice`) into a new tree, or the members of `node`.

    `node` is TREE/PATH; opening it again replaces everything below it. `k` is the number of clusters for k-means,
    `min_cluster_size` the smallest cluster for HDBSCAN; see `cluster_vectors`. The same images, method and seed give
    the same nodes. `words` are names to choose from for nodes, with an embedder of images and text (`model`: that
    embedder, loaded). `progress` receives the stage that begins.
    Raises BadInput if the node does not exist, too few images have a vector, or arguments do not fit together.
    """
    started = time.perf_counter()
    report = progress or (lambda stage: None)
    if sum(option is not None for option in (where, slice, node)) > 1 or (node is not None and embedder is not None):
        raise BadInput("a node has its own images and embedder: give --node, --slice or --where, and one of them only")
    if method not in METHODS:
        raise BadInput(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    params: dict[str, Any] = {}
    image_ids: Sequence[str] | None = None
    if node is not None:
        tree, path, record = trees.find(lake, node)
    else:
        record, tree, path = embedders.record_of(lake, embedder), uuid.uuid4().hex[:8], ""
        if where is not None:
            image_ids = filters.images(lake, where)
        elif slice is not None:
            slice_ = slices.get(lake, slice)
            image_ids, params = slices.members(lake, slice_).to_pylist(), {"slice": slice_.id}
    word_vectors = _embedded_words(lake, record, words, model)
    report("reading")
    names, vectors = trees.members(lake, record, node) if node is not None else image_vectors(lake, record, image_ids)
    check_enough(len(names), record)
    clustering = cluster_vectors(vectors, method, k, seed, min_cluster_size, progress)
    report("looking into the clusters")
    node_of, nodes = _nodes(path, clustering, names, vectors)
    *summaries, whole_summary = cluster_summary.summarise(lake, names, node_of, len(nodes))
    suggested = [cluster_summary.suggest_name(summary, whole_summary) for summary in summaries]
    if word_vectors is not None:
        nearest = _nearest_words(word_vectors, words, vectors, node_of, len(nodes))
        suggested = [name or word for name, word in zip(suggested, nearest, strict=True)]
    nodes = [
        replace(child, summary=summary, suggested=name)
        for child, summary, name in zip(nodes, summaries, suggested, strict=True)
    ]
    report("saving")
    origin = {"tree": tree, "embedder": record.name, "predictions_version": lake.version("samples"), "seed": seed}
    parent = None
    if node is None:
        trees.insert_members(lake, tree, [""], names, np.zeros(len(names), np.int64), _similarity(vectors, None))
        root = _node("", None, np.arange(len(names)), False, "root", names, vectors, None)
        made_of = {"where": where, "params": json.dumps(params, sort_keys=True) if params else None, "parent": None}
        parent = trees.node_row(replace(root, summary=whole_summary), origin | made_of)
    similarity = _similarity(vectors, node_of)
    trees.replace_members_below(lake, tree, path, [child.path for child in nodes], names, node_of, similarity)
    # Read as late as possible: a person may have named it meanwhile.
    parent = parent or trees.stored_row(lake, f"{tree}/{path}")
    parent |= {"noise_share": clustering.noise_share}
    made_by = {"where": None, "params": json.dumps(clustering.params, sort_keys=True), "parent": path}
    trees.save_nodes(lake, [parent, *(trees.node_row(child, origin | made_by) for child in nodes)])
    seconds = time.perf_counter() - started
    return ClusterTree(tree, record.name, clustering.method, nodes, seconds, clustering.remark)


def check_enough(count: int, record: EmbedderRecord) -> None:
    """Raises BadInput if `count` images with a vector are too few to cluster."""
    if count < MIN_IMAGES:
        raise BadInput(f"{count} images with a {record.name} vector are too few to cluster; {MIN_IMAGES} are needed")


def _nodes(
    path: str, clustering: Clustering, names: list[str], vectors: np.ndarray
) -> tuple[np.ndarray, list[ClusterNode]]:
    """The index of each image's node (n,), and the nodes: largest first, noise last, ties by their first image."""
    labels, first, label_of, counts = np.unique(
        clustering.labels, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.lexsort((first, -counts, labels < 0))
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels))
    node_of = rank[label_of]
    groups = np.split(np.argsort(node_of, kind="stable"), np.cumsum(counts[order])[:-1])
    nodes = []
    for child, (label, inside) in enumerate(zip(labels[order].tolist(), groups, strict=True)):
        scores = clustering.outlier_scores
        outlying = scores[inside] if label < 0 and scores is not None else None
        node = _node(path, child, inside, label < 0, clustering.method, names, vectors, outlying)
        persistence = clustering.persistence[label] if 0 <= label < len(clustering.persistence) else None
        nodes.append(replace(node, persistence=persistence))
    return node_of, nodes


def _node(
    parent: str,
    child: int | None,
    inside: np.ndarray,
    noise: bool,
    method: str,
    names: list[str],
    vectors: np.ndarray,
    outlying: np.ndarray | None,
) -> ClusterNode:
    """A node of the images at the indices `inside`, with its medoids and borderline images."""
    cosines = _cosines(vectors[inside])
    nearest = inside[np.argsort(-cosines, kind="stable")[:MEDOIDS]]
    furthest = inside[np.argsort(cosines if outlying is None else -outlying, kind="stable")[:BORDERLINE]]
    path = "" if child is None else f"{parent}.{child}" if parent else str(child)
    return ClusterNode(
        path,
        parent,
        len(inside),
        noise,
        method,
        float(cosines.mean()),
        [names[i] for i in nearest.tolist()],
        [names[i] for i in furthest.tolist()],
    )


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosine (n,) of unit vectors (n, dim) to their mean; 0 if the mean is zero."""
    centre = vectors.mean(axis=0)
    length = float(np.linalg.norm(centre))
    cosines: np.ndarray = np.clip(vectors @ (centre / length if length else centre), -1, 1)
    return cosines


def _similarity(vectors: np.ndarray, node_of: np.ndarray | None) -> np.ndarray:
    """Cosine (n,) of each vector to the mean of its own node's; None: all are of one node."""
    if node_of is None:
        return _cosines(vectors)
    cosines = np.empty(len(vectors), np.float32)
    order = np.argsort(node_of, kind="stable")
    for inside in np.split(order, np.cumsum(np.bincount(node_of))[:-1]):
        cosines[inside] = _cosines(vectors[inside])
    return cosines


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
    word_vectors: np.ndarray, words: Sequence[str], vectors: np.ndarray, node_of: np.ndarray, count: int
) -> list[str]:
    """For each node, the word that best describes what its images have and the others do not."""
    mean = vectors.mean(axis=0)
    apart = np.stack([vectors[node_of == number].mean(axis=0) - mean for number in range(count)])
    best = np.argmax((apart if count > 1 else apart + mean) @ word_vectors.T, axis=1)
    return [words[i] for i in best.tolist()]
