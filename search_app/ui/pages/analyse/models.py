"""Two model versions on the same images: which images became wrong, and which became right."""

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
        only = f" This lake has only those of {escape(known[0])}." if known else ""
        return empty_states.empty(
            "Only one model has predictions",
            f"A comparison needs predictions of two models or versions on the same images.{only} "
            "Run another model on these images and ingest its predictions.",
        )
    old, new = session.param("old"), session.param("new")
    new = new if new in known else known[0]
    old = old if old in known and old != new else next(name for name in known if name != new)
    with st.container(horizontal=True, vertical_alignment="bottom", key="models"):
        first = st.selectbox("Old", known, known.index(old), width=300)
        second = st.selectbox("New", known, known.index(new), width=300)
    if (first, second) != (old, new):
        session.put(old=first, new=second, open=None, sel=None)
    if first == second:
        return empty_states.empty("The same model twice", "Choose two different models above.")
    comparison = analysis.compare(first, second, where)
    if not comparison.n:
        return empty_states.empty(
            "No images to compare",
            "Both models need predictions on the same images, and these images need labels or verdicts.",
        )
    report([[_numbers(comparison), _table(comparison)]], key="models")
    return _images(comparison)


def _numbers(comparison: ModelComparison) -> Block:
    old, new = (
        (comparison.both + comparison.only_old) / comparison.n,
        (comparison.both + comparison.only_new) / comparison.n,
    )
    gap = 100 * (new - old)
    if comparison.p < 0.05:
        note = f"{comparison.new} is {abs(gap):.1f} points {'better' if gap > 0 else 'worse'} on the same images."
    else:
        note = "Chance can explain the difference: both models may have the same accuracy."
    p = "< 0.0001" if comparison.p < 0.0001 else f"{comparison.p:.4f}"
    return numbers(
        "On the same images",
        ("Images", count(comparison.n), "", "With a reviewed prediction of both models"),
        ("Old accuracy", share(old), comparison.old, ""),
        ("New accuracy", share(new), comparison.new, ""),
        (
            "p-value",
            p,
            "exact McNemar test",
            "Probability of a difference this large if both models had the same accuracy",
        ),
        note=note,
    )


def _table(comparison: ModelComparison) -> Block:
    n = comparison.n
    rows = [
        (
            "old right",
            [
                cell(count(comparison.both), share(comparison.both / n)),
                cell(count(comparison.only_old), "newly wrong", comparison.only_old / n),
            ],
        ),
        (
            "old wrong",
            [
                cell(count(comparison.only_new), "newly right", comparison.only_new / n, "right"),
                cell(count(comparison.neither), share(comparison.neither / n)),
            ],
        ),
    ]
    return heat("Correct and wrong", "", ["new right", "new wrong"], rows)


def _images(comparison: ModelComparison) -> None:
    side = session.param("side") if session.param("side") in SIDES else "broken"
    ids = {"broken": comparison.broken, "repaired": comparison.repaired}
    titles = {name: f"{title} {len(ids[name]):,}" for name, title in SIDES.items()}
    session.switch("side", titles, side, key="models-side", label="Images")
    rows = _predictions(ids[side], comparison.new)
    if not rows:
        st.caption("No images.")
        return
    image_grid(
        rows,
        "confidence",
        f"{SIDES[side]}: {images(len(rows))}, as predicted by {comparison.new}",
        key=f"models-{side}",
    )


def _predictions(image_ids: list[str], model: str) -> list[queries.Row]:
    """The predictions of the model on these images, in their order."""
    rows = queries.rows(
        """SELECT image_id, label, confidence FROM predictions
           WHERE image_id IN (SELECT unnest(CAST(? AS VARCHAR[]))) AND model || coalesce(' ' || model_version, '') = ?
           QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY timestamp DESC NULLS LAST, ingested_at DESC,
                                      prediction_id) = 1""",
        tuple(image_ids[:10_000]),
        model,
    )
    position = {image_id: i for i, image_id in enumerate(image_ids)}
    return sorted(rows, key=lambda row: position[row["image_id"]])
