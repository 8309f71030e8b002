"""Unit vectors to whitened points: the coordinates linear models are fitted in.

A network's vectors vary a lot in a few directions that say little of what a person means. Whitened, every direction
varies alike, so that a model fitted on a handful of examples is not drawn to those few: the mean of some examples is
then already the linear discriminant against everything else (Fisher's, with the lake's covariance). Small directions
are shrunk rather than blown up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIM = 128
# Added to every direction's variance, as a share of the mean variance kept.
SHRINK = 0.1
FITTED_ON = 30_000


@dataclass(frozen=True)
class Whitening:
    """`mean`: float32 (dim,); `basis`: float32 (dim, d), directions by falling variance, scaled."""

    mean: np.ndarray
    basis: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (n, d) of vectors (n, dim)."""
        points: np.ndarray = (vectors - self.mean) @ self.basis
        return points


def fit(vectors: np.ndarray, dim: int = DIM) -> Whitening:
    """The whitening of vectors (n, dim), kept to the `dim` directions that vary most, fewer when there are fewer.

    One vector, or equal ones, give points that are all zero.
    """
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = vectors - mean
    variances, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64) / max(1, len(vectors)))
    kept = slice(None, -1 - min(dim, len(vectors), vectors.shape[1]), -1)
    variances, directions = np.maximum(variances[kept], 0.0), directions[:, kept]
    spread = variances + SHRINK * variances.mean()
    # A direction in which nothing varies, as in equal vectors, says nothing: rounding errors must not be scaled up.
    scale = np.where(variances > 1e-9, 1 / np.sqrt(np.maximum(spread, 1e-12)), 0.0)
    return Whitening(mean, (directions * scale).astype(np.float32))
