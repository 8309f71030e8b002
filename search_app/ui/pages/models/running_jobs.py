"""Long work on models, each in a process of its own: what runs on this server, how far it is, how it ended.

Whoever looks at the page sees it, as the lake is one for all.
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
ELSEWHERE_SECONDS = 3.0  # for runs that another process trains
# What the page must be drawn anew for, while somebody looks.
WATCHED = ("runs", "gates", "releases")


@dataclass(eq=False)
class Work:
    """`what`: in words, as in "Evaluating run 1a2b3c4d"; `run`: what it is about, known sooner or later."""

    what: str
    job: jobs.Job
    run: str | None = None

    @property
    def about(self) -> str | None:
        return self.run or self.job.details.get("run")


_by_lake: dict[str, list[Work]] = {}


def begin(what: str, module: str, how: dict[str, Any], run: str | None = None) -> None:
    """Starts `search_app.jobs.<module>` with `how`, and shows it on top of the page."""
    lake = session.lake()
    _mine().append(Work(what, jobs.Job(f"search_app.jobs.{module}", lake.uri, how), run))


def busy(run: str) -> bool:
    """Whether something is under way with this run."""
    return any(not one.job.done and one.about == run for one in _mine())


def strip() -> None:
    """What is under way, and what failed until somebody has read it. Nothing when there is nothing."""
    for one in [one for one in _mine() if one.job.result is not None]:
        _mine().remove(one)
    under_way = any(not one.job.done for one in _mine())
    elsewhere = any(one.status == "running" for one in model_record.runs())
    st.session_state["_models_shown"] = _state()
    if under_way or elsewhere:
        st.fragment(_live, run_every=EVERY_SECONDS if under_way else ELSEWHERE_SECONDS)()
    else:
        _bars()


def _state() -> tuple[Any, ...]:
    """What the page is drawn anew for."""
    return (*model_record.stamp(*WATCHED), sum(one.job.done for one in _mine()))


def _mine() -> list[Work]:
    return _by_lake.setdefault(session.lake().uri, [])


def _live() -> None:
    """Bars; the whole page runs again when there is more to see on it."""
    if st.session_state.get("_models_shown") != _state():
        ended = [one.what for one in _mine() if one.job.result is not None]
        if ended:
            session.say(escape(" · ".join(f"{one}: done" for one in ended)) + ".")
        st.rerun()
    _bars()


def _bars() -> None:
    for place, one in enumerate(_mine()):
        with st.container(horizontal=True, vertical_alignment="center", key=f"work-{place}"):
            if one.job.error is not None:
                (st.info if one.job.error == jobs.CANCELLED else st.error)(escape(f"{one.what}: {one.job.error}"))
                if st.button("Dismiss", key=f"dismiss-{place}", type="tertiary"):
                    _mine().remove(one)
                    st.rerun()
                continue
            st.progress(min(1.0, one.job.share), escape(f"{one.what}{_how_far(one)}"))
            if session.may("admin") and st.button("Cancel", key=f"cancel-{place}", type="tertiary"):
                one.job.cancel()


def _how_far(one: Work) -> str:
    details = one.job.details
    if "epoch" in details:
        return f": epoch {min(details['epoch'] + 1, details['epochs'])} of {details['epochs']}, {one.job.share:.0%}"
    return f": {one.job.share:.0%}" if one.job.share else " …"
