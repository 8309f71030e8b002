"""Whitening: unit vectors to points whose every direction varies alike, for fitting linear models.

A network's vectors vary much in a few directions that say little of what a person means. After whitening, a model
fitted on a handful of examples is not drawn to those few: the mean of some examples is then already the linear
discriminant against everything else (Fisher's, with the lake's covariance). Directions that vary little are shrunk
rather than scaled up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIM = 128
# Added to every direction's variance, as a share of the mean variance of the directions.
SHRINK = 0.1
FIT_SAMPLE = 30_000


@dataclass(frozen=True)
class Whitening:
    """`mean`: float32 (dim,); `basis`: float32 (dim, d), scaled directions, the most variance first."""

    mean: np.ndarray
    basis: np.ndarray

    def transform(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (n, d) of vectors (n, dim)."""
        points: np.ndarray = (vectors - self.mean) @ self.basis
        return points


def fit(vectors: np.ndarray, dim: int = DIM) -> Whitening:
    """The whitening of vectors (n, dim), with at most the `dim` directions that vary most.

    One vector, or equal ones, give points that are all zero.
    """
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = vectors - mean
    variances, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64) / max(1, len(vectors)))
    widest = slice(None, -1 - min(dim, len(vectors), vectors.shape[1]), -1)
    variances, directions = np.maximum(variances[widest], 0.0), directions[:, widest]
    shrunk = variances + SHRINK * variances.mean()
    # A direction in which nothing varies, as in equal vectors, is dropped: rounding errors must not be scaled up.
    scale = np.where(variances > 1e-9, 1 / np.sqrt(np.maximum(shrunk, 1e-12)), 0.0)
    return Whitening(mean, (directions * scale).astype(np.float32))
