"""The charts of the overview, from rows of counts to blocks of a report.

Right, wrong and unknown are told apart by colour, by their order in the stack and by the words on each bar.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from lake.analytics.statistics import wilson
from search_app.ui.components.report import Block, bars, line

MOST_BARS = 62  # days that still have a bar each


def volume(days: Sequence[dict[str, Any]]) -> Block:
    """Answers per day (or week, or 30 days) by verdict. `days` as `queries.by_day` gives them."""
    spans = _spans(days)
    items = [(_tick(day), _tick(day), (right, known - right, n - known)) for day, (n, known, right) in spans]
    return bars(f"Answers per {_unit(days)}", items)


def accuracy(days: Sequence[dict[str, Any]]) -> Block | None:
    """Accuracy over time with its 95 % Wilson interval; None with fewer than two moments to compare."""
    known = [(day, wilson(right, n)) for day, (_, n, right) in _spans(days, least=7)]
    points = [(_tick(day), one.value or 0.0, one.low or 0.0, one.high or 0.0, one.n) for day, one in known if one.n]
    return line(f"Accuracy per {_unit(days, least=7)}", points) if len(points) > 1 else None


def sureness(days: Sequence[dict[str, Any]]) -> Block | None:
    """Mean confidence over time; None with fewer than two moments to compare. `days` have `confidence`, too."""
    sums: dict[dt.date, list[float]] = {}
    step = _step(days, least=7)
    for row in days:
        if row["confidence"] is not None:
            first = days[0]["day"] - dt.timedelta(days=days[0]["day"].weekday() if step == 7 else 0)
            span = sums.setdefault(first + dt.timedelta(days=(row["day"] - first).days // step * step), [0.0, 0])
            span[0] += row["confidence"] * row["answers"]
            span[1] += row["answers"]
    means = [(day, total / n, int(n)) for day, (total, n) in sorted(sums.items())]
    points = [(_tick(day), mean, mean, mean, n) for day, mean, n in means]
    title = f"Mean confidence per {_unit(days, least=7)}"
    return line(title, points, "of all answers, judged or not") if len(points) > 1 else None


def confidence(bins: Sequence[dict[str, Any]]) -> Block:
    """Histogram of confidence by verdict. `bins` as `queries.histogram` gives them."""
    found = {(round(row["low"] * 20), row["verdict"]): row["answers"] for row in bins}
    first = min((place for place, _ in found), default=0)
    items = []
    for place in range(first, 20):
        low = place / 20
        parts = [found.get((place, verdict), 0) for verdict in ("right", "wrong", "unknown")]
        items.append((f"{low:.2f}", f"confidence {low:.2f} to {low + 0.05:.2f}", parts))
    return bars("Answers by confidence", items)


def _step(days: Sequence[dict[str, Any]], least: int) -> int:
    """How many days share a bar: 1 or `least`, 7 or 30, so that there are not too many."""
    span = (days[-1]["day"] - days[0]["day"]).days + 1
    if span <= (21 if least == 1 else least):
        return 1
    return next((step for step in (1, 7, 30) if step >= least and span / step <= MOST_BARS), 30)


def _unit(days: Sequence[dict[str, Any]], least: int = 1) -> str:
    return {1: "day", 7: "week", 30: "30 days"}[_step(days, least)]


def _spans(days: Sequence[dict[str, Any]], least: int = 1) -> list[tuple[dt.date, tuple[int, int, int]]]:
    """(first day, (answers, known, right)) of every span from the first to the last day, empty ones too."""
    step = _step(days, least)
    first = days[0]["day"]
    if step == 7:
        first -= dt.timedelta(days=first.weekday())
    sums = [[0, 0, 0] for _ in range(((days[-1]["day"] - first).days // step) + 1)]
    for row in days:
        place = (row["day"] - first).days // step
        for part, name in enumerate(("answers", "known", "right")):
            sums[place][part] += row[name]
    return [(first + dt.timedelta(days=step * place), (n[0], n[1], n[2])) for place, n in enumerate(sums)]


def _tick(day: dt.date) -> str:
    return f"{day:%d %b}" if day.year == dt.date.today().year else f"{day:%d %b %y}"
