"""The charts of the app, from rows of counts. They follow the theme, light or dark.

Right, wrong and unknown are told apart by colour, by order in the stack and by the legend's words.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import altair as alt
import streamlit as st

from search_app.ui import settings
from search_app.ui.rates import wilson

HEIGHT = 170
_VERDICTS = {"right": "right", "wrong": "wrong", "unknown": "not labelled"}


def _colours() -> dict[str, str]:
    if st.context.theme.type == "dark":
        return {"right": "#4fb0d0", "wrong": settings.WRONG_DARK, "unknown": "#46535f"}
    return {"right": settings.ACCENT, "wrong": settings.WRONG, "unknown": "#c3ccd4"}


def _verdict_colour() -> alt.Color:
    domain = list(_VERDICTS.values())
    colours = _colours()
    return alt.Color(
        "verdict:N", scale=alt.Scale(domain=domain, range=[colours[name] for name in _VERDICTS]), legend=None
    )


def key() -> None:
    """What the colours mean, once for all charts of a row."""
    st.caption(":primary[■] right &emsp; :orange[■] wrong &emsp; :gray[■] not labelled", text_alignment="right")


def volume(days: Sequence[dict[str, Any]]) -> None:
    """Answers per day, stacked by verdict. `days` as `queries.by_day` gives them."""
    counts = [
        {"day": _noon(row["day"]), "verdict": _VERDICTS[name], "answers": n}
        for row in days
        for name, n in (
            ("right", row["right"]),
            ("wrong", row["known"] - row["right"]),
            ("unknown", row["answers"] - row["known"]),
        )
    ]
    chart = (
        _chart(counts)
        .mark_bar()
        .encode(
            x=alt.X(
                "yearmonthdate(day):T",
                title=None,
                axis=alt.Axis(format="%d %b", labelOverlap=True, tickCount=6),
            ),
            y=alt.Y("sum(answers):Q", title=None, axis=alt.Axis(format=",.0f", tickCount=4)),
            color=_verdict_colour(),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("day:T", format="%Y-%m-%d"),
                alt.Tooltip("verdict:N"),
                alt.Tooltip("sum(answers):Q", title="answers", format=","),
            ],
        )
        .transform_calculate(rank="datum.verdict == 'right' ? 0 : datum.verdict == 'wrong' ? 1 : 2")
    )
    st.caption("Answers per day")
    st.altair_chart(chart, alt="Answers per day by verdict")


def accuracy(days: Sequence[dict[str, Any]]) -> None:
    """Accuracy per day, or per week when there are more than three of them, with its 95 % Wilson interval."""
    span = (days[-1]["day"] - days[0]["day"]).days
    start = {row["day"]: row["day"] if span <= 21 else _monday(row["day"]) for row in days}
    sums: dict[dt.date, list[int]] = {}
    for row in days:
        sums.setdefault(start[row["day"]], [0, 0])
        sums[start[row["day"]]][0] += row["right"]
        sums[start[row["day"]]][1] += row["known"]
    data = [
        {"day": _noon(day), "accuracy": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}
        for day, rate in ((day, wilson(hits, n)) for day, (hits, n) in sums.items() if n)
    ]
    colour = _colours()["right"]
    title = "Accuracy per day" if span <= 21 else "Accuracy per week"
    x = alt.X("day:T", title=None, axis=alt.Axis(format="%d %b", labelOverlap=True, tickCount=6))
    base = _chart(data).encode(
        x=x,
        tooltip=[
            alt.Tooltip("day:T", format="%Y-%m-%d"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%", title="95 % from"),
            alt.Tooltip("high:Q", format=".1%", title="to"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    y = alt.Y("low:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%", tickCount=5))
    band = base.mark_area(opacity=0.18, color=colour).encode(y=y, y2="high:Q")
    rule = base.mark_rule(opacity=0.45, color=colour).encode(y=y, y2="high:Q")
    line = base.mark_line(color=colour, point=alt.OverlayMarkDef(color=colour, size=36)).encode(y="accuracy:Q")
    st.caption(title)
    st.altair_chart(band + rule + line, alt=title)


def confidence(bins: Sequence[dict[str, Any]]) -> None:
    """Histogram of confidence, stacked by verdict. `bins` as `queries.histogram` gives them."""
    data = [
        {
            "low": row["low"],
            "high": row["low"] + 0.05,
            "verdict": _VERDICTS[row["verdict"]],
            "answers": row["answers"],
        }
        for row in bins
    ]
    chart = (
        _chart(data)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=5)),
            x2="high:Q",
            y=alt.Y("answers:Q", title=None, axis=alt.Axis(format=",.0f", tickCount=4)),
            color=_verdict_colour(),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("low:Q", format=".2f", title="from"),
                alt.Tooltip("high:Q", format=".2f", title="to"),
                alt.Tooltip("verdict:N"),
                alt.Tooltip("answers:Q", format=","),
            ],
        )
        .transform_calculate(rank="datum.verdict == 'right' ? 0 : datum.verdict == 'wrong' ? 1 : 2")
    )
    st.caption("Answers by confidence")
    st.altair_chart(chart, alt="Histogram of confidence by verdict")


def _chart(rows: list[dict[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows), height=HEIGHT)


def _noon(day: dt.date) -> str:
    """The day as a local time in every browser's time zone."""
    return f"{day.isoformat()}T12:00:00"


def _monday(day: dt.date) -> dt.date:
    return day - dt.timedelta(days=day.weekday())
