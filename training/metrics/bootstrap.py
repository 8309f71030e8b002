"""Intervals of metrics by resampling images, and tests of two models on the same images by resampling pairs.

An image is drawn with everything that is known of it: its truth and both models' answers. A metric of sums is
resampled by the numbers of images that add the same (a few hundred of them stand for any number of images); one that
takes weights by weights; any other is computed anew on each draw. Everything is seeded. No lake is known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.metrics.metric import Judged, Metric, Summed, Weighted

DRAWS = 1_000
# A metric that must be ranked or computed anew on every draw gets as many as its interval needs.
DRAWS_ANEW = 300
LEVEL = 0.05
# Of swaps at least as bad as what was seen, this many settle a p-value to a fifth of itself (Besag and Clifford 1991).
ENOUGH = 25
PERMUTATIONS = 10_000
PERMUTATIONS_ANEW = 2_000
# Draws that are held at a time: 64 x 10,000 weights are 5 MB.
_BLOCK = 64


@dataclass(frozen=True)
class Estimate:
    """A metric's value on `n` images with the ends of its 95 % interval; None of all when it cannot be said."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def estimate(metric: Metric, judged: Judged, *, draws: int | None = None, seed: int = 0) -> Estimate:
    """The metric with its percentile bootstrap interval.

    Where every draw is alike, as with ten right answers of ten, resampling knows no uncertainty: accuracy and balanced
    accuracy have the intervals of `lake.statistics` instead, which do.
    """
    from lake.analytics import statistics

    value = metric.value(judged) if len(judged) else np.nan
    if not np.isfinite(value):
        return Estimate(None, None, None, len(judged))
    if metric.name in ("accuracy", "balanced_accuracy"):
        right = (judged.truth == judged.said) & (judged.truth >= 0)
        if metric.name == "accuracy":
            rate = statistics.wilson(int(right.sum()), len(judged))
        else:
            classes = np.unique(judged.truth[judged.truth >= 0])
            parts = [right[judged.truth == k] for k in classes]
            rate = statistics.balanced([statistics.wilson(int(part.sum()), len(part)) for part in parts])
        low, high = (value if end is None else end for end in (rate.low, rate.high))
        return Estimate(float(value), min(low, float(value)), max(high, float(value)), len(judged))
    low, high = interval(resampled(metric, judged, draws=draws, seed=seed))
    # A metric that is biased upwards by noise (ECE) may lie outside of what its resamples give.
    return Estimate(float(value), min(low, float(value)), max(high, float(value)), len(judged))


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The quantiles level / 2 and 1 - level / 2 of draws; nans are left out."""
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [level / 2, 1 - level / 2]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def resampled(metric: Metric, judged: Judged, *, draws: int | None = None, seed: int = 0) -> np.ndarray:
    """float64 (draws,): the metric on resamples of the images, with replacement."""
    found = _resampled(metric, [judged], draws, seed)
    return found[0]


def differences(metric: Metric, old: Judged, new: Judged, *, draws: int | None = None, seed: int = 0) -> np.ndarray:
    """float64 (draws,): the new model's metric less the old one's on resamples of their common images."""
    before, after = _resampled(metric, [old, new], draws, seed)
    out: np.ndarray = after - before
    return out


def swap_test(metric: Metric, old: Judged, new: Judged, *, draws: int | None = None, seed: int = 0) -> float:
    """One-sided p, above 0 to 1, that the new model is no worse: the paired permutation test.

    Were the two alike, it would be chance which of them gave which of an image's two answers: they are swapped at
    random, and p is the share of swaps with a fall as large as the one seen, which counts itself. It stops as soon as
    p is known well enough. Without a fall p is 1.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    seen = sign * (metric.value(new) - metric.value(old))
    if not seen < 0:
        return 1.0
    rng = np.random.default_rng(seed)
    worse = done = 0
    most = draws or (PERMUTATIONS if isinstance(metric, Summed) else PERMUTATIONS_ANEW)
    for found in _swapped(metric, old, new, rng):
        fair = sign * found[: most - done]
        # Rounding must not make a swap that changes nothing look better than what was seen.
        bad = fair <= seen + 1e-12
        if worse + bad.sum() >= ENOUGH:
            places = np.flatnonzero(bad)
            return ENOUGH / (done + int(places[ENOUGH - worse - 1]) + 1)
        worse += int(bad.sum())
        done += len(fair)
        if done >= most:
            break
    return (worse + 1) / (done + 1)


# ----------------------------------------------------------------------------------------------------------


def _resampled(metric: Metric, models: list[Judged], draws: int | None, seed: int) -> list[np.ndarray]:
    """One array of draws a model; the same images are drawn for all."""
    rng, n = np.random.default_rng(seed), len(models[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        if isinstance(metric, Summed):
            parts = [metric.statistics(one) for one in models]
            sums = _sums(np.hstack(parts), n, draws or DRAWS, rng)
            return [metric.of_sums(part) for part in np.split(sums, len(models), axis=1)]
        if isinstance(metric, Weighted):
            blocks = [*_weights(n, draws or DRAWS_ANEW, rng)]
            return [np.concatenate([metric.weighted(one, block) for block in blocks]) for one in models]
        places = [rng.integers(0, n, n) for _ in range(draws or DRAWS_ANEW)]
        return [np.array([metric.value(one.take(p)) for p in places], np.float64) for one in models]


def _sums(statistics: np.ndarray, n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """float64 (draws, m): sums of the rows of resamples of (n, m)."""
    kinds, counts = _kinds(statistics)
    if len(kinds) <= max(n // 8, 64):
        # How many of each kind are drawn is multinomial: no image is drawn one by one.
        found: np.ndarray = rng.multinomial(n, counts / n, size=draws) @ kinds
        return found
    return np.concatenate([weights @ statistics for weights in _weights(n, draws, rng)])


def _kinds(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows and how often each comes."""
    # A row as one number: a hundred times faster than comparing rows. Rows that differ have other products; should
    # rounding give equal rows two, they are two kinds, and the sums are the same.
    keys = statistics @ np.random.default_rng(1).standard_normal(statistics.shape[1])
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    return statistics[first], counts


def _weights(n: int, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each image is in a resample, float64 (some draws, n), a block at a time."""
    for begin in range(0, draws, _BLOCK):
        size = min(_BLOCK, draws - begin)
        places = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _swapped(metric: Metric, old: Judged, new: Judged, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Differences new - old after random swaps, some at a time, without end."""
    if isinstance(metric, Summed):
        before, after = metric.statistics(old), metric.statistics(new)
        apart = after - before
        moved = np.flatnonzero((apart != 0).any(axis=1))  # the others are the same whoever said it
        kinds, counts = _kinds(apart[moved]) if len(moved) else (apart[:0], np.zeros(0, np.int64))
        first, second = before.sum(axis=0), after.sum(axis=0)
        while True:
            swaps = rng.binomial(counts, 0.5, size=(500, len(counts))).astype(np.float64) @ kinds
            yield metric.of_sums(second - swaps) - metric.of_sums(first + swaps)
    n = len(old)
    if isinstance(metric, Weighted):
        # Both models' answers side by side: a swap is which of an image's two rows counts.
        both = _stacked(old, new)
        while True:
            swap = rng.random((_BLOCK, n)) < 0.5
            first, second = np.hstack([~swap, swap]), np.hstack([swap, ~swap])
            yield metric.weighted(both, second.astype(np.float64)) - metric.weighted(both, first.astype(np.float64))
    while True:
        found = []
        for _ in range(20):
            swap = rng.random(n) < 0.5
            found.append(metric.value(_mixed(old, new, swap)) - metric.value(_mixed(old, new, ~swap)))
        yield np.array(found)


def _stacked(old: Judged, new: Judged) -> Judged:
    """The old model's rows, then the new one's."""
    return Judged(
        new.classes,
        np.concatenate([old.truth, new.truth]),
        np.concatenate([old.said, new.said]),
        np.concatenate([old.confidence, new.confidence]),
        [*old.truths, *new.truths],
        [*old.answers, *new.answers],
    )


def _mixed(old: Judged, new: Judged, from_old: np.ndarray) -> Judged:
    """The new model's answers, but the old one's where `from_old`."""
    answers = [a if swap else b for a, b, swap in zip(old.answers, new.answers, from_old.tolist(), strict=True)]
    return Judged(
        new.classes,
        new.truth,
        np.where(from_old, old.said, new.said),
        np.where(from_old, old.confidence, new.confidence),
        new.truths,
        answers,
    )
