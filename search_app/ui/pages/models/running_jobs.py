"""The jobs on models: the page runs again when one changes state, and says how it ended.

The corner of the page shows their progress. All users of the server see the same jobs.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from lake.jobs.job import Job
from search_app.ui.data import jobs, model_record
from search_app.ui.text.markdown import escape

EVERY_SECONDS = 0.7
ELSEWHERE_SECONDS = 3.0  # for runs that train in another process
KINDS = ("train", "tune", "evaluate", "gate")
# The page runs again when one of these tables changes.
WATCHED = ("runs", "gates", "releases")


def begin(kind: str, arguments: dict[str, Any]) -> bool:
    """Starts a job; the corner shows it. Returns False, with the reason on the page, if it is refused."""
    return jobs.start(kind, arguments) is not None


def busy(run: str) -> bool:
    """Whether a job with this run waits or runs."""
    return any(run in _runs(job) for job in jobs.unfinished(*KINDS))


def _runs(job: Job) -> set[Any]:
    given = (job.arguments.get(name) for name in ("run", "candidate", "baseline", "resume"))
    return {*given, (job.result or {}).get("run")}


def strip() -> None:
    """Runs the page again at each change. Jobs of this session that failed are listed until the user dismisses them."""
    watched: set[str] = st.session_state.setdefault("_model_jobs", set())
    running = jobs.unfinished(*KINDS)
    watched |= {job.id for job in running}
    done = [job for job_id in watched - {job.id for job in running} if (job := jobs.get(job_id)) is not None]
    for job in done:
        if job.state == "done":
            watched.discard(job.id)
        else:
            _ended(job, watched)
    finished = [jobs.title(job) for job in done if job.state == "done"]
    if finished:
        st.toast(escape(" · ".join(f"{title}: done" for title in finished)) + ".", duration="long")
    elsewhere = any(run.status == "running" for run in model_record.runs())
    st.session_state["_models_shown"] = _state()
    if running or elsewhere:
        st.fragment(_live, run_every=EVERY_SECONDS if running else ELSEWHERE_SECONDS)()


def _ended(job: Job, watched: set[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key=f"work-{job.id}"):
        show = st.info if job.state == "cancelled" else st.error
        show(escape(f"{jobs.title(job)}: {job.news or job.state}"))
        if st.button("Dismiss", key=f"dismiss-{job.id}", type="tertiary"):
            watched.discard(job.id)
            st.rerun()


def _state() -> tuple[Any, ...]:
    """The page runs again when this changes."""
    running = ((job.id, job.state, (job.result or {}).get("run")) for job in jobs.unfinished(*KINDS))
    return (*model_record.stamp(*WATCHED), *running)


def _live() -> None:
    if st.session_state.get("_models_shown") != _state():
        st.rerun()
