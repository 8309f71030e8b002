"""Rates with their uncertainty, and how numbers are written.

Pure arithmetic on counts. A rate never travels without its n and a 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959964
_PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Rate:
    """A share of `n` trials, in [0, 1], with the ends of its 95 % interval; None of all when n is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def percent(self) -> str:
        """`83.1 %`, or a dash when there is nothing to count."""
        return "–" if self.value is None else f"{100 * self.value:.1f}{_PERCENT}"

    def span(self) -> str:
        """`80 to 86 %`: the interval without decimals, for sentences."""
        return (
            "–" if self.low is None or self.high is None else f"{100 * self.low:.0f} to {100 * self.high:.0f}{_PERCENT}"
        )

    def interval(self) -> str:
        """`80.2–85.6 %, n 1,204`."""
        if self.low is None or self.high is None:
            return "n 0"
        return f"{100 * self.low:.1f}–{100 * self.high:.1f}{_PERCENT}, n {count(self.n)}"


def wilson(hits: int, n: int) -> Rate:
    """The share hits / n with Wilson's 95 % interval (Wilson 1927), right for small n and near 0 and 1."""
    if n == 0:
        return Rate(None, None, None, 0)
    share = hits / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return Rate(share, max(0.0, centre - half), min(1.0, centre + half), n)


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
class Verdict:
    """How right the answers are where the truth is known."""

    accuracy: Rate
    balanced_accuracy: Rate
    commoner: Rate  # the accuracy of always answering the commonest true class
    commoner_class: str


def verdict(confusion: Mapping[tuple[str, str | None], int]) -> Verdict:
    """From counts by (truth, answer). With no counts every rate is empty."""
    truths: dict[str, int] = {}
    right: dict[str, int] = {}
    for (truth, answer), n in confusion.items():
        truths[truth] = truths.get(truth, 0) + n
        right[truth] = right.get(truth, 0) + (n if truth == answer else 0)
    total = sum(truths.values())
    commonest = max(truths, key=lambda truth: (truths[truth], truth), default="")
    recalls = [wilson(right[truth], n) for truth, n in truths.items()]
    return Verdict(
        accuracy=wilson(sum(right.values()), total),
        balanced_accuracy=balanced(recalls),
        commoner=wilson(truths.get(commonest, 0), total),
        commoner_class=commonest,
    )


def share(value: float | None) -> str:
    """`83 %`; a dash for None. For sentences and tables whose counts stand beside."""
    return "–" if value is None else f"{100 * value:.0f}{_PERCENT}"


def count(n: int | float | None) -> str:
    """`12,345`; a dash for None."""
    return "–" if n is None else f"{n:,.0f}"


def images(n: int) -> str:
    """`1 image`, `12,345 images`."""
    return f"{n:,} image" + ("" if n == 1 else "s")
