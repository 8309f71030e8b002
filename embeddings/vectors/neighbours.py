"""The k nearest neighbours of every vector: exactly, or nearly and many times faster.

Works in blocks, so that memory grows with the number of vectors and not with its square: FAISS where it is installed,
else numpy. The same vectors give the same neighbours; of equally near ones FAISS and numpy may name different ones.
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
# Lists of an inverted file looked into: 0.97 of the neighbours of 10,000 photographs' vectors, in 50 dimensions.
PROBED = 16
PROBE_FROM = 8_000


def neighbours(
    points: np.ndarray,
    k: int,
    *,
    metric: Metric = "euclidean",
    exact: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n, k) int64 and distances (n, k) float32 of the k nearest other vectors, the nearest first.

    `points` (n, d). Distance is Euclidean, or 1 - cosine (0 to 2). A vector is never its own neighbour, a copy of it
    may be. Not `exact`, from PROBE_FROM vectors on and with FAISS, looks only into the PROBED nearest of about root-n
    groups: some neighbours are then others nearly as near. `progress` is told how many more vectors are done.
    Raises BadInput unless 1 <= k < n.
    """
    n = len(points)
    if not 1 <= k < n:
        raise BadInput(f"k is {k}; {n} vectors have from 1 to {n - 1} neighbours each")
    # One more: a vector finds itself, and among many copies of it not even that is certain.
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
    """As `neighbours`, of each of `queries` (m, d) among `points` (n, d): indices and distances (m, k)."""
    if not 1 <= k <= len(points):
        raise BadInput(f"k is {k}; it must be from 1 to the number of vectors ({len(points)})")
    queries, points = _ready(queries, metric), _ready(points, metric)
    index = np.empty((len(queries), k), np.int64)
    squared = np.empty((len(queries), k), np.float32)
    if importlib.util.find_spec("faiss") is None:
        search = _numpy(points, k)
    else:
        search = _faiss(points, k, exact or len(points) < PROBE_FROM)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        squared[rows], index[rows] = search(queries[rows])
        if progress is not None:
            progress(len(queries[rows]))
    np.maximum(squared, 0, out=squared)  # rounding may leave a copy a little below nought
    return index, squared / 2 if metric == "cosine" else np.sqrt(squared)


def _ready(points: np.ndarray, metric: Metric) -> np.ndarray:
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
    index.nprobe = PROBED
    index.train(points)
    index.add(points)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        squared, found = index.search(queries, k)
        short = (found < 0).any(axis=1)
        if short.any():  # the lists looked into held fewer than k
            whole: Any = faiss.IndexFlatL2(dim)
            whole.add(points)
            squared[short], found[short] = whole.search(queries[short], k)
        return squared, found

    return search


def _numpy(points: np.ndarray, k: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    lengths = np.einsum("ij,ij->i", points, points)

    def search(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A query's own length is the same for all it is compared with: it is added for the k chosen ones only.
        far = lengths - 2 * (queries @ points.T)
        chosen = np.argpartition(far, k - 1, axis=1)[:, :k] if k < len(points) else np.tile(np.arange(k), (len(far), 1))
        near = np.take_along_axis(far, chosen, axis=1)
        order = np.lexsort((chosen, near), axis=1)
        squared = np.take_along_axis(near, order, axis=1) + np.einsum("ij,ij->i", queries, queries)[:, None]
        return squared, np.take_along_axis(chosen, order, axis=1)

    return search
