"""Charts of predictions over time and by confidence, as blocks of a report.

Right, wrong and not labelled differ by colour, by their order in the stack and by the text of each bar.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from lake.analytics.statistics import wilson
from search_app.ui.components.report import Block, bars, line

MOST_BARS = 62  # days that still have a bar each


def volume(days: Sequence[dict[str, Any]]) -> Block:
    """Predictions per day (or week, or 30 days), by right, wrong, not labelled. `days`: as of `queries.by_day`."""
    spans = _spans(days)
    items = [(_tick(day), _tick(day), (right, known - right, n - known)) for day, (n, known, right) in spans]
    return bars(f"Predictions per {_unit(days)}", items)


def accuracy(days: Sequence[dict[str, Any]]) -> Block | None:
    """Accuracy over time with its 95 % Wilson interval; None with fewer than two points."""
    rates = [(day, wilson(right, n)) for day, (_, n, right) in _spans(days, least=7)]
    points = [
        (_tick(day), rate.value or 0.0, rate.low or 0.0, rate.high or 0.0, rate.n) for day, rate in rates if rate.n
    ]
    return line(f"Accuracy per {_unit(days, least=7)}", points) if len(points) > 1 else None


def mean_confidence(days: Sequence[dict[str, Any]]) -> Block | None:
    """Mean confidence over time; None with fewer than two points. `days` have a `confidence`, too."""
    sums: dict[dt.date, list[float]] = {}
    step = _step(days, least=7)
    for row in days:
        if row["confidence"] is not None:
            first = days[0]["day"] - dt.timedelta(days=days[0]["day"].weekday() if step == 7 else 0)
            span = sums.setdefault(first + dt.timedelta(days=(row["day"] - first).days // step * step), [0.0, 0])
            span[0] += row["confidence"] * row["predictions"]
            span[1] += row["predictions"]
    means = [(day, total / n, int(n)) for day, (total, n) in sorted(sums.items())]
    points = [(_tick(day), mean, mean, mean, n) for day, mean, n in means]
    title = f"Mean confidence per {_unit(days, least=7)}"
    return line(title, points, "of all predictions, reviewed or not") if len(points) > 1 else None


def confidence(bins: Sequence[dict[str, Any]]) -> Block:
    """Histogram of confidence by verdict. `bins`: as of `queries.histogram`."""
    counts = {(round(row["low"] * 20), row["verdict"]): row["predictions"] for row in bins}
    first = min((i for i, _ in counts), default=0)
    items = []
    for i in range(first, 20):
        low = i / 20
        parts = [counts.get((i, verdict), 0) for verdict in ("right", "wrong", "unknown")]
        items.append((f"{low:.2f}", f"confidence {low:.2f} to {low + 0.05:.2f}", parts))
    return bars("Predictions by confidence", items)


def _step(days: Sequence[dict[str, Any]], least: int) -> int:
    """Days per bar, at least `least`: 1, 7 or 30, so that there are at most MOST_BARS bars."""
    span = (days[-1]["day"] - days[0]["day"]).days + 1
    if span <= (21 if least == 1 else least):
        return 1
    return next((step for step in (1, 7, 30) if step >= least and span / step <= MOST_BARS), 30)


def _unit(days: Sequence[dict[str, Any]], least: int = 1) -> str:
    return {1: "day", 7: "week", 30: "30 days"}[_step(days, least)]


def _spans(days: Sequence[dict[str, Any]], least: int = 1) -> list[tuple[dt.date, tuple[int, int, int]]]:
    """(first day, (predictions, labelled, correct)) of every span from the first to the last day, with empty ones."""
    step = _step(days, least)
    first = days[0]["day"]
    if step == 7:
        first -= dt.timedelta(days=first.weekday())
    sums = [[0, 0, 0] for _ in range(((days[-1]["day"] - first).days // step) + 1)]
    for row in days:
        i = (row["day"] - first).days // step
        for part, name in enumerate(("predictions", "known", "right")):
            sums[i][part] += row[name]
    return [(first + dt.timedelta(days=step * i), (n[0], n[1], n[2])) for i, n in enumerate(sums)]


def _tick(day: dt.date) -> str:
    return f"{day:%d %b}" if day.year == dt.date.today().year else f"{day:%d %b %y}"
