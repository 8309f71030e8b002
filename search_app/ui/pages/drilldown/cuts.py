"""Other cuts of a node: what other clustering methods and sizes would give.

Clusters change abruptly at some values of their parameters, so a small sweep is shown before anything is saved.
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
AUTOMATIC = "chosen from the data"
COMPARED = [method for method in METHODS if method != "auto"]


def show(node: queries.Row, is_split: bool, make: Callable[..., None]) -> None:
    """The view. `make` clusters the node and shows the result."""
    left, right = st.columns([1, 2], gap="large")
    with left:
        st.markdown("**Split it again**" if is_split else "**Split it**")
        method = st.selectbox("Method", list(METHODS), format_func=METHODS.__getitem__)
        options: dict[str, int | None] = {}
        if method in COUNTED:
            options["k"] = st.number_input(
                "Number of clusters", 2, 200, None, placeholder=AUTOMATIC, help="For k-means"
            )
        else:
            options["min_cluster_size"] = st.number_input(
                "Smallest cluster, in images", 2, 10_000, None, placeholder=AUTOMATIC
            )
        if is_split:
            st.caption("This replaces the clusters below this one.")
        if st.button("Split", type="primary"):
            make(node["size"], node=node["id"], method=method, **options)
    with right:
        _tables(node)


def _tables(node: queries.Row) -> None:
    """A sweep or a comparison of methods. Computed on request, and kept while the page is open."""
    results: dict[str, tuple[str, list[Cut]]] = st.session_state.setdefault("_cuts", {})
    st.markdown("**Preview other cuts.** A preview saves nothing.")
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Sweep the smallest cluster", help="HDBSCAN with several sizes"):
            results[node["id"]] = ("sweep", _computed(node["id"], ()))
        st.space("stretch")
        pair = [_method("Compare", 0), _method("with", 1)]
        if st.button("Compare", help="Cut with both methods and measure how far they agree"):
            results[node["id"]] = ("compare", _computed(node["id"], pair))
    kind, cuts = results.get(node["id"], ("", None))
    if cuts:
        report([[_table(kind, cuts)]], key="cut-table")
    elif cuts is None:
        st.caption(
            "A sweep cuts the node with several sizes of the smallest cluster. If the numbers are similar from row to "
            "row, the clusters are stable. If they jump, they depend on the parameter."
        )


def _method(label: str, index: int) -> Method:
    return st.selectbox(
        label, COMPARED, index, format_func=METHODS.__getitem__, label_visibility="collapsed", width=140
    )


def _computed(node_id: str, methods: Sequence[Method]) -> list[Cut]:
    from embeddings.clusters import cuts

    try:
        with st.spinner("Cutting …", show_time=True):
            if methods:
                return list(cuts.compare(session.lake(), node_id, methods))
            return list(cuts.sweep(session.lake(), node=node_id))
    except LakeloopError as error:
        st.error(escape(str(error)))
        return []


def _table(kind: str, cuts: Sequence[Cut]) -> Block:
    columns: list[Any] = [
        ("Method", "left", ""),
        ("Parameters", "left", ""),
        ("Clusters", "right", "Noise is not counted"),
        ("Noise", "right", "Share of the images in no cluster"),
        ("Largest", "right", "Share of the images in the largest cluster"),
        ("Persistence", "right", "Mean over its clusters: how long they stay together as density rises, 0 to 1"),
    ]
    rows: list[list[Any]] = [
        [
            next((name for key, name in METHODS.items() if key == cut.method), cut.method),
            ", ".join(f"{name} {value}" for name, value in cut.params.items()),
            count(cut.clusters),
            share(cut.noise_share),
            share(cut.largest_share),
            "–" if cut.persistence is None else f"{cut.persistence:.2f}",
        ]
        for cut in cuts
    ]
    if kind == "compare":
        columns.append(("Agreement", "right", "Adjusted mutual information with the first row: 1 identical, 0 chance"))
        for row, cut in zip(rows, cuts, strict=True):
            row.append("–" if cut.agreement is None else f"{cut.agreement:.2f}")
    return table("", columns, rows)
