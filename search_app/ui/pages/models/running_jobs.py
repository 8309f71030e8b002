"""The running jobs on models: training, evaluation, gate; their progress and result.

All users of the server see the same jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import streamlit as st

from search_app.jobs import jobs
from search_app.ui import session
from search_app.ui.data import model_record
from search_app.ui.text.markdown import escape

EVERY_SECONDS = 0.7
ELSEWHERE_SECONDS = 3.0  # for runs that train in another process
# The page runs again when one of these tables changes.
WATCHED = ("runs", "gates", "releases")


@dataclass(eq=False)
class ModelJob:
    """`title`: such as "Evaluating run 1a2b3c4d"; `run`: the id of its run, None until it is known."""

    title: str
    job: jobs.Job
    run: str | None = None

    @property
    def run_id(self) -> str | None:
        return self.run or self.job.details.get("run")


_by_lake: dict[str, list[ModelJob]] = {}


def begin(title: str, module: str, parameters: dict[str, Any], run: str | None = None) -> None:
    """Starts `search_app.jobs.<module>` with `parameters`, and shows it at the top of the page."""
    lake = session.lake()
    _of_this_lake().append(ModelJob(title, jobs.Job(f"search_app.jobs.{module}", lake.uri, parameters), run))


def busy(run: str) -> bool:
    """Whether a job with this run is running."""
    return any(not job.job.done and job.run_id == run for job in _of_this_lake())


def strip() -> None:
    """The running jobs, and the failed jobs until a user dismisses them."""
    for finished in [job for job in _of_this_lake() if job.job.result is not None]:
        _of_this_lake().remove(finished)
    running = any(not job.job.done for job in _of_this_lake())
    elsewhere = any(run.status == "running" for run in model_record.runs())
    st.session_state["_models_shown"] = _state()
    if running or elsewhere:
        st.fragment(_live, run_every=EVERY_SECONDS if running else ELSEWHERE_SECONDS)()
    else:
        _bars()


def _state() -> tuple[Any, ...]:
    """The page runs again when this changes."""
    return (*model_record.stamp(*WATCHED), sum(job.job.done for job in _of_this_lake()))


def _of_this_lake() -> list[ModelJob]:
    return _by_lake.setdefault(session.lake().uri, [])


def _live() -> None:
    """Progress bars. The whole page runs again when its state has changed."""
    if st.session_state.get("_models_shown") != _state():
        finished = [job.title for job in _of_this_lake() if job.job.result is not None]
        if finished:
            session.say(escape(" · ".join(f"{title}: done" for title in finished)) + ".")
        st.rerun()
    _bars()


def _bars() -> None:
    for i, job in enumerate(_of_this_lake()):
        with st.container(horizontal=True, vertical_alignment="center", key=f"work-{i}"):
            if job.job.error is not None:
                show = st.info if job.job.error == jobs.CANCELLED else st.error
                show(escape(f"{job.title}: {job.job.error}"))
                if st.button("Dismiss", key=f"dismiss-{i}", type="tertiary"):
                    _of_this_lake().remove(job)
                    st.rerun()
                continue
            st.progress(min(1.0, job.job.share), escape(f"{job.title}{_progress(job)}"))
            if session.may("admin") and st.button("Cancel", key=f"cancel-{i}", type="tertiary"):
                job.job.cancel()


def _progress(job: ModelJob) -> str:
    details, share = job.job.details, job.job.share
    if "epoch" in details:
        return f": epoch {min(details['epoch'] + 1, details['epochs'])} of {details['epochs']}, {share:.0%}"
    return f": {share:.0%}" if share else " …"
