"""Analyse, "Where does it fail?": slices that fail, found unprompted, and how right the answers are by anything."""

from __future__ import annotations

import streamlit as st

from search_app.ui import queries, scope, session, words
from search_app.ui.views.analyse import classes, confidence, course, dimensions, failing, models, sizes

VIEWS = {
    "slices": ("Worst slices", failing.show),
    "dimensions": ("By dimension", dimensions.show),
    "classes": ("Classes", classes.show),
    "confidence": ("Confidence", confidence.show),
    "sizes": ("Object sizes", sizes.show),
    "time": ("Over time", course.show),
    "models": ("Model against model", models.show),
}


def page() -> None:
    """The Analyse page."""
    if not queries.status(queries.stamp())["images"]:
        return words.no_images()
    where = scope.current().where()
    totals = queries.totals(where)
    if not totals["images"]:
        return words.nothing_passes()
    if not totals["answers"]:
        command = words.for_this_lake("ingest", "predictions.csv")
        return words.empty("No model has answered here", "Bring its answers in as a table, one row an answer.", command)
    chosen = session.param("view") if session.param("view") in VIEWS else "slices"
    key = "analyse-view"
    # What the page shows is said by the URL alone.
    st.session_state[key] = chosen
    st.segmented_control(
        "View",
        list(VIEWS),
        format_func=lambda one: VIEWS[one][0],
        label_visibility="collapsed",
        required=True,
        key=key,
        on_change=_look,
        args=(key,),
    )
    return VIEWS[chosen][1](where)


def _look(key: str) -> None:
    session.put(view=st.session_state[key], truth=None, said=None, finding=None, open=None, sel=None)
