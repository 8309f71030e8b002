"""The k nearest neighbours of every vector: exact, or approximate and many times faster.

It works in blocks, so memory grows with the number of vectors, not with its square. It uses FAISS if it is installed,
else numpy. The same vectors give the same neighbours; of equally near ones FAISS and numpy may return different ones.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lake.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

Metric = Literal["euclidean", "cosine"]

BLOCK = 1_024
# Lists of the inverted file that are searched: finds 0.97 of the neighbours of 10,000 photographs in 50 dimensions.
PROBED_LISTS = 16
# Fewer vectors are always searched exactly.
APPROXIMATE_FROM = 8_000


def neighbours(
    points: np.ndarray,
    k: int,
    *,
    metric: Metric = "euclidean",
    exact: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n, k) int64 and distances (n, k) float32 of the k nearest other points, the nearest first.

    `points` (n, d). The distance is Euclidean, or 1 - cosine (0 to 2). A point is never its own neighbour; a copy of
    it may be. If not `exact`, from APPROXIMATE_FROM points on and with FAISS, only the PROBED_LISTS nearest of about
    root-n lists are searched: some neighbours are then replaced by others nearly as near. `progress` receives the
    number of points that were just done. Raises BadInput unless 1 <= k < n.
    """
    n = len(points)
    if not 1 <= k < n:
        raise BadInput(f"k is {k}; it must be from 1 to {n - 1}, since there are {n} vectors")
    # One more, since a point finds itself. Among many copies of it, not even that is certain.
    index, distance = nearest(points, points, k + 1, metric=metric, exact=exact, progress=progress)
    own = index == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    return index[~own].reshape(n, k), distance[~own].reshape(n, k)


def nearest(
    queries: np.ndarray,
    points: np.ndarray,
    k: int,
    *,
    metric: Metric = "euclidean",
    exact: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Like `neighbours`, for each of `queries` (m, d) among `points` (n, d): indices and distances (m, k).

    Raises BadInput unless 1 <= k <= n.
    """
    if not 1 <= k <= len(points):
        raise BadInput(f"k is {k}; it must be from 1 to the number of vectors ({len(points)})")
    queries, points = _prepared(queries, metric), _prepared(points, metric)
    index = np.empty((len(queries), k), np.int64)
    squared = np.empty((len(queries), k), np.float32)
    if importlib.util.find_spec("faiss") is None:
        search = _numpy(points, k)
    else:
        search = _faiss(points, k, exact or len(points) < APPROXIMATE_FROM)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        squared[rows], index[rows] = search(queries[rows])
        if progress is not None:
            progress(len(queries[rows]))
    np.maximum(squared, 0, out=squared)  # rounding may make the distance of a copy negative
    return index, squared / 2 if metric == "cosine" else np.sqrt(squared)


def _prepared(points: np.ndarray, metric: Metric) -> np.ndarray:
    """Contiguous float32; of length 1 for the cosine."""
    points = np.ascontiguousarray(points, np.float32)
    if metric == "euclidean":
        return points
    length = np.linalg.norm(points, axis=1, keepdims=True)
    unit: np.ndarray = points / np.where(length, length, 1)
    return unit


def _faiss(points: np.ndarray, k: int, exact: bool) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    import faiss

    dim = points.shape[1]
    flat: Any = faiss.IndexFlatL2(dim)
    if exact:
        flat.add(points)
        return lambda queries: flat.search(queries, k)
    lists = round(len(points) ** 0.5)
    index: Any = faiss.IndexIVFFlat(flat, dim, lists)
    index.cp.max_points_per_centroid = 64  # trained on more, the lists are no better
    index.nprobe = PROBED_LISTS
    index.train(points)
    index.add(points)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        squared, indices = index.search(queries, k)
        short = (indices < 0).any(axis=1)
        if short.any():  # the searched lists have fewer than k points
            exhaustive: Any = faiss.IndexFlatL2(dim)
            exhaustive.add(points)
            squared[short], indices[short] = exhaustive.search(queries[short], k)
        return squared, indices

    return search


def _numpy(points: np.ndarray, k: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    lengths = np.einsum("ij,ij->i", points, points)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A query's own length is the same for all points: it is added to the k chosen distances only.
        distances = lengths - 2 * (queries @ points.T)
        if k < len(points):
            chosen = np.argpartition(distances, k - 1, axis=1)[:, :k]
        else:
            chosen = np.tile(np.arange(k), (len(distances), 1))
        near = np.take_along_axis(distances, chosen, axis=1)
        order = np.lexsort((chosen, near), axis=1)
        squared = np.take_along_axis(near, order, axis=1) + np.einsum("ij,ij->i", queries, queries)[:, None]
        return squared, np.take_along_axis(chosen, order, axis=1)

    return search
