"""Expected calibration error (ECE) and reliability curve: does confidence agree with accuracy?

ECE = sum over bins of (predictions in the bin / all predictions) x |accuracy in the bin - mean confidence in the bin|,
from 0 (calibrated) to 1 (Naeini, Cooper and Hauskrecht, AAAI 2015). Every ECE of the product is of `BINS` bins of equal
width, as most papers report it (Guo et al., ICML 2017); bin k of BINS holds confidences above k / BINS, up to and with
(k + 1) / BINS. `calibration` gives the error over bins of equal numbers of predictions, too: they do not leave most
bins empty when a model is always confident (Nixon et al. 2019). The database counts predictions in cells of 1 / 1500 of
confidence; everything else is arithmetic on those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lake.analytics.statistics import Rate, wilson
from lake.sql import connections
from lake.sql.where import predicate

if TYPE_CHECKING:
    from lake.storage.store import Lake

BINS = 15
_CELLS = 100 * BINS
_DRAWS = 400


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions with a confidence from `low` to `high`: their mean confidence, and their accuracy with its
    interval.
    """

    low: float
    high: float
    confidence: float
    accuracy: Rate


@dataclass(frozen=True)
class ReliabilityCurve:
    """Bins that hold predictions, by confidence. `low`, `high`: the ECE's 95 % interval, by bootstrap (basic, which
    also removes the upward bias of few predictions). `by_chance`: the ECE that a perfectly calibrated model with as
    many predictions stays below in 95 % of cases.
    """

    bins: list[ReliabilityBin]
    ece: float
    low: float
    high: float
    by_chance: float


@dataclass(frozen=True)
class Calibration:
    """Of `n` evaluated predictions with a confidence. Both curves are None when n is 0."""

    n: int
    confidence: float | None
    accuracy: Rate
    equal_width: ReliabilityCurve | None
    equal_count: ReliabilityCurve | None


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """int64: the bin of equal width, 0 to BINS - 1, of each confidence (0 to 1, any shape)."""
    cell = np.ceil(np.asarray(confidence, np.float64) * _CELLS).astype(np.int64) - 1
    bins: np.ndarray = np.clip(cell, 0, _CELLS - 1) * BINS // _CELLS
    return bins


def expected_calibration_error(gaps: np.ndarray, n: np.ndarray | float) -> np.ndarray:
    """float64 (...), 0 to 1, lower is better; nan where there are no predictions.

    `gaps` (..., bins): in each bin the sum over predictions of (1 if correct else 0) - confidence. `n` (...): how many
    predictions there are in all bins together.
    """
    n = np.asarray(n, np.float64)
    total = np.abs(gaps).sum(axis=-1)
    ece: np.ndarray = np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
    return ece


def calibration(lake: Lake, where: str | None = None, seed: int = 0) -> Calibration:
    """Of the evaluated predictions that pass `where` (a checked filter)."""
    rows = connections.query(
        lake,
        f"""
        SELECT least(greatest(ceil(confidence::DOUBLE * {_CELLS}) - 1, 0), {_CELLS - 1})::INTEGER AS cell,
               count(*) AS n, count(*) FILTER (WHERE correct) AS "right", sum(confidence) AS total
        FROM predictions_reviewed WHERE {predicate(where)} AND correct IS NOT NULL AND confidence BETWEEN 0 AND 1
        GROUP BY cell ORDER BY cell""",
    )
    cell, n, right = (rows[name].to_numpy().astype(np.int64) for name in ("cell", "n", "right"))
    confidence = rows["total"].to_numpy().astype(np.float64)
    return of_cells(cell, n, right, confidence, seed)


def of_cells(cell: np.ndarray, n: np.ndarray, right: np.ndarray, confidence: np.ndarray, seed: int = 0) -> Calibration:
    """From cells of 1 / 1500 of confidence, (m,) each: their number from 0, predictions, correct ones, sum of
    confidences.
    """
    total = int(n.sum())
    if not total:
        return Calibration(0, None, wilson(0, 0), None, None)
    equal_width = cell * BINS // _CELLS
    middle = np.cumsum(n) - n / 2
    equal_count = np.minimum((middle * BINS / total).astype(np.int64), BINS - 1)
    return Calibration(
        total,
        float(confidence.sum() / total),
        wilson(int(right.sum()), total),
        _curve(equal_width, cell, n, right, confidence, seed, True),
        _curve(equal_count, cell, n, right, confidence, seed, False),
    )


def _curve(
    bins: np.ndarray, cell: np.ndarray, n: np.ndarray, right: np.ndarray, confidence: np.ndarray, seed: int, equal: bool
) -> ReliabilityCurve:
    rng = np.random.default_rng(seed)
    total, mean = int(n.sum()), confidence / n
    in_bin = np.zeros((len(cell), BINS))
    in_bin[np.arange(len(cell)), bins] = 1

    def error(gaps: np.ndarray) -> np.ndarray:
        """ECE of sums of (right - confidence) by cell, (draws, m)."""
        return expected_calibration_error(gaps @ in_bin, total)

    ece = float(error((right - confidence)[None])[0])
    shares = np.concatenate([right, n - right]) / total
    draws = rng.multinomial(total, shares / shares.sum(), _DRAWS)
    hits, misses = draws[:, : len(cell)], draws[:, len(cell) :]
    low, high = np.quantile(error(hits - (hits + misses) * mean), [0.025, 0.975])
    calibrated = rng.binomial(n, np.clip(mean, 0, 1), (_DRAWS, len(cell)))
    by_chance = float(np.quantile(error(calibrated - confidence), 0.95))
    rows = []
    for number in np.unique(bins):
        inside = bins == number
        size = int(n[inside].sum())
        first, last = cell[inside].min(), cell[inside].max() + 1
        ends = (number / BINS, (number + 1) / BINS) if equal else (first / _CELLS, last / _CELLS)
        accuracy = wilson(int(right[inside].sum()), size)
        rows.append(ReliabilityBin(float(ends[0]), float(ends[1]), float(confidence[inside].sum() / size), accuracy))
    return ReliabilityCurve(
        rows, ece, max(0.0, 2 * ece - float(high)), max(0.0, min(1.0, 2 * ece - float(low))), by_chance
    )
