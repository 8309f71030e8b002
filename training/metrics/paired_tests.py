"""Tests of two classifiers on the same images: has the new one fallen, by how much, how many images decide.

`broken` counts images that only the old model has right, `repaired` images that only the new model has right. Their
difference as a share of all images estimates the true *fall* of accuracy. The tests are exact at every n, also without
any disagreement, where textbook intervals are too narrow. Input and output are numbers: this module knows no images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

# The price for testing only the disagreement rates that the data do not rule out (Berger and Boos 1994).
RATES_LEVEL = 0.001
# Rates of disagreement to test between the ends of their interval: half a standard deviation apart.
_RATES = 16
# Half width of a binomial distribution in standard deviations; the probability outside is below 1e-7.
_REACH = 5.5
POWER = 0.8
_DRAWS = 20_000


def fall_p(broken: int, repaired: int) -> float:
    """The exact one-sided p of McNemar's test (1947), 0 to 1, that the new model is right no less often than the old.

    The probability of at least as many broken images if each disagreement were a fair coin.
    """
    n = broken + repaired
    return float(_tail(np.array([n - broken]), np.array([n]), 0.5)[0]) if n else 1.0


def fall_p_of_classes(cells: Sequence[tuple[int, int, int]], seed: int = 0) -> float:
    """The same p for balanced accuracy, from (broken, repaired, n) of each class: every disagreement is a fair coin.

    It takes 20,000 seeded draws; the smallest possible p is 1 / 20,001.
    """
    cells = [(b, c, n) for b, c, n in cells if n]
    observed = sum((b - c) / n for b, c, n in cells)
    if observed <= 0:
        return 1.0
    rng = np.random.default_rng(seed)
    drawn = np.zeros(_DRAWS)
    for b, c, n in cells:
        drawn += (2 * rng.binomial(b + c, 0.5, _DRAWS) - (b + c)) / n
    return (int((drawn >= observed - 1e-12).sum()) + 1) / (_DRAWS + 1)


@functools.lru_cache(maxsize=1 << 16)
def beyond_p(broken: int, repaired: int, n: int, margin: float) -> float:
    """The one-sided p, 0 to 1, that the true fall is `margin` or more. A small p excludes such a fall.

    The exact unconditional test (Hsueh, Liu and Chen, Biometrics 2001): Tango's score statistic (1998) orders the
    outcomes; p is the largest probability of an outcome as extreme, over the rates of disagreement that the data leave
    possible. `margin` lies in (0, 1].
    """
    if not n or margin <= 0:
        return 1.0
    if margin >= 1:
        return 0.0 if (broken, repaired) != (n, 0) else 1.0
    score = float(_score(np.array([broken]), np.array([broken + repaired]), n, margin)[0])
    if score >= 0:  # the observed fall is the margin or more: nothing is excluded
        return 1.0
    probability = max(_probability_below(score, n, margin, rate) for rate in _rates(broken + repaired, n, margin))
    return min(1.0, probability + RATES_LEVEL)


@functools.lru_cache(maxsize=1 << 14)
def upper_bound(broken: int, repaired: int, n: int, level: float = 0.05) -> float:
    """The one-sided upper bound of the true fall, in [0, 1]: a larger fall is excluded at `level`. 1 without images.

    It is the inverse of `beyond_p`, to 1e-4.
    """
    low, high = max((broken - repaired) / n, 0.0) if n else 1.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if beyond_p(broken, repaired, n, middle) <= level else (middle, high)
    return high


def upper_bound_of_classes(cells: Sequence[tuple[int, int, int]], level: float = 0.05) -> float:
    """The upper bound of the fall of balanced accuracy, from (broken, repaired, n) of each class.

    It adds the squares of the classes' exact bounds around their observed falls (MOVER, Zou and Donner 2008).
    """
    cells = [(b, c, n) for b, c, n in cells if n]
    if not cells:
        return 1.0
    falls = [(b - c) / n for b, c, n in cells]
    above = [upper_bound(b, c, n, level) - fall for (b, c, n), fall in zip(cells, falls, strict=True)]
    return min(1.0, sum(falls) / len(cells) + math.hypot(*above) / len(cells))


def images_needed(fall: float, spread: float, margin: float, level: float, unseen: float = 1.0) -> int | None:
    """About how many images decide with 80 % power if the true fall and spread are the observed ones; None: no number.

    `spread`: standard deviation of one image's difference. Decided means that the bound is below the margin or that the
    fall is significant at `level`, whichever needs fewer images. `unseen`: how much one image can change the metric,
    for the rule of three.
    """
    normal = NormalDist()
    power, needed = normal.inv_cdf(POWER), list[float]()
    if fall < margin:
        enough = ((normal.inv_cdf(0.95) + power) * spread / (margin - fall)) ** 2
        needed.append(max(enough, 3.0 * unseen / (margin - max(fall, 0.0))))
    if fall > 0:
        needed.append(((normal.inv_cdf(1 - level) + power) * spread / fall) ** 2)
    return math.ceil(min(needed)) if needed else None


# ----------------------------------------------------------------------------------------------------------


def _score(broken: np.ndarray, disagreed: np.ndarray, n: int, margin: float) -> np.ndarray:
    """Tango's score statistic for a fall of `margin`; for the same number of disagreements it rises with `broken`."""
    repaired = disagreed - broken
    linear = (2 * n - broken + repaired) * margin - disagreed
    constant = -repaired * margin * (1 - margin)
    share = (np.sqrt(linear**2 - 8.0 * n * constant) - linear) / (4.0 * n)
    spread = np.sqrt(n * (2 * share + margin * (1 - margin)))
    out: np.ndarray = (broken - repaired - n * margin) / spread
    return out


def _probability_below(score: float, n: int, margin: float, rate: float) -> float:
    """The probability of `score` or less if the models disagree on a share `rate` and the fall is `margin`."""
    reach = _REACH * math.sqrt(n * rate * (1 - rate)) + _REACH
    disagreed = np.arange(max(0, math.floor(n * rate - reach)), min(n, math.ceil(n * rate + reach)) + 1)
    # For each number of disagreements, the largest `broken` with such a score: by bisection, all at once.
    low, high = np.full(len(disagreed), -1), disagreed.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        inside = _score(middle, disagreed, n, margin) <= score + 1e-9
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    weights = np.exp(_log_binomial(disagreed, np.full(len(disagreed), n), rate))
    return float(weights @ _tail(low, disagreed, min(1.0, (rate + margin) / (2 * rate))))


def _rates(disagreed: int, n: int, margin: float) -> np.ndarray:
    """Rates of disagreement to test: a 99.9 % interval around the observed rate, and at least `margin`."""
    # Wilson's interval, wide enough (z = 4.0 instead of 3.3) to hold the exact one at every n.
    z, share = 4.0, disagreed / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = max(margin, centre - half), min(1.0, max(margin, centre + half))
    return np.linspace(low, high, _RATES) if high > low else np.array([low])


def _tail(most: np.ndarray, n: np.ndarray, share: float) -> np.ndarray:
    """The probability of `most` or fewer hits in `n` trials, elementwise."""
    reach = int(_REACH * math.sqrt(int(n.max(initial=0)) * share * (1 - share)) + _REACH) + 1
    # The window begins far below the mean.
    start = np.maximum(0, np.floor(n * share).astype(np.int64) - reach)
    hits = start[:, None] + np.arange(2 * reach + 1)
    logs = _log_binomial(hits, n[:, None], share)
    inside = np.where(hits <= most[:, None], np.exp(logs), 0.0).sum(axis=1)
    return np.minimum(1.0, np.where(most >= start + 2 * reach, 1.0, inside))


def _log_binomial(hits: np.ndarray, n: np.ndarray, share: float) -> np.ndarray:
    """The log probability of `hits` in `n` trials; minus infinity outside of 0 to n."""
    known = (hits >= 0) & (hits <= n)
    k = np.where(known, hits, 0)
    table = _log_factorials(int(n.max(initial=0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        yes = np.where(k > 0, k * np.log(share), 0.0) if share > 0 else np.where(k > 0, -np.inf, 0.0)
        no = np.where(n > k, (n - k) * np.log1p(-share), 0.0) if share < 1 else np.where(n > k, -np.inf, 0.0)
    out: np.ndarray = np.where(known, table[n] - table[k] - table[n - k] + yes + no, -np.inf)
    return out


@functools.lru_cache(maxsize=64)
def _table_of(power: int) -> np.ndarray:
    out: np.ndarray = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 1 << power)))])
    return out


def _log_factorials(most: int) -> np.ndarray:
    """log k! for k from 0 to at least `most`."""
    return _table_of(max(8, (most + 1).bit_length()))
