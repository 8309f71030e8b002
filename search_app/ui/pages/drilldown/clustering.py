"""Makes clusters: the form for a new tree, and the call that clusters a scope or a node."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.components import scope
from search_app.ui.pages.drilldown import cuts
from search_app.ui.text.markdown import escape


def form(status: dict[str, Any]) -> None:
    """The form for a new tree over the scope and filters. `status` is what `lakeloop status` returns."""
    where = scope.current().where()
    names = [embedder["name"] for embedder in status["embedders"] if embedder["embedded"]]
    with st.form("cluster", border=False):
        st.caption(
            "Clusters the images of the current scope and filters." if where else "Clusters all images of the lake."
        )
        embedder = st.selectbox("Embedder", names) if len(names) > 1 else names[0]
        method = st.selectbox("Method", list(cuts.METHODS), format_func=cuts.METHODS.__getitem__)
        k = st.number_input("Number of clusters", 2, 200, None, placeholder=cuts.AUTOMATIC, help="For k-means only")
        if st.form_submit_button("Make clusters", type="primary"):
            make(embedder=embedder, where=where, method=method, k=k if method in cuts.COUNTED else None)


def make(**options: Any) -> None:
    """Clusters (see `embeddings.clusters.drilldown.cluster`) and shows the result, which ends this run."""
    from embeddings.clusters.drilldown import cluster

    try:
        with st.spinner("Clustering …", show_time=True):
            clustering = cluster(session.lake(), **options)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    session.wrote("cluster", clustering.tree, {name: value for name, value in options.items() if value is not None})
    if clustering.remark:
        st.toast(escape(clustering.remark), duration="long")
    if options.get("node") is None:
        session.put(tree=clustering.tree, at=None, open=None, sel=None)
    session.put(view=None)
    st.rerun()
