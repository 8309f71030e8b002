"""Subgroups along a direction of the vectors: ridge regression of errors on vectors, leave one out.

The regression expects an error for each prediction from all others' errors. The predictions with the highest
expected errors form subgroups of several sizes. Everything that depends on the vectors alone is computed once.
"""

from __future__ import annotations

import numpy as np

from embeddings.discovery.scan_statistic import score

# Shares of the predictions that form a subgroup. Of few predictions, only the larger shares reach the minimal support.
SHARES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
RIDGE = 100.0


class ErrorDirection:
    """Regresses errors on points (n, d), float. A row of NaN is a prediction without a vector.

    `usable`: bool (n,), the predictions with a vector.
    """

    def __init__(self, points: np.ndarray) -> None:
        self.usable = ~np.isnan(points).any(axis=1)
        centred = np.where(self.usable[:, None], points, 0.0)
        centred = centred - centred[self.usable].mean(axis=0) * self.usable[:, None]
        self._points = centred / max(float(centred[self.usable].std(axis=0).max(initial=0.0)), 1e-12)
        self._full_solver = self._solver(self.usable)

    def expected(self, errors: np.ndarray, remaining: np.ndarray | None = None) -> np.ndarray:
        """Expected error of each prediction from all others, (n, m), for errors (n, m).

        `remaining`: bool (n,), the predictions to fit on; None: all. -inf for predictions outside and without vector.
        """
        usable = self.usable if remaining is None else self.usable & remaining
        weights, leverage = self._full_solver if remaining is None else self._solver(usable)
        rows = np.column_stack([usable, self._points * usable[:, None]])
        fitted = weights @ (rows.T @ (errors * usable[:, None]))
        leave_one_out = (fitted - leverage[:, None] * errors) / np.maximum(1 - leverage, 1e-9)[:, None]
        expected: np.ndarray = np.where(usable[:, None], leave_one_out, -np.inf)
        return expected

    def sizes(self, n: int, support: int) -> list[int]:
        """Sizes of the subgroups of n predictions, ascending; each at least `support`."""
        return sorted({size for share in SHARES if (size := round(share * n)) >= support})

    def highest_scores(self, errors: np.ndarray, support: int) -> np.ndarray:
        """The highest score of any subgroup along the direction, (m,), for each column of errors (n, m)."""
        sizes = self.sizes(int(self.usable.sum()), support)
        if not sizes:
            return np.zeros(errors.shape[1])
        order = np.argsort(-self.expected(errors), axis=0)[: sizes[-1]]
        sums = np.take_along_axis(errors, order, axis=0).cumsum(axis=0, dtype=np.float64)[np.array(sizes) - 1]
        total = float(errors[:, 0].sum())
        n, rows = len(errors), zip(sums, sizes, strict=True)
        scores = np.stack([score(row, np.full(len(row), float(size)), total, n) for row, size in rows])
        highest: np.ndarray = scores.max(axis=0)
        return highest

    def _solver(self, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, d + 1), which turns products of vectors and errors into expected errors; and each row's leverage (n,)."""
        rows = np.column_stack([usable, self._points * usable[:, None]]).astype(np.float64)
        penalty = np.full(rows.shape[1], RIDGE)
        penalty[0] = 1e-9
        weights = rows @ np.linalg.inv(rows.T @ rows + np.diag(penalty))
        return weights, np.einsum("ij,ij->i", weights, rows)
