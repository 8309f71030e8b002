"""Vectors into clusters: one level of a drill-down, in scikit-learn's grammar (labels 0, 1, ..., noise -1).

Vectors are first reduced by principal components fitted on just these vectors. HDBSCAN (Campello, Moulavi, Sander:
Density-based clustering based on hierarchical density estimates, 2013) then works on a spanning tree of mutual
reachability distances: of all pairs up to EXACT_MOST vectors, of each one's nearest neighbours above. From the tree
on it is the `hdbscan` package's own compiled code, which needs no compiling in front of a person. It knows nothing
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

# Above, the condensed tree takes longer than somebody waits for a first look.
AUTO_HDBSCAN_MOST = 100_000
HDBSCAN_MOST = 300_000
EXACT_MOST = 2_000
# `auto` takes k-means when HDBSCAN leaves more than this share in no cluster, or puts more than that share in one:
# such a split isolates nothing.
NOISE_SHARE_MOST = 0.6
LARGEST_SHARE_MOST = 0.6
# The centres of k-means change little with more vectors to learn from.
KMEANS_SAMPLE = 20_000
# On 50,000 CIFAR-10 vectors 16 give AMI 0.346, 24 give 0.334, 12 give 0.344: and 16 cards fit a screen.
KMEANS_MOST = 16
# Of few vectors the best of some starts is taken; of many, one start (k-means++) is within 0.01 AMI of it.
KMEANS_STARTS, KMEANS_STARTS_MOST = 3, 5_000
MIN_SAMPLES = 5
GRAPH_NEIGHBOURS = 15
# Nearer than this share of the usual distance counts as that near: copies of one image would be infinitely dense.
NEAREST_SHARE = 0.1
EVOC_FEWEST = 30


@dataclass(frozen=True)
class Partition:
    """`labels`: int64 (n,), -1 = noise. `method`, `params`: what was used in the end; `remark` says why, if not asked.

    `persistence`: by label, how long it held together as density rose, 0 to 1, higher is surer; empty when the method
    does not say. `outlying`: (n,) GLOSH outlier scores, 0 to 1, higher is further out; None when there are none.
    """

    labels: np.ndarray
    method: str
    params: dict[str, Any]
    remark: str | None = None
    persistence: Sequence[float] = ()
    outlying: np.ndarray | None = field(default=None, repr=False)

    @property
    def clusters(self) -> int:
        """How many clusters, noise not counted."""
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


def partition(
    vectors: np.ndarray,
    method: Method = "auto",
    k: int | None = None,
    seed: int = 0,
    min_cluster_size: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Partition:
    """Clusters of unit vectors (n, d); n may be 0. Equal arguments give equal labels.

    `auto` is HDBSCAN, and k-means where vectors are more than AUTO_HDBSCAN_MOST, where `k` is given, or where HDBSCAN
    finds fewer than two clusters, mostly noise, or one cluster with most of it (the remark says which). `k` is for
    k-means only; without it it grows with n, up to 16. `min_cluster_size` is for HDBSCAN and EVoC; without it HDBSCAN's
    grows with n's root. `progress` is told what begins. Raises BadInput for arguments that fit no method, or too many
    vectors.
    """
    n = len(vectors)
    say = progress or _nothing
    _check(n, method, k, min_cluster_size)
    if n < 2 or not np.ptp(vectors, axis=0).any():  # nothing varies: one cluster, whatever is asked
        return Partition(np.zeros(n, np.int64), "kmeans" if method == "auto" else method, {})
    if method == "evoc":
        return _evoc(vectors, seed, min_cluster_size, say)
    say("reducing")
    points = reduce(vectors, seed)
    if method == "kmeans" or k is not None:
        return kmeans(points, k, seed, say)
    if method == "auto" and n > AUTO_HDBSCAN_MOST and min_cluster_size is None:
        made = kmeans(points, k, seed, say)
        return replace(made, remark=f"k-means was used: {n:,} images are too many for HDBSCAN to be quick")
    found = Density(points, say).cut(min_cluster_size)
    too_large = found.largest_share > LARGEST_SHARE_MOST
    if method == "hdbscan" or (found.clusters >= 2 and found.noise_share <= NOISE_SHARE_MOST and not too_large):
        return found
    remark = (
        f"HDBSCAN found {found.clusters} clusters, the largest with {found.largest_share:.0%} of the images, and "
        f"{found.noise_share:.0%} noise; k-means was used instead"
    )
    return replace(kmeans(points, None, seed, say), remark=remark)


def preload() -> None:
    """Imports what clustering needs, some two seconds; raises what is missing."""
    for module, package in (("sklearn.cluster", "scikit-learn"), ("hdbscan", "hdbscan"), ("faiss", "faiss-cpu")):
        require(module, package, "cluster")


def _check(n: int, method: str, k: int | None, min_cluster_size: int | None) -> None:
    if method not in METHODS:
        raise BadInput(f"method {method!r} is none of {', '.join(METHODS)}")
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
    if n > HDBSCAN_MOST and (method == "hdbscan" or min_cluster_size is not None):
        raise BadInput(f"{n:,} images are too many for {method} (at most {HDBSCAN_MOST:,}): start with --method kmeans")


def usual_size(n: int) -> int:
    """HDBSCAN's smallest cluster of n vectors, unless one is asked for: a quarter of the root of n, from 5."""
    return min(max(5, round(math.sqrt(n) / 4)), max(2, n // 2))


def kmeans(points: np.ndarray, k: int | None, seed: int, say: Callable[[str], None] | None = None) -> Partition:
    """k-means of points (n, d), n >= 2, learned from a seeded sample; all are then assigned."""
    KMeans = require("sklearn.cluster", "scikit-learn", "cluster").KMeans
    wanted = k if k is not None else int(np.clip(round((len(points) / 10) ** 0.5), 2, KMEANS_MOST))
    (say or _nothing)(f"k-means with {wanted} clusters")
    some = sample(points, max(KMEANS_SAMPLE, 20 * wanted), seed)
    possible = min(wanted, len(np.unique(some, axis=0))) if len(some) <= KMEANS_SAMPLE else wanted
    starts = KMEANS_STARTS if len(some) <= KMEANS_STARTS_MOST else 1
    found = KMeans(possible, n_init=starts, max_iter=100, tol=1e-3, random_state=seed).fit(some)
    near, _ = nearest(points, found.cluster_centers_, 1)
    _, labels = np.unique(near[:, 0], return_inverse=True)
    return Partition(labels.astype(np.int64), "kmeans", {"k": wanted})


class Density:
    """HDBSCAN of points (n, d), n >= 2, up to the spanning tree; cutting it is quick, so a sweep costs little more."""

    def __init__(self, points: np.ndarray, say: Callable[[str], None] | None = None) -> None:
        label = require("hdbscan._hdbscan_linkage", "hdbscan", "cluster").label
        self.size = n = len(points)
        self.min_samples = min(MIN_SAMPLES, n - 1)
        (say or _nothing)("neighbours")
        edges = _all_pairs(points, self.min_samples) if n <= EXACT_MOST else _graph(points, self.min_samples)
        (say or _nothing)("clusters")
        apart = edges[edges[:, 2] > 0, 2]
        edges[:, 2] = np.maximum(edges[:, 2], NEAREST_SHARE * float(np.median(apart)) if len(apart) else 1.0)
        order = np.lexsort((edges[:, 1], edges[:, 0], edges[:, 2]))
        self._linkage = label(np.ascontiguousarray(edges[order]))

    def cut(self, min_cluster_size: int | None = None) -> Partition:
        """The clusters of greatest excess of mass with at least so many members."""
        hdbscan = require("hdbscan.hdbscan_", "hdbscan", "cluster")
        smallest = min_cluster_size or usual_size(self.size)
        params = {"min_cluster_size": smallest, "min_samples": self.min_samples}
        labels, _, persistence, condensed, _ = hdbscan._tree_to_labels(None, self._linkage, smallest)
        outlying = hdbscan.outlier_scores(condensed)
        return Partition(labels.astype(np.int64), "hdbscan", params, None, tuple(map(float, persistence)), outlying)


def _all_pairs(points: np.ndarray, min_samples: int) -> np.ndarray:
    """The spanning tree of mutual reachability over all pairs: float64 (n - 1, 3) of two ends and a distance."""
    linkage = require("hdbscan._hdbscan_linkage", "hdbscan", "cluster")
    exact = points.astype(np.float64)
    lengths = np.einsum("ij,ij->i", exact, exact)
    far = np.sqrt(np.maximum(lengths[:, None] + lengths - 2 * (exact @ exact.T), 0))
    np.fill_diagonal(far, 0)
    core = np.partition(far, min_samples, axis=1)[:, min_samples]
    reach = np.maximum(np.maximum(far, core[:, None]), core)
    return cast("np.ndarray", linkage.mst_linkage_core(reach))


def _graph(points: np.ndarray, min_samples: int) -> np.ndarray:
    """As `_all_pairs`, over each point's nearest neighbours; parts without a link are joined where they face."""
    index, distance = neighbours(points, min(GRAPH_NEIGHBOURS, len(points) - 1), exact=False)
    core = distance[:, min_samples - 1].astype(np.float64)
    starts = np.repeat(np.arange(len(points)), index.shape[1])
    ends = index.ravel()
    reach = np.maximum(np.maximum(distance.ravel(), core[starts]), core[ends])
    inside, parts = _spanning(starts, ends, reach, len(points))
    joints = _joints(points, parts)
    across = np.linalg.norm(points[joints[:, 0]] - points[joints[:, 1]], axis=1)
    reach = np.maximum(np.maximum(across, core[joints[:, 0]]), core[joints[:, 1]])
    return np.concatenate([inside, np.column_stack([joints, reach])])


def _spanning(starts: np.ndarray, ends: np.ndarray, weights: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Lightest spanning forest (m, 3), and which part (n,) each point is in."""
    csgraph = require("scipy.sparse.csgraph", "scipy", "cluster")
    csr = require("scipy.sparse", "scipy", "cluster").csr_matrix
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    order = np.lexsort((high, low, weights))
    low, high, weights = low[order], high[order], weights[order]
    _, once = np.unique(low * n + high, return_index=True)
    # Ranks for weights: the tree is the same, nothing is nought (which a sparse matrix would lose), no two are equal.
    forest = csgraph.minimum_spanning_tree(csr((once + 1.0, (low[once], high[once])), shape=(n, n))).tocoo()
    kept = np.sort(forest.data.astype(np.int64) - 1)
    _, parts = csgraph.connected_components(forest, directed=False)
    return np.column_stack([low[kept], high[kept], weights[kept]]).astype(np.float64), parts


def _joints(points: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Pairs of points (m, 2) that make one of the parts: a spanning tree of the parts' centres says which meet.

    Each pair is the points of the two parts that are nearest to the other part's centre.
    """
    count = int(parts.max()) + 1
    if count == 1:
        return np.empty((0, 2), np.int64)
    order = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[order], np.arange(count + 1))
    centres = np.add.reduceat(points[order].astype(np.float64), bounds[:-1]) / np.diff(bounds)[:, None]
    centres = centres.astype(np.float32)
    index, distance = neighbours(centres, min(GRAPH_NEIGHBOURS, count - 1))
    links, groups = _spanning(np.repeat(np.arange(count), index.shape[1]), index.ravel(), distance.ravel(), count)
    pairs = np.concatenate([links[:, :2].astype(np.int64), _joints(centres, groups)])

    def facing(part: int, other: int) -> int:
        inside = order[bounds[part] : bounds[part + 1]]
        return int(inside[np.argmin(((points[inside] - centres[other]) ** 2).sum(axis=1))])

    return np.array([(facing(a, b), facing(b, a)) for a, b in pairs.tolist()], np.int64)


def _evoc(vectors: np.ndarray, seed: int, min_cluster_size: int | None, say: Callable[[str], None]) -> Partition:
    """EVoC (Tutte Institute) on the vectors themselves."""
    if len(vectors) < EVOC_FEWEST:
        raise BadInput(f"{len(vectors)} images are too few for evoc ({EVOC_FEWEST} are needed): take --method hdbscan")
    EVoC = require("evoc", "evoc", "cluster").EVoC
    say("EVoC; its first use on a machine compiles for up to a minute")
    smallest = min_cluster_size or 5
    with warnings.catch_warnings():  # about threads and old spellings in its own code
        warnings.simplefilter("ignore")
        labels = EVoC(base_min_cluster_size=smallest, random_state=seed).fit_predict(
            np.ascontiguousarray(vectors, np.float32)
        )
    return Partition(np.asarray(labels, np.int64), "evoc", {"min_cluster_size": smallest})


def _nothing(stage: str) -> None:
    """For who is not interested."""
