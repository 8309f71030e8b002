"""Active search: from an example to all images of its kind, with few looks at others. Pure numpy.

After each page a linear model is fitted to the marks, and the next page has the images it ranks highest: showing the
likeliest first finds a rare kind soonest, and its errors are marked at once (positive-first, arXiv 2603.24480). Every
unmarked image counts as negative: for a rare kind that is nearly true, and it teaches the model what the lake looks
like (learning from positive and unlabelled examples). So the model is a ridge regression over the whole lake with heavy
positives; its normal equations are stored, and a mark changes them by one row. The similarity to the nearest positive
is added, for kinds with several appearances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Measured on CIFAR-10's classes thinned to 0.5 %: the looks needed to find 90 % fall from a weight of 5 to 60, and rise
# again beyond 150.
POSITIVE_WEIGHT = 60.0
RIDGE = 1_000.0
# Weight of the similarity to the nearest positive; both parts of the ranking are in standard deviations.
NEAREST_WEIGHT = 0.3
NEAREST_BLOCK = 8
# For the estimate of how many remain.
MIN_RECENT = 240
DRAWS = 400
PAGE = 24


@dataclass(frozen=True)
class RemainingEstimate:
    """How many images of the kind remain: an estimate, an interval, and how many of the next PAGE are expected.

    The interval is 95 % if its model is true; docs/benchmarks.md has the measured coverage.
    """

    expected: float
    low: int
    high: int
    next_page: float


@dataclass(frozen=True)
class _Model:
    """`weights` float64 (d + 1,), `inverse` of the normal equations, `linear` and `scores` float32 (n,)."""

    weights: np.ndarray
    inverse: np.ndarray
    linear: np.ndarray
    scores: np.ndarray


class ActiveSearch:
    """The state of one search over points (n, d), float32. `marks`: int8 (n,), 1 yes, -1 no, 0 not marked."""

    def __init__(self, points: np.ndarray) -> None:
        self._rows = np.concatenate([points, np.ones((len(points), 1), np.float32)], axis=1)
        lengths = np.linalg.norm(points, axis=1, keepdims=True)
        self._directions = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 0)
        self._gram = (self._rows.T @ self._rows).astype(np.float64)
        self._gram[np.diag_indices_from(self._gram)] += RIDGE
        self._sum = self._rows.sum(axis=0, dtype=np.float64)
        self.marks = np.zeros(len(points), np.int8)
        self._marked_at = np.zeros(len(points), np.int64)
        self._model: _Model | None = None
        self._near_rows: set[int] = set()
        self._near = np.full(len(points), -1.0, np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def mark(self, rows: Sequence[int] | np.ndarray, mark: int) -> None:
        """Marks rows yes (1) or no (-1), or removes their marks (0)."""
        self.marks[np.asarray(rows, dtype=np.intp)] = mark
        self._marked_at[np.asarray(rows, dtype=np.intp)] = self._marked_at.max(initial=0) + 1
        self._model = None

    def scores(self) -> np.ndarray:
        """The ranking, float32 (n,); higher is likelier. All zero while nothing is marked yes."""
        return self._fitted().scores

    def page(self, size: int) -> np.ndarray:
        """The `size` likeliest unmarked rows, the likeliest first; fewer if fewer are unmarked."""
        unmarked = np.flatnonzero(self.marks == 0)
        scores = self.scores()[unmarked]
        if len(unmarked) > size:
            # All that tie with the last one: which of them are chosen must not depend on np.partition.
            threshold = np.partition(scores, len(scores) - size)[len(scores) - size]
            chosen = scores >= threshold
            unmarked, scores = unmarked[chosen], scores[chosen]
        likeliest: np.ndarray = unmarked[np.argsort(-scores, kind="stable")[:size]]
        return likeliest

    def remaining(self, seed: int = 0) -> RemainingEstimate | None:
        """How many unmarked images are of the kind; None until both a yes and a no are marked.

        A logistic regression of the recent marks on their scores, each as it would be without its own mark, gives the
        probability of each unmarked image. Early marks are left out: their scores are far above those of the rest. The
        interval covers the error of the fit (Laplace) and chance.
        """
        marked = np.flatnonzero(self.marks)
        recent = marked[np.argsort(self._marked_at[marked])][-max(MIN_RECENT, len(marked) // 2) :]
        yes = self.marks[recent] > 0
        if not yes.any() or yes.all():
            return None
        model = self._fitted()
        rows = self._rows[recent].astype(np.float64)
        scores = rows @ model.weights
        # Without its mark, a yes would count as a no like everything unmarked: one row of the equations.
        leverage = np.einsum("ij,jk,ik->i", rows, model.inverse, rows, optimize=True)
        without = (scores - (POSITIVE_WEIGHT + 1) * leverage) / np.maximum(1 - (POSITIVE_WEIGHT - 1) * leverage, 1e-3)
        (intercept, slope), covariance = _logistic(np.where(yes, without, scores), yes)
        unmarked_scores = model.linear[self.marks == 0]
        rng = np.random.default_rng(seed)
        draws = rng.multivariate_normal([intercept, slope], covariance, DRAWS)
        counts, edges = np.histogram(unmarked_scores, 512)
        middles = (edges[:-1] + edges[1:]) / 2
        expected = _probability(draws[:, :1] + np.maximum(draws[:, 1:], 0.0) * middles) @ counts
        low, high = np.quantile(rng.poisson(expected), [0.025, 0.975])
        best = np.partition(unmarked_scores, max(0, len(unmarked_scores) - PAGE))[-PAGE:]
        return RemainingEstimate(
            float(np.median(expected)), int(low), int(high), float(_probability(intercept + slope * best).sum())
        )

    def _fitted(self) -> _Model:
        """The model fitted to the current marks."""
        if self._model is None:
            yes = np.flatnonzero(self.marks > 0)
            rows = self._rows[yes].astype(np.float64)
            inverse = np.linalg.inv(self._gram + (POSITIVE_WEIGHT - 1.0) * (rows.T @ rows))
            weights = inverse @ ((POSITIVE_WEIGHT + 1.0) * rows.sum(axis=0) - self._sum)
            linear = self._rows @ weights.astype(np.float32)
            scores: np.ndarray = np.zeros(len(self), np.float32)
            if len(yes):
                scores = _standardised(linear) + NEAREST_WEIGHT * _standardised(self._nearest(yes))
            self._model = _Model(weights, inverse, linear, scores)
        return self._model

    def _nearest(self, yes: np.ndarray) -> np.ndarray:
        """Cosine to the nearest row marked yes, float32 (n,). Compares only rows that are new since the last call."""
        if not self._near_rows <= set(yes.tolist()):  # a mark was removed
            self._near_rows, self._near = set(), np.full(len(self), -1.0, np.float32)
        new = [row for row in yes.tolist() if row not in self._near_rows]
        for start in range(0, len(new), NEAREST_BLOCK):
            rows = new[start : start + NEAREST_BLOCK]
            # Always the same shape, so it rounds alike in whatever order the marks came: equal marks, equal pages.
            block = self._directions[rows + rows[:1] * (NEAREST_BLOCK - len(rows))]
            np.maximum(self._near, (self._directions @ block.T).max(axis=1), out=self._near)
        self._near_rows.update(new)
        return self._near


def _probability(logits: np.ndarray) -> np.ndarray:
    """Probabilities of log odds."""
    probabilities: np.ndarray = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
    return probabilities


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def _logistic(scores: np.ndarray, yes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and slope (2,) of the log odds by score, and their covariance (2, 2).

    Newton's method with a weak normal prior, since few marks may be separable.
    """
    centre, spread = float(scores.mean()), float(scores.std()) or 1.0
    rows = np.stack([np.ones(len(scores)), (scores - centre) / spread], axis=1)
    prior = np.diag([1 / 100.0, 1 / 25.0])
    coefficients = np.zeros(2)
    for _ in range(50):
        probability = _probability(rows @ coefficients)
        hessian = (rows * (probability * (1 - probability))[:, None]).T @ rows + prior
        step = np.linalg.solve(hessian, rows.T @ (yes - probability) - prior @ coefficients)
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-8:
            break
    covariance = np.linalg.inv(hessian)
    # From standardised scores to the original ones.
    unscale = np.array([[1.0, -centre / spread], [0.0, 1.0 / spread]])
    return unscale @ coefficients, unscale @ covariance @ unscale.T
