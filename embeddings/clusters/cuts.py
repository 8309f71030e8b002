"""What other cuts of a node would give, before anything is saved: clusters jump at cliffs of their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.clusters.clustering import METHODS, Density, Method, Partition, partition, usual_size
from embeddings.clusters.trees import FEWEST, Progress, find, members
from embeddings.vectors.principal_components import reduce
from lake.errors import BadInput
from lake.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lake.storage.store import Lake

# What a sweep tries of the usual smallest cluster, from half of it to eight times.
SWEEP = (0.5, 1, 2, 4, 8)


@dataclass(frozen=True)
class Cut:
    """What a clustering of a node would give; nothing of it is saved.

    `clusters`: without noise; shares are of the node's images, 0 to 1; `persistence`: mean of its clusters', None when
    the method does not say; `agreement`: adjusted mutual information with the first cut compared (1: the same, about
    0: chance), None for the first and in a sweep.
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
    """What HDBSCAN would make of a node with several smallest clusters, from the smallest; nothing is saved.

    Where rows are alike the clusters are real, where they jump they hang on the parameter. `sizes`: default from half
    to eight times the usual one. Raises BadInput as `cluster`.
    """
    _, vectors = _of_node(lake, node)
    n = len(vectors)
    usual = usual_size(n)
    wanted = sorted({min(max(2, round(usual * f)), n) for f in SWEEP} if sizes is None else set(sizes))
    if not wanted or not 2 <= wanted[0] <= wanted[-1] <= n:
        raise BadInput(f"sizes are {wanted}; each must be from 2 to the number of images ({n})")
    first = partition(vectors, "hdbscan", None, seed, wanted[0], progress) if _alike(vectors) else None
    if first is not None:
        return [_cut(first)]
    density = Density(reduce(vectors, seed), progress)
    return [_cut(density.cut(size)) for size in wanted]


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

    `k` goes to k-means, `min_cluster_size` to HDBSCAN and EVoC. Raises BadInput as `cluster`, or for no method.
    """
    if not methods:
        raise BadInput(f"which methods? give some of {', '.join(METHODS)}")
    ami = require("sklearn.metrics", "scikit-learn", "cluster").adjusted_mutual_info_score
    _, vectors = _of_node(lake, node)
    found = [
        partition(
            vectors,
            method,
            k if method == "kmeans" else None,
            seed,
            min_cluster_size if method in ("hdbscan", "evoc") else None,
            progress,
        )
        for method in methods
    ]
    return [_cut(found[0]), *(_cut(one, float(ami(found[0].labels, one.labels))) for one in found[1:])]


def _of_node(lake: Lake, node: str) -> tuple[list[str], np.ndarray]:
    _, _, record = find(lake, node)
    names, vectors = members(lake, record, node)
    if len(names) < FEWEST:
        raise BadInput(f"{len(names)} images with a {record.name} vector are too few to cluster; {FEWEST} are needed")
    return names, vectors


def _alike(vectors: np.ndarray) -> bool:
    return not np.ptp(vectors, axis=0).any()


def _cut(found: Partition, agreement: float | None = None) -> Cut:
    held = float(np.mean(found.persistence)) if len(found.persistence) else None
    return Cut(
        found.method,
        found.params,
        found.clusters,
        found.noise_share,
        found.largest_share,
        held,
        found.remark,
        agreement,
    )
