"""The score of a subgroup: how strongly its error rate exceeds the overall rate, weighed by its size.

It is the log-likelihood ratio of Kulldorff's scan statistic (Communications in Statistics 26, 1997):

    score = n kl(error rate of the subgroup, overall rate) + n' kl(error rate of the rest, overall rate)

It is 0 if the subgroup fails no more often than all predictions. `kl` is the Kullback-Leibler divergence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIRECTION = -1  # the dimension of a subgroup along a direction of the vectors; its value is a running number


@dataclass(frozen=True)
class Subgroup:
    """Predictions that meet all `conditions`: pairs of (dimension, value), both by number.

    `size`: predictions; `errors`: the sum of their errors. The only dimension of a subgroup along a direction of the
    vectors is DIRECTION.
    """

    conditions: tuple[tuple[int, int], ...]
    size: int
    errors: float
    score: float


def score(errors: np.ndarray, sizes: np.ndarray, all_errors: float, n: int) -> np.ndarray:
    """Scores (m,) of m subgroups with these errors and sizes (m,) each, among n predictions with `all_errors`."""
    inside, outside = errors / sizes, (all_errors - errors) / np.maximum(n - sizes, 1)
    overall = all_errors / n
    ratio = sizes * _divergence(inside, overall) + (n - sizes) * _divergence(outside, overall)
    return np.where(inside > overall, ratio, 0.0)


def _divergence(share: np.ndarray, overall: float) -> np.ndarray:
    """Kullback-Leibler divergence of Bernoulli distributions, in nats."""
    share = np.clip(share, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ones = np.where(share > 0, share * np.log(share / overall), 0.0)
        zeros = np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - overall)), 0.0)
    divergence: np.ndarray = ones + zeros
    return divergence
