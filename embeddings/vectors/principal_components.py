"""Principal components: vectors of hundreds of dimensions reduced to a few dozen."""

from __future__ import annotations

import numpy as np

DIM = 50
# The components change little with more vectors to fit on.
FIT_SAMPLE = 10_000


def reduce(vectors: np.ndarray, seed: int, dim: int = DIM) -> np.ndarray:
    """The vectors (n, d) in their own principal components, float32 (n, at most `dim`), the widest component first.

    The components are fitted on a seeded sample of the vectors. Equal vectors have none.
    """
    return PrincipalComponents(vectors, seed, dim).transform(vectors)


class PrincipalComponents:
    """The principal components of vectors (n, d), fitted on a seeded sample; transforms other vectors, too."""

    def __init__(self, vectors: np.ndarray, seed: int, dim: int = DIM) -> None:
        fitted_on = sample(vectors, FIT_SAMPLE, seed)
        if not len(fitted_on):
            self._mean, self._directions = np.zeros(vectors.shape[1]), np.zeros((vectors.shape[1], 0))
            return
        self._mean = fitted_on.mean(axis=0)
        centred = fitted_on - self._mean
        # By random projection and two power iterations (Halko, Martinsson, Tropp: SIAM Review 53, 2011): an exact
        # decomposition of 1,280 dimensions takes seconds.
        width = min(dim + 10, *centred.shape)
        projected = np.random.default_rng(seed).standard_normal((centred.shape[1], width), np.float32)
        for _ in range(3):
            projected = centred.T @ _orthogonal(centred @ projected, width)
        self._directions = _orthogonal(projected, min(dim, max(0, len(vectors) - 1)))

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (m, dim) of vectors (m, d)."""
        reduced: np.ndarray = vectors @ self._directions - self._mean @ self._directions
        return np.ascontiguousarray(reduced, np.float32)


def _orthogonal(columns: np.ndarray, most: int) -> np.ndarray:
    """An orthogonal basis of the columns, float32 (n, at most `most`), the widest first, without rounding errors.

    From the small product of the columns with themselves: a QR of 10,000 rows takes ten times as long.
    """
    variances, rotations = np.linalg.eigh((columns.T @ columns).astype(np.float64))
    widest = np.argsort(-variances, kind="stable")[:most]
    widest = widest[variances[widest] > max(1e-30, variances.max(initial=0.0) * 1e-9)]
    basis: np.ndarray = columns @ (rotations[:, widest] / np.sqrt(variances[widest])).astype(np.float32)
    return basis


def sample(points: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most `most` of the rows, drawn by the seed, in their order."""
    if len(points) <= most:
        return points
    return points[np.sort(np.random.default_rng(seed).choice(len(points), most, replace=False))]
