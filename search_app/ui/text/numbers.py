"""How numbers are written on the screen. What they mean is `lake/analytics/statistics.py`'s."""

from __future__ import annotations

from lake.analytics.statistics import Rate

_PERCENT = "\N{NO-BREAK SPACE}%"


def percent(rate: Rate) -> str:
    """`83.1 %`, or a dash when there is nothing to count."""
    return "–" if rate.value is None else f"{100 * rate.value:.1f}{_PERCENT}"


def span(rate: Rate) -> str:
    """`80 to 86 %`: the interval without decimals, for sentences."""
    return "–" if rate.low is None or rate.high is None else f"{100 * rate.low:.0f} to {100 * rate.high:.0f}{_PERCENT}"


def interval(rate: Rate) -> str:
    """`80.2–85.6 %, n 1,204`."""
    if rate.low is None or rate.high is None:
        return "n 0"
    return f"{100 * rate.low:.1f}–{100 * rate.high:.1f}{_PERCENT}, n {count(rate.n)}"


def share(value: float | None) -> str:
    """`83 %`; a dash for None. For sentences and tables whose counts stand beside."""
    return "–" if value is None else f"{100 * value:.0f}{_PERCENT}"


def count(n: int | float | None) -> str:
    """`12,345`; a dash for None."""
    return "–" if n is None else f"{n:,.0f}"


def images(n: int) -> str:
    """`1 image`, `12,345 images`."""
    return f"{n:,} image" + ("" if n == 1 else "s")
