"""One model version against another on the same images: what is newly wrong, what newly right."""

from __future__ import annotations

import streamlit as st

from lake.analytics.metrics import ModelComparison
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.components.grid import image_grid
from search_app.ui.components.report import Block, numbers, report
from search_app.ui.components.report.tables import cell, heat
from search_app.ui.data import analysis, queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images, share

SIDES = {"broken": "Newly wrong", "repaired": "Newly right"}


def show(where: str | None) -> None:
    """The view."""
    known = analysis.models()
    if len(known) < 2:
        name = f" ({escape(known[0])})" if known else ""
        return empty_states.empty(
            "One model has answered",
            f"A comparison needs the answers of two models or versions to the same images{name}. "
            "Run the new one over images of this lake and bring its answers in.",
        )
    old, new = session.param("old"), session.param("new")
    new = new if new in known else known[0]
    old = old if old in known and old != new else next(one for one in known if one != new)
    with st.container(horizontal=True, vertical_alignment="bottom", key="models"):
        one = st.selectbox("Old", known, known.index(old), width=300)
        two = st.selectbox("New", known, known.index(new), width=300)
    if (one, two) != (old, new):
        session.put(old=one, new=two, open=None, sel=None)
    if one == two:
        return empty_states.empty("The same model twice", "Choose two different ones above.")
    found = analysis.compare(one, two, where)
    if not found.n:
        return empty_states.empty(
            "No image was answered by both and is judged",
            "Both must have answered the same images, and labels or verdicts must say what is right.",
        )
    report([[_numbers(found), _table(found)]], key="models")
    return _images(found)


def _numbers(found: ModelComparison) -> Block:
    old, new = (found.both + found.only_old) / found.n, (found.both + found.only_new) / found.n
    gap = 100 * (new - old)
    if found.p < 0.05:
        note = f"{found.new} is {abs(gap):.1f} points {'better' if gap > 0 else 'worse'} on the same images."
    else:
        note = "The two may be equally often right: the difference is what chance explains."
    p = "< 0.0001" if found.p < 0.0001 else f"{found.p:.4f}"
    return numbers(
        "On the same images",
        ("Images", count(found.n), "", "Answered by both, and judged for both"),
        ("Old accuracy", share(old), found.old, ""),
        ("New accuracy", share(new), found.new, ""),
        (
            "Chance p",
            p,
            "McNemar, exact",
            "How often so lopsided a change comes when both are right equally often",
        ),
        note=note,
    )


def _table(found: ModelComparison) -> Block:
    n = found.n
    rows = [
        (
            "old right",
            [
                cell(count(found.both), share(found.both / n)),
                cell(count(found.only_old), "newly wrong", found.only_old / n),
            ],
        ),
        (
            "old wrong",
            [
                cell(count(found.only_new), "newly right", found.only_new / n, "right"),
                cell(count(found.neither), share(found.neither / n)),
            ],
        ),
    ]
    return heat("Who is right", "", ["new right", "new wrong"], rows)


def _images(found: ModelComparison) -> None:
    side = session.param("side") if session.param("side") in SIDES else "broken"
    ids = {"broken": found.broken, "repaired": found.repaired}
    titles = {one: f"{title} {len(ids[one]):,}" for one, title in SIDES.items()}
    session.switch("side", titles, side, key="models-side", label="Images")
    rows = _answers(ids[side], found.new)
    if not rows:
        st.caption("No image.")
        return
    image_grid(rows, "confidence", f"{SIDES[side]}: {images(len(rows))}, as {found.new} answered", key=f"models-{side}")


def _answers(image_ids: list[str], model: str) -> list[queries.Row]:
    """What the model says of the images, in their order."""
    rows = queries.rows(
        """SELECT image_id, label, confidence FROM answers
           WHERE image_id IN (SELECT unnest(CAST(? AS VARCHAR[]))) AND model || coalesce(' ' || model_version, '') = ?
           QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY timestamp DESC NULLS LAST, ingested_at DESC,
                                      prediction_id) = 1""",
        tuple(image_ids[:10_000]),
        model,
    )
    place = {one: at for at, one in enumerate(image_ids)}
    return sorted(rows, key=lambda row: place[row["image_id"]])
