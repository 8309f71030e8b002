"""Compares other ways to cut a node, before anything is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.clusters.clustering import (
    METHODS,
    Clustering,
    Hdbscan,
    Method,
    cluster_vectors,
    default_min_cluster_size,
)
from embeddings.clusters.drilldown import Progress, check_enough
from embeddings.clusters.trees import find, members
from embeddings.vectors.principal_components import reduce
from lake.errors import BadInput
from lake.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lake.storage.store import Lake

# What a sweep tries, as multiples of the default smallest cluster.
SWEEP = (0.5, 1, 2, 4, 8)


@dataclass(frozen=True)
class Cut:
    """What a clustering of a node would give; nothing of it is saved.

    `clusters`: their number, without noise; shares are of the node's images, 0 to 1; `persistence`: the clusters' mean,
    None if the method has none; `agreement`: adjusted mutual information with the first cut compared (1: the same,
    about 0: chance), None for the first and in a sweep.
    """

    method: str
    params: dict[str, Any]
    clusters: int
    noise_share: float
    largest_share: float
    persistence: float | None
    remark: str | None = None
    agreement: float | None = None


def sweep(
    lake: Lake, *, node: str, sizes: Sequence[int] | None = None, seed: int = 0, progress: Progress | None = None
) -> list[Cut]:
    """What HDBSCAN would give with several smallest clusters, in ascending order; nothing is saved.

    Where rows are alike, the clusters are real; where they jump, they depend on the parameter. `sizes`: by default from
    half to eight times the default size. Raises BadInput as `cluster` does.
    """
    vectors = _vectors(lake, node)
    n = len(vectors)
    default = default_min_cluster_size(n)
    sizes = sorted({min(max(2, round(default * factor)), n) for factor in SWEEP} if sizes is None else set(sizes))
    if not sizes or not 2 <= sizes[0] <= sizes[-1] <= n:
        raise BadInput(f"sizes are {sizes}; each must be from 2 to the number of images ({n})")
    if not np.ptp(vectors, axis=0).any():  # equal vectors: every size gives one cluster
        return [_cut(cluster_vectors(vectors, "hdbscan", None, seed, sizes[0], progress))]
    hdbscan = Hdbscan(reduce(vectors, seed), progress)
    return [_cut(hdbscan.cut(size)) for size in sizes]


def compare(
    lake: Lake,
    node: str,
    methods: Sequence[Method],
    *,
    k: int | None = None,
    seed: int = 0,
    min_cluster_size: int | None = None,
    progress: Progress | None = None,
) -> list[Cut]:
    """What each of several methods would make of a node, in their order; nothing is saved.

    `k` is for k-means, `min_cluster_size` for HDBSCAN and EVoC. Raises BadInput as `cluster` does, or for no method.
    """
    if not methods:
        raise BadInput(f"which methods? give some of {', '.join(METHODS)}")
    ami = require("sklearn.metrics", "scikit-learn", "cluster").adjusted_mutual_info_score
    vectors = _vectors(lake, node)
    clusterings = [
        cluster_vectors(
            vectors,
            method,
            k if method == "kmeans" else None,
            seed,
            min_cluster_size if method in ("hdbscan", "evoc") else None,
            progress,
        )
        for method in methods
    ]
    first, *others = clusterings
    return [_cut(first), *(_cut(other, float(ami(first.labels, other.labels))) for other in others)]


def _vectors(lake: Lake, node: str) -> np.ndarray:
    _, _, record = find(lake, node)
    names, vectors = members(lake, record, node)
    check_enough(len(names), record)
    return vectors


def _cut(clustering: Clustering, agreement: float | None = None) -> Cut:
    return Cut(
        clustering.method,
        clustering.params,
        clustering.n_clusters,
        clustering.noise_share,
        clustering.largest_share,
        float(np.mean(clustering.persistence)) if len(clustering.persistence) else None,
        clustering.remark,
        agreement,
    )
