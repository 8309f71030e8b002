"""Rates with 95 % intervals, significance tests, and their correction for multiple tests.

Arithmetic on counts without numpy: the app's first page needs it before anything else is loaded. A rate always has its
n and interval. `search_app/ui/text/numbers.py` formats numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959964


@dataclass(frozen=True)
class Rate:
    """A share of `n` trials, in [0, 1], with the ends of its 95 % interval; all None if n is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def wilson(hits: int, n: int) -> Rate:
    """The share hits / n with Wilson's 95 % interval (Wilson 1927), right for small n and near 0 and 1."""
    if n == 0:
        return Rate(None, None, None, 0)
    share = hits / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Rate(share, max(0.0, centre - half), min(1.0, centre + half), n)


def likelihood_of_share(hits: int, n: int, share: float) -> float:
    """The density at `share`, strictly between 0 and 1, of the posterior of a share after hits in n trials, with a
    uniform prior.

    However often you look while trials come in, the density at the true share falls to `alpha` or below at any time
    with a probability of at most `alpha`: its reciprocal is a martingale (Robbins 1970; the prior-posterior ratio of
    Waudby-Smith and Ramdas 2020).
    """
    logs = math.lgamma(n + 2) - math.lgamma(hits + 1) - math.lgamma(n - hits + 1)
    return math.exp(logs + hits * math.log(share) + (n - hits) * math.log1p(-share))


def always_valid(hits: int, n: int, alpha: float = 0.05) -> Rate:
    """The share hits / n with an interval that holds at every look at once with probability 1 - alpha.

    It is wider than Wilson's, which holds at one look decided on before. Without trials it is all None.
    """
    if n == 0:
        return Rate(None, None, None, 0)
    share, ends = hits / n, []
    for outside in (0.0, 1.0):
        inside = share
        for _ in range(40):  # halves an interval of at most 1 forty times: exact to 1e-12
            middle = (inside + outside) / 2
            if 0 < middle < 1 and likelihood_of_share(hits, n, middle) > alpha:
                inside = middle
            else:
                outside = middle
        ends.append(inside)
    return Rate(share, ends[0], ends[1], n)


def difference(hits: int, n: int, other_hits: int, other_n: int) -> Rate:
    """hits / n - other_hits / other_n, in [-1, 1], with Newcombe's 95 % interval (1998, method 10).

    n of the result is the smaller of the two; all None if either is 0.
    """
    first, second = wilson(hits, n), wilson(other_hits, other_n)
    if first.value is None or first.low is None or first.high is None:
        return Rate(None, None, None, 0)
    if second.value is None or second.low is None or second.high is None:
        return Rate(None, None, None, 0)
    apart = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Rate(apart, apart - below, apart + above, min(n, other_n))


def balanced(recalls: Sequence[Rate]) -> Rate:
    """The mean of per-class recalls, each with equal weight; classes without examples do not count.

    The interval adds the classes' Wilson half-widths in squares (MOVER, Zou and Donner 2008).
    """
    known = [(recall.value, recall.low, recall.high) for recall in recalls if recall.n]
    rows = [
        (value, low, high) for value, low, high in known if value is not None and low is not None and high is not None
    ]
    if not rows:
        return Rate(None, None, None, 0)
    mean = sum(value for value, _, _ in rows) / len(rows)
    below = math.sqrt(sum((value - low) ** 2 for value, low, _ in rows)) / len(rows)
    above = math.sqrt(sum((high - value) ** 2 for value, _, high in rows)) / len(rows)
    return Rate(mean, max(0.0, mean - below), min(1.0, mean + above), sum(recall.n for recall in recalls if recall.n))


@dataclass(frozen=True)
class Performance:
    """Accuracy of predictions for labelled images, and the majority-class baseline."""

    accuracy: Rate
    balanced_accuracy: Rate
    majority_baseline: Rate  # accuracy if every prediction were the most frequent true class
    majority_class: str


def performance(confusion: Mapping[tuple[str, str | None], int]) -> Performance:
    """From counts by (true label, predicted label). Without counts every rate is empty."""
    totals: dict[str, int] = {}
    right: dict[str, int] = {}
    for (true_label, predicted), n in confusion.items():
        totals[true_label] = totals.get(true_label, 0) + n
        right[true_label] = right.get(true_label, 0) + (n if true_label == predicted else 0)
    total = sum(totals.values())
    majority = max(totals, key=lambda true_label: (totals[true_label], true_label), default="")
    recalls = [wilson(right[true_label], n) for true_label, n in totals.items()]
    return Performance(
        accuracy=wilson(sum(right.values()), total),
        balanced_accuracy=balanced(recalls),
        majority_baseline=wilson(totals.get(majority, 0), total),
        majority_class=majority,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test (1947), 0 to 1, that two models are correct equally often.

    From the numbers of trials that only the first, and only the second got right; 1 if both are 0.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = _sum_of_exponentials([_log_choose(n, k) - n * math.log(2) for k in range(least + 1)])
    return min(1.0, 2 * tail)


def more_errors(wrong: int, n: int, other_wrong: int, other_n: int) -> float:
    """Fisher's exact one-sided p, 0 to 1, that a group with `wrong` of `n` fails no more often than another.

    1 if either group is empty.
    """
    if not n or not other_n:
        return 1.0
    errors, total = wrong + other_wrong, n + other_n
    all_tables = _log_choose(total, errors)
    logs = [_log_choose(n, k) + _log_choose(other_n, errors - k) - all_tables for k in range(wrong, min(n, errors) + 1)]
    return min(1.0, _sum_of_exponentials(logs))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979), in the same order: rejecting those below 0.05 has a family-wise error of 5 %."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _log_choose(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _sum_of_exponentials(logs: Sequence[float]) -> float:
    most = max(logs, default=-math.inf)
    return 0.0 if most == -math.inf else math.exp(most) * math.fsum(math.exp(log - most) for log in logs)
