"""Rates with their uncertainty, and tests that stay honest when many are made at once.

Pure arithmetic on counts, without numpy: the app's first page needs it before anything else is loaded. A rate never
travels without its n and a 95 % interval. How numbers are written is the screen's affair
(`search_app/ui/text/numbers.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959964


@dataclass(frozen=True)
class Rate:
    """A share of `n` trials, in [0, 1], with the ends of its 95 % interval; None of all when n is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def wilson(hits: int, n: int) -> Rate:
    """The share hits / n with Wilson's 95 % interval (Wilson 1927), right for small n and near 0 and 1."""
    if n == 0:
        return Rate(None, None, None, 0)
    share = hits / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Rate(share, max(0.0, centre - half), min(1.0, centre + half), n)


def difference(hits: int, n: int, other_hits: int, other_n: int) -> Rate:
    """hits / n - other_hits / other_n, in [-1, 1], with Newcombe's 95 % interval (1998, method 10).

    n of the result is the smaller of the two; None of all when either is 0.
    """
    one, other = wilson(hits, n), wilson(other_hits, other_n)
    if one.value is None or one.low is None or one.high is None:
        return Rate(None, None, None, 0)
    if other.value is None or other.low is None or other.high is None:
        return Rate(None, None, None, 0)
    apart = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Rate(apart, apart - below, apart + above, min(n, other_n))


def balanced(recalls: Sequence[Rate]) -> Rate:
    """The mean of per-class recalls, each class counting alike; classes without examples do not count.

    The interval adds the classes' Wilson half-widths in squares (MOVER, Zou and Donner 2008).
    """
    known = [(one.value, one.low, one.high) for one in recalls if one.n]
    rows = [
        (value, low, high) for value, low, high in known if value is not None and low is not None and high is not None
    ]
    if not rows:
        return Rate(None, None, None, 0)
    mean = sum(value for value, _, _ in rows) / len(rows)
    below = math.sqrt(sum((value - low) ** 2 for value, low, _ in rows)) / len(rows)
    above = math.sqrt(sum((high - value) ** 2 for value, _, high in rows)) / len(rows)
    return Rate(mean, max(0.0, mean - below), min(1.0, mean + above), sum(one.n for one in recalls if one.n))


@dataclass(frozen=True)
class Performance:
    """How right the answers are where the truth is known."""

    accuracy: Rate
    balanced_accuracy: Rate
    commoner: Rate  # the accuracy of always answering the commonest true class
    commoner_class: str


def performance(confusion: Mapping[tuple[str, str | None], int]) -> Performance:
    """From counts by (truth, answer). With no counts every rate is empty."""
    truths: dict[str, int] = {}
    right: dict[str, int] = {}
    for (truth, answer), n in confusion.items():
        truths[truth] = truths.get(truth, 0) + n
        right[truth] = right.get(truth, 0) + (n if truth == answer else 0)
    total = sum(truths.values())
    commonest = max(truths, key=lambda truth: (truths[truth], truth), default="")
    recalls = [wilson(right[truth], n) for truth, n in truths.items()]
    return Performance(
        accuracy=wilson(sum(right.values()), total),
        balanced_accuracy=balanced(recalls),
        commoner=wilson(truths.get(commonest, 0), total),
        commoner_class=commonest,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test (1947), 0 to 1, that two models are right equally often.

    From the numbers of trials that only the first, and only the second got right; 1 when there are none of either.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = _sum_of_exponentials([_log_choose(n, k) - n * math.log(2) for k in range(least + 1)])
    return min(1.0, 2 * tail)


def more_errors(wrong: int, n: int, other_wrong: int, other_n: int) -> float:
    """Fisher's exact one-sided p, 0 to 1, that a group with `wrong` of `n` fails no more often than another.

    1 when either group is empty.
    """
    if not n or not other_n:
        return 1.0
    errors, total = wrong + other_wrong, n + other_n
    every = _log_choose(total, errors)
    logs = [_log_choose(n, k) + _log_choose(other_n, errors - k) - every for k in range(wrong, min(n, errors) + 1)]
    return min(1.0, _sum_of_exponentials(logs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p adjusted (Holm 1979), in the order given: all below 0.05 are wrong together in at most 5 % of cases."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [1.0] * len(p_values)
    most = 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = most
    return adjusted


def _log_choose(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _sum_of_exponentials(logs: Sequence[float]) -> float:
    most = max(logs, default=-math.inf)
    return 0.0 if most == -math.inf else math.exp(most) * math.fsum(math.exp(one - most) for one in logs)
