"""Whether confidence means what it says: the reliability curve and the expected calibration error (ECE).

ECE = sum over bins of (answers in it / all answers) x |accuracy in it - mean confidence in it|, from 0 (calibrated) to
1 (Naeini, Cooper and Hauskrecht, AAAI 2015). Bins of equal width are what papers report; bins of equal numbers of
answers do not leave most bins empty when a model is always sure (Nixon et al. 2019). Both are given. The database
counts answers in cells of 0.001; everything else is arithmetic on those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lake.analytics.statistics import Rate, wilson
from lake.sql import connections

if TYPE_CHECKING:
    from lake.storage.store import Lake

BINS = 10
_CELLS = 1_000
_DRAWS = 400


@dataclass(frozen=True)
class Bin:
    """Answers with a confidence from `low` to `high`: their mean confidence, and their accuracy with its interval."""

    low: float
    high: float
    confidence: float
    accuracy: Rate


@dataclass(frozen=True)
class Curve:
    """Bins that hold answers, by confidence. `low`, `high`: the ECE's 95 % interval, by bootstrap (basic, which also
    takes out the upward bias of few answers). `by_chance`: what a perfectly calibrated model with as many answers stays
    below in 95 % of cases.
    """

    bins: list[Bin]
    ece: float
    low: float
    high: float
    by_chance: float


@dataclass(frozen=True)
class Calibration:
    """Of `n` judged answers with a confidence. Both curves are None when n is 0."""

    n: int
    confidence: float | None
    accuracy: Rate
    equal_width: Curve | None
    equal_count: Curve | None


def calibration(lake: Lake, where: str | None = None, seed: int = 0) -> Calibration:
    """Of the judged answers that pass `where` (a checked predicate over predictions)."""
    found = connections.query(
        lake,
        f"""
        SELECT least(floor(confidence * {_CELLS}), {_CELLS - 1})::INTEGER AS cell, count(*) AS n,
               count(*) FILTER (WHERE correct) AS "right", sum(confidence) AS total
        FROM answers_judged WHERE {where or "true"} AND correct IS NOT NULL AND confidence BETWEEN 0 AND 1
        GROUP BY cell ORDER BY cell""",
    )
    cell, n, right = (found[name].to_numpy().astype(np.int64) for name in ("cell", "n", "right"))
    total = found["total"].to_numpy().astype(np.float64)
    return of_cells(cell, n, right, total, seed)


def of_cells(cell: np.ndarray, n: np.ndarray, right: np.ndarray, total: np.ndarray, seed: int = 0) -> Calibration:
    """From cells of 0.001 of confidence, (m,) each: their number, answers, right ones, sum of confidences."""
    every = int(n.sum())
    if not every:
        return Calibration(0, None, wilson(0, 0), None, None)
    width = cell * BINS // _CELLS
    middle = np.cumsum(n) - n / 2
    count = np.minimum((middle * BINS / every).astype(np.int64), BINS - 1)
    return Calibration(
        every,
        float(total.sum() / every),
        wilson(int(right.sum()), every),
        _curve(width, cell, n, right, total, seed, True),
        _curve(count, cell, n, right, total, seed, False),
    )


def _curve(
    bins: np.ndarray, cell: np.ndarray, n: np.ndarray, right: np.ndarray, total: np.ndarray, seed: int, equal: bool
) -> Curve:
    rng = np.random.default_rng(seed)
    every, mean = int(n.sum()), total / n
    belongs = np.zeros((len(cell), BINS))
    belongs[np.arange(len(cell)), bins] = 1

    def error(gaps: np.ndarray) -> np.ndarray:
        """ECE of sums of (right - confidence) by cell, (draws, m)."""
        found: np.ndarray = np.abs(gaps @ belongs).sum(axis=1) / every
        return found

    ece = float(error((right - total)[None])[0])
    shares = np.concatenate([right, n - right]) / every
    drawn = rng.multinomial(every, shares / shares.sum(), _DRAWS)
    hits, misses = drawn[:, : len(cell)], drawn[:, len(cell) :]
    least, most = np.quantile(error(hits - (hits + misses) * mean), [0.025, 0.975])
    calibrated = rng.binomial(n, np.clip(mean, 0, 1), (_DRAWS, len(cell)))
    by_chance = float(np.quantile(error(calibrated - total), 0.95))
    made = []
    for one in np.unique(bins):
        inside = bins == one
        size = int(n[inside].sum())
        ends = (
            (one / BINS, (one + 1) / BINS)
            if equal
            else (cell[inside].min() / _CELLS, (cell[inside].max() + 1) / _CELLS)
        )
        made.append(
            Bin(
                float(ends[0]),
                float(ends[1]),
                float(total[inside].sum() / size),
                wilson(int(right[inside].sum()), size),
            )
        )
    return Curve(made, ece, max(0.0, 2 * ece - float(most)), max(0.0, min(1.0, 2 * ece - float(least))), by_chance)
