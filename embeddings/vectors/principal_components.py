"""Principal components: vectors of hundreds of dimensions to a few dozen, where distance and density mean something."""

from __future__ import annotations

import numpy as np

DIM = 50
# The components change little with more vectors to learn from.
FITTED_ON = 10_000


def reduce(vectors: np.ndarray, seed: int, dim: int = DIM) -> np.ndarray:
    """Principal components float32 (n, at most `dim`), learned from a seeded sample of these vectors.

    Widest first; equal vectors have none.
    """
    return Components(vectors, seed, dim)(vectors)


class Components:
    """The principal components of vectors (n, d), to put others among them."""

    def __init__(self, vectors: np.ndarray, seed: int, dim: int = DIM) -> None:
        some = sample(vectors, FITTED_ON, seed)
        if not len(some):
            self._mean, self._directions = np.zeros(vectors.shape[1]), np.zeros((vectors.shape[1], 0))
            return
        self._mean = some.mean(axis=0)
        centred = some - self._mean
        # By random projection and two power iterations (Halko, Martinsson, Tropp: SIAM Review 53, 2011): an exact
        # decomposition of 1,280 dimensions takes seconds.
        width = min(dim + 10, *centred.shape)
        seen = np.random.default_rng(seed).standard_normal((centred.shape[1], width), np.float32)
        for _ in range(3):
            seen = centred.T @ _orthogonal(centred @ seen, width)
        self._directions = _orthogonal(seen, min(dim, max(0, len(vectors) - 1)))

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (m, dim) of vectors (m, d)."""
        placed: np.ndarray = vectors @ self._directions - self._mean @ self._directions
        return np.ascontiguousarray(placed, np.float32)


def _orthogonal(columns: np.ndarray, most: int) -> np.ndarray:
    """An orthogonal basis of the columns, float32 (n, at most `most`), widest first; rounding is no direction.

    From the small product of the columns with themselves: a QR of 10,000 rows takes ten times as long.
    """
    squares, sides = np.linalg.eigh((columns.T @ columns).astype(np.float64))
    widest = np.argsort(-squares, kind="stable")[:most]
    widest = widest[squares[widest] > max(1e-30, squares.max(initial=0.0) * 1e-9)]
    basis: np.ndarray = columns @ (sides[:, widest] / np.sqrt(squares[widest])).astype(np.float32)
    return basis


def sample(points: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most `most` of the rows, drawn by the seed, in their order."""
    if len(points) <= most:
        return points
    return points[np.sort(np.random.default_rng(seed).choice(len(points), most, replace=False))]
