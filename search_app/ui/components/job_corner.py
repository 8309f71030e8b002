"""The corner of every page: the jobs that run, with their progress, and a word when one has ended."""

from __future__ import annotations

import streamlit as st

from search_app.ui.data import jobs
from search_app.ui.text.markdown import escape

# While nothing runs, another user's job appears within the longer time.
BUSY_SECONDS = 1.0
IDLE_SECONDS = 5.0
SHOWN = 3


def job_corner() -> None:
    """Draws it. It looks again by itself, without the page."""
    st.fragment(_corner, run_every=BUSY_SECONDS if jobs.unfinished() else IDLE_SECONDS)()


def _corner() -> None:
    known: set[str] = st.session_state.setdefault("_corner_jobs", set())
    running = jobs.unfinished()
    for job_id in known - {job.id for job in running}:
        ended = jobs.get(job_id)
        if ended is not None:
            st.toast(escape(f"{jobs.title(ended)}: {ended.state}" + (f", {ended.error}" if ended.error else "")))
    st.session_state["_corner_jobs"] = {job.id for job in running}
    if not running:
        return
    with st.container(key="job-corner"):
        for job in reversed(running[-SHOWN:]):  # the first of the queue on top
            jobs.bar(job, "corner")
        if len(running) > SHOWN:
            st.caption(f"{len(running) - SHOWN} more jobs wait")
