"""Clusters vectors: one level of a drill-down, with scikit-learn's labels (0, 1, ..., noise -1).

The vectors are first reduced by principal components that are fitted on just these vectors. HDBSCAN (Campello, Moulavi,
Sander: Density-based clustering based on hierarchical density estimates, 2013) then works on a spanning tree of mutual
reachability distances: of all pairs up to MAX_EXACT vectors, of each vector's nearest neighbours above. From the tree
on it is the `hdbscan` package's own compiled code, which compiles nothing at its first use. This module knows nothing
of images or of the lake.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from embeddings.vectors.neighbours import nearest, neighbours
from embeddings.vectors.principal_components import reduce, sample
from lake.errors import BadInput
from lake.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Method = Literal["auto", "kmeans", "hdbscan", "evoc"]
METHODS: tuple[Method, ...] = ("auto", "kmeans", "hdbscan", "evoc")

# Above, the condensed tree takes longer than a person waits for a first look.
MAX_AUTO_HDBSCAN = 100_000
MAX_HDBSCAN = 300_000
MAX_EXACT = 2_000
# `auto` uses k-means if HDBSCAN leaves more than this share in no cluster, or puts more than that share in one
# cluster: such a split isolates nothing.
MAX_NOISE_SHARE = 0.6
MAX_LARGEST_SHARE = 0.6
# The centres of k-means change little with more vectors to fit on.
KMEANS_SAMPLE = 20_000
# On 50,000 CIFAR-10 vectors, 16 clusters give AMI 0.346, 24 give 0.334, 12 give 0.344; and 16 cards fit a screen.
MAX_KMEANS = 16
# Few vectors get the best of several starts; for many, one start (k-means++) is within 0.01 AMI of it.
KMEANS_STARTS, MAX_KMEANS_STARTS = 3, 5_000
MIN_SAMPLES = 5
GRAPH_NEIGHBOURS = 15
# Distances are at least this share of the median distance: copies of an image would be infinitely dense.
MIN_DISTANCE_SHARE = 0.1
MIN_EVOC = 30


@dataclass(frozen=True)
class Clustering:
    """`labels`: int64 (n,), -1 is noise. `method`, `params`: those used; `remark` says why, if they were not requested.

    `persistence`: by label, how long the cluster persists as density rises, 0 to 1, higher is more certain; empty if
    the method has none. `outlier_scores`: GLOSH (n,), 0 to 1, higher is further out; None if the method has none.
    """

    labels: np.ndarray
    method: str
    params: dict[str, Any]
    remark: str | None = None
    persistence: Sequence[float] = ()
    outlier_scores: np.ndarray | None = field(default=None, repr=False)

    @property
    def n_clusters(self) -> int:
        """The number of clusters, without noise."""
        return int(self.labels.max(initial=-1)) + 1

    @property
    def noise_share(self) -> float:
        """Share of the vectors in no cluster, 0 to 1."""
        return float((self.labels < 0).mean()) if len(self.labels) else 0.0

    @property
    def largest_share(self) -> float:
        """Share of the vectors in the largest cluster, 0 to 1."""
        sizes = np.bincount(self.labels[self.labels >= 0])
        return float(sizes.max(initial=0) / max(1, len(self.labels)))


def cluster_vectors(
    vectors: np.ndarray,
    method: Method = "auto",
    k: int | None = None,
    seed: int = 0,
    min_cluster_size: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Clustering:
    """Clusters of unit vectors (n, d); n may be 0. Equal arguments give equal labels.

    `auto` uses HDBSCAN; or k-means if there are more than MAX_AUTO_HDBSCAN vectors, if `k` is set, or if HDBSCAN finds
    fewer than two clusters, mostly noise, or one cluster with most of the vectors (the remark says which). `k` is the
    number of clusters for k-means; its default grows with n, up to 16. `min_cluster_size` is for HDBSCAN and EVoC;
    HDBSCAN's default grows with n's root. `progress` receives the stage that begins. Raises BadInput for arguments that
    do not fit the method, or too many vectors.
    """
    n = len(vectors)
    report = progress or _ignore
    _check(n, method, k, min_cluster_size)
    if n < 2 or not np.ptp(vectors, axis=0).any():  # equal vectors are one cluster
        return Clustering(np.zeros(n, np.int64), "kmeans" if method == "auto" else method, {})
    if method == "evoc":
        return _evoc(vectors, seed, min_cluster_size, report)
    report("reducing")
    points = reduce(vectors, seed)
    if method == "kmeans" or k is not None:
        return kmeans(points, k, seed, report)
    if method == "auto" and n > MAX_AUTO_HDBSCAN and min_cluster_size is None:
        clustering = kmeans(points, k, seed, report)
        return replace(clustering, remark=f"k-means was used: {n:,} images are too many for HDBSCAN to be quick")
    clustering = Hdbscan(points, report).cut(min_cluster_size)
    too_large = clustering.largest_share > MAX_LARGEST_SHARE
    too_noisy = clustering.noise_share > MAX_NOISE_SHARE
    if method == "hdbscan" or not (clustering.n_clusters < 2 or too_noisy or too_large):
        return clustering
    remark = (
        f"HDBSCAN found {clustering.n_clusters} clusters, the largest with {clustering.largest_share:.0%} of the "
        f"images, and {clustering.noise_share:.0%} noise; k-means was used instead"
    )
    return replace(kmeans(points, None, seed, report), remark=remark)


def preload() -> None:
    """Imports the packages for clustering, about two seconds. Raises MissingExtra if one is not installed."""
    for module, package in (("sklearn.cluster", "scikit-learn"), ("hdbscan", "hdbscan"), ("faiss", "faiss-cpu")):
        require(module, package, "cluster")


def _check(n: int, method: str, k: int | None, min_cluster_size: int | None) -> None:
    if method not in METHODS:
        raise BadInput(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if k is not None:
        if method in ("hdbscan", "evoc"):
            raise BadInput(f"k is for k-means: {method} finds the number of clusters itself (see --min-cluster-size)")
        if min_cluster_size is not None:
            raise BadInput("give k (k-means) or min_cluster_size (HDBSCAN), not both")
        if not 2 <= k <= max(2, n):
            raise BadInput(f"k is {k}; it must be from 2 to the number of images ({n})")
    if min_cluster_size is not None:
        if method == "kmeans":
            raise BadInput("min_cluster_size is for HDBSCAN and EVoC; k-means takes k")
        if not 2 <= min_cluster_size <= max(2, n):
            raise BadInput(f"min_cluster_size is {min_cluster_size}; it must be from 2 to the number of images ({n})")
    if n > MAX_HDBSCAN and (method == "hdbscan" or min_cluster_size is not None):
        raise BadInput(f"{n:,} images are too many for {method} (at most {MAX_HDBSCAN:,}): start with --method kmeans")


def default_min_cluster_size(n: int) -> int:
    """HDBSCAN's default for n vectors: a quarter of the root of n, at least 5."""
    return min(max(5, round(math.sqrt(n) / 4)), max(2, n // 2))


def kmeans(points: np.ndarray, k: int | None, seed: int, report: Callable[[str], None] | None = None) -> Clustering:
    """k-means of points (n, d), n >= 2: fitted on a seeded sample, then every point is assigned."""
    KMeans = require("sklearn.cluster", "scikit-learn", "cluster").KMeans
    n_clusters = k if k is not None else int(np.clip(round((len(points) / 10) ** 0.5), 2, MAX_KMEANS))
    (report or _ignore)(f"k-means with {n_clusters} clusters")
    sampled = sample(points, max(KMEANS_SAMPLE, 20 * n_clusters), seed)
    n_fitted = min(n_clusters, len(np.unique(sampled, axis=0))) if len(sampled) <= KMEANS_SAMPLE else n_clusters
    n_init = KMEANS_STARTS if len(sampled) <= MAX_KMEANS_STARTS else 1
    model = KMeans(n_fitted, n_init=n_init, max_iter=100, tol=1e-3, random_state=seed).fit(sampled)
    nearest_centre, _ = nearest(points, model.cluster_centers_, 1)
    _, labels = np.unique(nearest_centre[:, 0], return_inverse=True)
    return Clustering(labels.astype(np.int64), "kmeans", {"k": n_clusters})


class Hdbscan:
    """HDBSCAN of points (n, d), n >= 2, up to the spanning tree. `cut` is quick, so a sweep costs little more."""

    def __init__(self, points: np.ndarray, report: Callable[[str], None] | None = None) -> None:
        label = require("hdbscan._hdbscan_linkage", "hdbscan", "cluster").label
        self.size = n = len(points)
        self.min_samples = min(MIN_SAMPLES, n - 1)
        (report or _ignore)("neighbours")
        edges = _all_pairs(points, self.min_samples) if n <= MAX_EXACT else _graph(points, self.min_samples)
        (report or _ignore)("clusters")
        distances = edges[edges[:, 2] > 0, 2]
        least = MIN_DISTANCE_SHARE * float(np.median(distances)) if len(distances) else 1.0
        edges[:, 2] = np.maximum(edges[:, 2], least)
        order = np.lexsort((edges[:, 1], edges[:, 0], edges[:, 2]))
        self._linkage = label(np.ascontiguousarray(edges[order]))

    def cut(self, min_cluster_size: int | None = None) -> Clustering:
        """The clusters with the greatest excess of mass, each with at least `min_cluster_size` members."""
        hdbscan = require("hdbscan.hdbscan_", "hdbscan", "cluster")
        min_size = min_cluster_size or default_min_cluster_size(self.size)
        params = {"min_cluster_size": min_size, "min_samples": self.min_samples}
        labels, _, persistence, condensed, _ = hdbscan._tree_to_labels(None, self._linkage, min_size)
        return Clustering(
            labels.astype(np.int64),
            "hdbscan",
            params,
            persistence=tuple(map(float, persistence)),
            outlier_scores=hdbscan.outlier_scores(condensed),
        )


def _all_pairs(points: np.ndarray, min_samples: int) -> np.ndarray:
    """The spanning tree of mutual reachability over all pairs: float64 (n - 1, 3), two ends and a distance."""
    linkage = require("hdbscan._hdbscan_linkage", "hdbscan", "cluster")
    points64 = points.astype(np.float64)
    lengths = np.einsum("ij,ij->i", points64, points64)
    distances = np.sqrt(np.maximum(lengths[:, None] + lengths - 2 * (points64 @ points64.T), 0))
    np.fill_diagonal(distances, 0)
    core = np.partition(distances, min_samples, axis=1)[:, min_samples]
    reachability = np.maximum(np.maximum(distances, core[:, None]), core)
    return cast("np.ndarray", linkage.mst_linkage_core(reachability))


def _graph(points: np.ndarray, min_samples: int) -> np.ndarray:
    """Like `_all_pairs`, over each point's nearest neighbours; unconnected components are bridged."""
    index, distance = neighbours(points, min(GRAPH_NEIGHBOURS, len(points) - 1), exact=False)
    core = distance[:, min_samples - 1].astype(np.float64)
    starts = np.repeat(np.arange(len(points)), index.shape[1])
    ends = index.ravel()
    reachability = np.maximum(np.maximum(distance.ravel(), core[starts]), core[ends])
    forest, components = _spanning(starts, ends, reachability, len(points))
    bridges = _bridges(points, components)
    distances = np.linalg.norm(points[bridges[:, 0]] - points[bridges[:, 1]], axis=1)
    reachability = np.maximum(np.maximum(distances, core[bridges[:, 0]]), core[bridges[:, 1]])
    return np.concatenate([forest, np.column_stack([bridges, reachability])])


def _spanning(starts: np.ndarray, ends: np.ndarray, weights: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The minimum spanning forest (m, 3), and the component (n,) that each point is in."""
    csgraph = require("scipy.sparse.csgraph", "scipy", "cluster")
    csr = require("scipy.sparse", "scipy", "cluster").csr_matrix
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    order = np.lexsort((high, low, weights))
    low, high, weights = low[order], high[order], weights[order]
    _, unique = np.unique(low * n + high, return_index=True)
    # Ranks as weights: the tree is the same, no weight is zero (a sparse matrix would drop it), no two are equal.
    forest = csgraph.minimum_spanning_tree(csr((unique + 1.0, (low[unique], high[unique])), shape=(n, n))).tocoo()
    edges = np.sort(forest.data.astype(np.int64) - 1)
    _, components = csgraph.connected_components(forest, directed=False)
    return np.column_stack([low[edges], high[edges], weights[edges]]).astype(np.float64), components


def _bridges(points: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Pairs of points (m, 2) that connect the components, along a spanning tree of the components' centres.

    Each pair has the points of two components that are nearest to the other component's centre.
    """
    count = int(components.max()) + 1
    if count == 1:
        return np.empty((0, 2), np.int64)
    order = np.argsort(components, kind="stable")
    bounds = np.searchsorted(components[order], np.arange(count + 1))
    centres = np.add.reduceat(points[order].astype(np.float64), bounds[:-1]) / np.diff(bounds)[:, None]
    centres = centres.astype(np.float32)
    index, distance = neighbours(centres, min(GRAPH_NEIGHBOURS, count - 1))
    links, groups = _spanning(np.repeat(np.arange(count), index.shape[1]), index.ravel(), distance.ravel(), count)
    pairs = np.concatenate([links[:, :2].astype(np.int64), _bridges(centres, groups)])

    def nearest_to(component: int, other: int) -> int:
        members = order[bounds[component] : bounds[component + 1]]
        return int(members[np.argmin(((points[members] - centres[other]) ** 2).sum(axis=1))])

    return np.array([(nearest_to(a, b), nearest_to(b, a)) for a, b in pairs.tolist()], np.int64)


def _evoc(vectors: np.ndarray, seed: int, min_cluster_size: int | None, report: Callable[[str], None]) -> Clustering:
    """EVoC (Tutte Institute) on the vectors themselves."""
    if len(vectors) < MIN_EVOC:
        raise BadInput(f"{len(vectors)} images are too few for evoc ({MIN_EVOC} are needed): take --method hdbscan")
    EVoC = require("evoc", "evoc", "cluster").EVoC
    report("EVoC; its first use on a machine compiles for up to a minute")
    min_size = min_cluster_size or 5
    with warnings.catch_warnings():  # it warns of threads and of deprecated calls in its own code
        warnings.simplefilter("ignore")
        labels = EVoC(base_min_cluster_size=min_size, random_state=seed).fit_predict(
            np.ascontiguousarray(vectors, np.float32)
        )
    return Clustering(np.asarray(labels, np.int64), "evoc", {"min_cluster_size": min_size})


def _ignore(stage: str) -> None:
    """The default for `progress`."""
