"""Other cuts of a node: split it with another method or size, after seeing what each would give.

Clusters jump at cliffs of their parameters, so a small sweep is shown before anything is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.components.report import Block, report, table
from search_app.ui.data import queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, share

if TYPE_CHECKING:
    from embeddings.clusters.clustering import Method
    from embeddings.clusters.cuts import Cut

METHODS: dict[Method, str] = {"auto": "Automatic", "kmeans": "k-means", "hdbscan": "HDBSCAN", "evoc": "EVoC"}
COUNTED = ("auto", "kmeans")  # methods that take a number of clusters
UNSAID = "chosen from the data"
COMPARED = [method for method in METHODS if method != "auto"]


def show(here: queries.Row, opened: bool, make: Callable[..., None]) -> None:
    """The page of other cuts of a node; `make` clusters it and shows the result."""
    left, right = st.columns([1, 2], gap="large")
    with left:
        st.markdown("**Split it again**" if opened else "**Split it**")
        method = st.selectbox("Method", list(METHODS), format_func=METHODS.__getitem__)
        how: dict[str, int | None] = {}
        if method in COUNTED:
            how["k"] = st.number_input("Number of clusters", 2, 200, None, placeholder=UNSAID, help="For k-means")
        else:
            how["min_cluster_size"] = st.number_input("Smallest cluster, images", 2, 10_000, None, placeholder=UNSAID)
        if opened:
            st.caption("The clusters below this one are replaced.")
        if st.button("Split", type="primary"):
            make(node=here["id"], method=method, **how)
    with right:
        _tables(here)


def _tables(here: queries.Row) -> None:
    """What other parameters and methods would give; computed when asked for, kept while the page is open."""
    kept: dict[str, Any] = st.session_state.setdefault("_cuts", {})
    st.markdown("**What would other cuts give?** Nothing is saved by looking.")
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Sweep the smallest cluster", help="HDBSCAN with several sizes"):
            kept[here["id"]] = ("sweep", _computed(here["id"], ()))
        st.space("stretch")
        pair = [_method("Compare", 0), _method("with", 1)]
        if st.button("Compare", help="What each would give, and how far they agree"):
            kept[here["id"]] = ("compare", _computed(here["id"], pair))
    kind, found = kept.get(here["id"], ("", None))
    if found:
        report([[_table(kind, found)]], key="cut-table")
    elif found is None:
        st.caption(
            "A sweep cuts the node with several sizes of the smallest cluster: where numbers stay alike from row to "
            "row the clusters are real, where they jump they hang on the parameter."
        )


def _method(label: str, place: int) -> Method:
    return st.selectbox(
        label, COMPARED, place, format_func=METHODS.__getitem__, label_visibility="collapsed", width=140
    )


def _computed(node: str, methods: Sequence[Method]) -> list[Cut]:
    from embeddings.clusters import cuts

    try:
        with st.spinner("Cutting …", show_time=True):
            if methods:
                return list(cuts.compare(session.lake(), node, methods))
            return list(cuts.sweep(session.lake(), node=node))
    except LakeloopError as error:
        st.error(escape(str(error)))
        return []


def _table(kind: str, found: Sequence[Cut]) -> Block:
    columns: list[Any] = [
        ("Method", "left", ""),
        ("Parameters", "left", ""),
        ("Clusters", "right", "Without what is scattered"),
        ("Scattered", "right", "Share of the images in no cluster (noise)"),
        ("Largest", "right", "Share of the images in the largest cluster"),
        ("Persistence", "right", "Mean over its clusters: how long they hold together as density rises, 0 to 1"),
    ]
    rows: list[list[Any]] = [
        [
            next((name for key, name in METHODS.items() if key == one.method), one.method),
            ", ".join(f"{name} {value}" for name, value in one.params.items()),
            count(one.clusters),
            share(one.noise_share),
            share(one.largest_share),
            "–" if one.persistence is None else f"{one.persistence:.2f}",
        ]
        for one in found
    ]
    if kind == "compare":
        columns.append(("Agreement", "right", "Adjusted mutual information with the first: 1 is the same, 0 is chance"))
        for row, one in zip(rows, found, strict=True):
            row.append("–" if one.agreement is None else f"{one.agreement:.2f}")
    return table("", columns, rows)
