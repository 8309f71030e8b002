"""Confidence intervals of metrics, and tests of two models on the same images, by resampling images.

A draw takes an image with its ground truth and the predictions of both models. A `MetricOfSums` is resampled by the
numbers of images that add the same to its sums (a few hundred kinds stand for any number of images), a
`MetricOfWeights` by weights; any other metric is computed again for each draw. Everything is seeded. This module knows
no lake.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.metrics.metric import EvaluatedPredictions, Metric, MetricOfSums, MetricOfWeights

DRAWS = 1_000
# A metric that must rank or be computed again for every draw gets fewer draws, enough for its interval.
DRAWS_ANEW = 300
LEVEL = 0.05
# So many swaps at least as bad as the observed fall settle a p-value to a fifth of itself (Besag and Clifford 1991).
ENOUGH = 25
PERMUTATIONS = 10_000
PERMUTATIONS_ANEW = 2_000
# Draws in memory at a time: 64 x 10,000 weights are 5 MB.
_BLOCK = 64


@dataclass(frozen=True)
class Estimate:
    """A metric's value on `n` images and the ends of its 95 % interval; all three are None if it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def estimate(metric: Metric, evaluated: EvaluatedPredictions, *, draws: int | None = None, seed: int = 0) -> Estimate:
    """The metric with its percentile bootstrap interval.

    Resampling sees no uncertainty if all draws are alike, for example ten correct predictions of ten. Accuracy and
    balanced accuracy therefore have the intervals of `lake.analytics.statistics`.
    """
    from lake.analytics import statistics

    value = metric.value(evaluated) if len(evaluated) else np.nan
    if not np.isfinite(value):
        return Estimate(None, None, None, len(evaluated))
    if metric.name in ("accuracy", "balanced_accuracy"):
        correct = evaluated.correct()
        if metric.name == "accuracy":
            rate = statistics.wilson(int(correct.sum()), len(evaluated))
        else:
            classes = np.unique(evaluated.ground_truth[evaluated.ground_truth >= 0])
            parts = [correct[evaluated.ground_truth == k] for k in classes]
            rate = statistics.balanced([statistics.wilson(int(part.sum()), len(part)) for part in parts])
        low, high = (value if end is None else end for end in (rate.low, rate.high))
    else:
        low, high = interval(resampled(metric, evaluated, draws=draws, seed=seed))
    # Noise biases some metrics upwards (ECE): their value may lie outside of what its resamples give.
    return Estimate(float(value), min(low, float(value)), max(high, float(value)), len(evaluated))


def interval(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The quantiles level / 2 and 1 - level / 2 of the draws that are finite."""
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [level / 2, 1 - level / 2]) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def resampled(
    metric: Metric, evaluated: EvaluatedPredictions, *, draws: int | None = None, seed: int = 0
) -> np.ndarray:
    """float64 (draws,): the metric on resamples of the images, with replacement."""
    return _resampled(metric, [evaluated], draws, seed)[0]


def differences(
    metric: Metric, old: EvaluatedPredictions, new: EvaluatedPredictions, *, draws: int | None = None, seed: int = 0
) -> np.ndarray:
    """float64 (draws,): the new model's metric minus the old one's on resamples of their common images."""
    before, after = _resampled(metric, [old, new], draws, seed)
    out: np.ndarray = after - before
    return out


def swap_test(
    metric: Metric, old: EvaluatedPredictions, new: EvaluatedPredictions, *, draws: int | None = None, seed: int = 0
) -> float:
    """The one-sided p, above 0 to 1, that the new model is no worse: the paired permutation test.

    If the two models were alike, chance would decide which of them gave which of an image's two predictions. The test
    swaps them at random; p is the share of swaps with a fall at least as large as the observed one, which counts
    itself. It stops as soon as p is known well enough. Without a fall p is 1.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    observed = sign * (metric.value(new) - metric.value(old))
    if not observed < 0:
        return 1.0
    rng = np.random.default_rng(seed)
    worse = done = 0
    limit = draws or (PERMUTATIONS if isinstance(metric, MetricOfSums) else PERMUTATIONS_ANEW)
    for block in _swapped(metric, old, new, rng):
        swapped = sign * block[: limit - done]
        # Rounding must not make a swap that changes nothing look better than the observed fall.
        as_bad = swapped <= observed + 1e-12
        if worse + as_bad.sum() >= ENOUGH:
            indices = np.flatnonzero(as_bad)
            return ENOUGH / (done + int(indices[ENOUGH - worse - 1]) + 1)
        worse += int(as_bad.sum())
        done += len(swapped)
        if done >= limit:
            break
    return (worse + 1) / (done + 1)


# ----------------------------------------------------------------------------------------------------------


def _resampled(metric: Metric, models: list[EvaluatedPredictions], draws: int | None, seed: int) -> list[np.ndarray]:
    """One array of draws for each model; all models get the same images."""
    rng, n = np.random.default_rng(seed), len(models[0])
    with np.errstate(invalid="ignore", divide="ignore"):
        if isinstance(metric, MetricOfSums):
            parts = [metric.statistics(model) for model in models]
            sums = _sums(np.hstack(parts), n, draws or DRAWS, rng)
            return [metric.of_sums(part) for part in np.split(sums, len(models), axis=1)]
        if isinstance(metric, MetricOfWeights):
            blocks = [*_weights(n, draws or DRAWS_ANEW, rng)]
            return [np.concatenate([metric.weighted(model, block) for block in blocks]) for model in models]
        samples = [rng.integers(0, n, n) for _ in range(draws or DRAWS_ANEW)]
        return [np.array([metric.value(model.take(rows)) for rows in samples], np.float64) for model in models]


def _sums(statistics: np.ndarray, n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """float64 (draws, m): sums over resamples of the rows of (n, m)."""
    kinds, counts = _kinds(statistics)
    if len(kinds) <= max(n // 8, 64):
        # The number of draws of each kind is multinomial: the images need not be drawn one at a time.
        sums: np.ndarray = rng.multinomial(n, counts / n, size=draws) @ kinds
        return sums
    return np.concatenate([weights @ statistics for weights in _weights(n, draws, rng)])


def _kinds(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, and how often each occurs."""
    # A row as one number: a hundred times faster than comparing rows. Different rows have different products. If
    # rounding gives equal rows two products, they are two kinds, and the sums are the same.
    keys = statistics @ np.random.default_rng(1).standard_normal(statistics.shape[1])
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    return statistics[first], counts


def _weights(n: int, draws: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each image occurs in a resample, float64 (up to _BLOCK draws, n), a block at a time."""
    for begin in range(0, draws, _BLOCK):
        size = min(_BLOCK, draws - begin)
        indices = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(indices.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _swapped(
    metric: Metric, old: EvaluatedPredictions, new: EvaluatedPredictions, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Blocks of differences new - old after random swaps, without end."""
    if isinstance(metric, MetricOfSums):
        before, after = metric.statistics(old), metric.statistics(new)
        change = after - before
        changed = np.flatnonzero((change != 0).any(axis=1))  # for the other images a swap changes nothing
        kinds, counts = _kinds(change[changed]) if len(changed) else (change[:0], np.zeros(0, np.int64))
        first, second = before.sum(axis=0), after.sum(axis=0)
        while True:
            swaps = rng.binomial(counts, 0.5, size=(500, len(counts))).astype(np.float64) @ kinds
            yield metric.of_sums(second - swaps) - metric.of_sums(first + swaps)
    n = len(old)
    if isinstance(metric, MetricOfWeights):
        # Both models' predictions in one set: a swap decides which of an image's two rows counts.
        stacked = _stacked(old, new)
        while True:
            swap = rng.random((_BLOCK, n)) < 0.5
            first, second = np.hstack([~swap, swap]), np.hstack([swap, ~swap])
            after, before = (metric.weighted(stacked, rows.astype(np.float64)) for rows in (second, first))
            yield after - before
    while True:
        values = []
        for _ in range(20):
            swap = rng.random(n) < 0.5
            values.append(metric.value(_mixed(old, new, swap)) - metric.value(_mixed(old, new, ~swap)))
        yield np.array(values)


def _stacked(old: EvaluatedPredictions, new: EvaluatedPredictions) -> EvaluatedPredictions:
    """The old model's rows, then the new model's."""
    return EvaluatedPredictions(
        new.classes,
        np.concatenate([old.ground_truth, new.ground_truth]),
        np.concatenate([old.predicted, new.predicted]),
        np.concatenate([old.confidence, new.confidence]),
        [*old.ground_truth_rows, *new.ground_truth_rows],
        [*old.prediction_rows, *new.prediction_rows],
    )


def _mixed(old: EvaluatedPredictions, new: EvaluatedPredictions, from_old: np.ndarray) -> EvaluatedPredictions:
    """The old model's predictions where `from_old`, else the new model's."""
    pairs = zip(old.prediction_rows, new.prediction_rows, from_old.tolist(), strict=True)
    return EvaluatedPredictions(
        new.classes,
        new.ground_truth,
        np.where(from_old, old.predicted, new.predicted),
        np.where(from_old, old.confidence, new.confidence),
        new.ground_truth_rows,
        [before if swap else after for before, after, swap in pairs],
    )
