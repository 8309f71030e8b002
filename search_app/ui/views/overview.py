"""Overview, "Is the model well today?": what is in the scope, how right it is, what to do next."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import streamlit as st

from search_app.ui import charts, queries, scope, session, words
from search_app.ui.rates import Rate, Verdict, count, verdict, wilson


def page() -> None:
    """The Overview page."""
    status = queries.status(queries.stamp())
    if not status["images"]:
        return words.no_images()
    where = scope.current().where()
    totals = queries.totals(where)
    if not totals["images"]:
        return words.nothing_passes()
    st.header("Is the model well today?", anchor=False)
    judged = verdict(queries.confusion(where))
    _numbers(totals, judged)
    if totals["answers"]:
        _charts(where)
        _tables(where)
    left, right = st.columns(2, gap="large")
    with left:
        _embedding(status)
    with right:
        _next(totals, judged, status)
    return None


def _numbers(totals: queries.Row, judged: Verdict) -> None:
    with st.container(horizontal=True, gap="medium", key="numbers"):
        st.metric("Images", count(totals["images"]), width="content")
        st.metric("Answers", count(totals["answers"]), width="content")
        st.metric("Labelled images", count(totals["labelled"]), width="content")
        if judged.accuracy.n:
            _rate("Accuracy", judged.accuracy, "Share of answers that agree with the label, where there is one.")
            how = "Mean of the classes' recalls: every class counts alike, however rare it is."
            _rate("Balanced accuracy", judged.balanced_accuracy, how)
            guess = f"What always answering “{judged.commoner_class}” would score: a model must beat it."
            _rate("Commoner-class guess", judged.commoner, guess)
    if not totals["answers"]:
        st.caption("No model has answered yet. Bring its answers in as a table, one row an answer:")
        st.code(words.for_this_lake("ingest", "predictions.csv"), language="bash", width=560)
    elif not judged.accuracy.n:
        st.caption("No answer has a label to compare with, so accuracy is not known.")


def _rate(name: str, rate: Rate, how: str) -> None:
    with st.container(width="content", gap=None):
        st.metric(name, rate.percent(), help=words.plain(how), width="content")
        st.caption(f"95 % {rate.interval()}")


def _charts(where: str | None) -> None:
    days = queries.by_day(where)
    known = [row for row in days if row["known"]]
    bins = queries.histogram(where)
    drawings = [
        (charts.volume, days),
        (charts.accuracy, known if len(known) > 1 else []),
        (charts.confidence, bins),
    ]
    shown = [(draw, data) for draw, data in drawings if data]
    charts.key()
    for column, (draw, data) in zip(st.columns(len(shown) or 1, gap="medium"), shown, strict=False):
        with column:
            draw(data)


def _tables(where: str | None) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Models", anchor=False)
        _table(
            [
                {
                    "Model": f"{row['model']} {row['model_version'] or ''}".strip(),
                    **_counts(row),
                    "Last answer": row["last"],
                }
                for row in queries.by_model(where)
            ]
        )
    with right:
        st.subheader("Answered classes", anchor=False)
        _table([{"Label": row["label"] or "no label", **_counts(row)} for row in queries.by_label(where)])


def _counts(row: queries.Row) -> dict[str, Any]:
    wrong = wilson(row["known"] - row["right"], row["known"])
    return {
        "Answers": row["answers"],
        "Confidence": row["confidence"],
        "Wrong": wrong.percent(),
        "95 % interval": wrong.interval() if row["known"] else "no labels",
    }


def _table(rows: list[dict[str, Any]]) -> None:
    config = {
        "Answers": st.column_config.NumberColumn(format="localized", width="small"),
        "Confidence": st.column_config.NumberColumn(format="%.2f", width="small", help="Mean"),
        "Wrong": st.column_config.TextColumn(alignment="right", width="small", help="Of the answers with a label"),
        "95 % interval": st.column_config.TextColumn(alignment="right"),
        "Last answer": st.column_config.DatetimeColumn(format="YYYY-MM-DD", width="small"),
    }
    st.dataframe(
        pa.Table.from_pylist(rows),
        hide_index=True,
        column_config=config,
        height="content" if len(rows) <= 8 else 320,
    )


def _embedding(status: dict[str, Any]) -> None:
    st.subheader("Embedding", anchor=False)
    if not status["embedders"]:
        st.caption("The lake has no embedder yet. This computes embeddings with the default one:")
        st.code(words.for_this_lake("embed"), language="bash")
    for one in status["embedders"]:
        total = one["embedded"] + one["missing"]
        done = one["embedded"] / total if total else 1.0
        st.progress(done, f"{words.plain(one['name'])}: {count(one['embedded'])} of {count(total)} images")
        if one["missing"]:
            st.code(words.for_this_lake("embed", "--embedder", one["name"]), language="bash")


def _next(totals: queries.Row, judged: Verdict, status: dict[str, Any]) -> None:
    st.subheader("What to do next", anchor=False)
    embedded = any(one["embedded"] for one in status["embedders"])
    ideas: list[tuple[str, dict[str, str], str, str]] = [
        ("search", {}, "Look at a random check", "what no metric asked about is found by looking")
    ]
    if totals["answers"]:
        ideas.append(
            (
                "search",
                {"show": "unsure"},
                "Look at the least confident answers",
                "they alone do not find every failure",
            )
        )
    if embedded:
        ideas.append(
            (
                "drilldown",
                {"sort": "error"} if judged.accuracy.n else {},
                "Drill down",
                "groups that look alike, most wrong first",
            )
        )
    with st.container(gap="xxsmall"):
        for place, (page_name, params, title, why) in enumerate(ideas):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                if st.button(title, key=f"next-{place}", type="tertiary", icon=":material/arrow_forward:"):
                    session.go(page_name, **params)
                st.caption(why, width="content")
