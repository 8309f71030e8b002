"""Makes clusters: the form for a new tree, and the call that clusters a scope or a node."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.components import scope
from search_app.ui.data import jobs
from search_app.ui.pages.drilldown import cuts
from search_app.ui.text.markdown import escape

# They take seconds in this process, which has the libraries loaded; a worker begins with loading them.
QUICK_IMAGES = 20_000


def form(status: dict[str, Any]) -> None:
    """The form for a new tree over the scope and filters. `status` is what `lakeloop status` returns."""
    where = scope.where()
    names = [embedder["name"] for embedder in status["embedders"] if embedder["embedded"]]
    with st.form("cluster", border=False):
        st.caption(
            "Clusters the images of the current scope and filters." if where else "Clusters all images of the lake."
        )
        embedder = st.selectbox("Embedder", names) if len(names) > 1 else names[0]
        method = st.selectbox("Method", list(cuts.METHODS), format_func=cuts.METHODS.__getitem__)
        k = st.number_input("Number of clusters", 2, 200, None, placeholder=cuts.AUTOMATIC, help="For k-means only")
        if st.form_submit_button("Make clusters", type="primary"):
            most = next(row["embedded"] for row in status["embedders"] if row["name"] == embedder)
            make(most, embedder=embedder, where=where, method=method, k=k if method in cuts.COUNTED else None)


@session.handler("cluster")
def make(most: int, **options: Any) -> None:
    """Clusters at most `most` images (see `embeddings.clusters.drilldown.cluster`) and shows the result: this run ends.

    Many images are clustered by a job, which `progress` follows.
    """
    from embeddings.clusters.drilldown import cluster

    if most > QUICK_IMAGES:
        if started := jobs.start("cluster", {name: value for name, value in options.items() if value is not None}):
            session.put(job=started.id)
            st.rerun()
        return
    try:
        with st.spinner("Clustering …", show_time=True):
            clustering = cluster(session.lake(), **options)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    session.wrote(clustering.tree, {name: value for name, value in options.items() if value is not None})
    if clustering.remark:
        st.toast(escape(clustering.remark), duration="long")
    if options.get("node") is None:
        session.put(tree=clustering.tree, at=None, open=None, sel=None)
    session.put(view=None)
    st.rerun()


def progress() -> None:
    """Shows the job of the URL while it clusters, and its clusters when it has ended."""
    job = jobs.get(session.param("job"))
    if job is not None and job.kind == "cluster":
        _progress(job.id)


@st.fragment(run_every=0.7)
def _progress(job_id: str) -> None:
    job = jobs.get(job_id)
    if job is None:
        return
    if not job.finished:
        jobs.bar(job, "cluster")
    elif job.state == "done" and job.result is not None:
        moved = {} if "node" in job.arguments else {"tree": job.result["tree"], "at": None}
        session.put(job=None, view=None, open=None, sel=None, **moved)
        st.rerun(scope="app")
    else:
        st.error(escape(f"The clusters could not be made: {job.news or job.state}"))
        if st.button("Close"):
            session.put(job=None)
            st.rerun(scope="app")
