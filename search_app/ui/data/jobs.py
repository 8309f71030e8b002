"""The jobs of the lake as pages see them: started, found again in any browser, shown with their progress, stopped."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lake.errors import BadInput, LakeloopError
from lake.jobs import current, record
from lake.jobs.job import UNFINISHED, Job
from search_app.jobs import kinds, starting, supervisor
from search_app.ui import session
from search_app.ui.text.markdown import escape


def start(kind: str, arguments: dict[str, Any]) -> Job | None:
    """Starts a job in the name of the user. Shows the error and returns None if its arguments are refused.

    The arguments are the page's own: it names no file, and it has checked the user's part of a filter.
    """
    try:
        return submit(kind, arguments)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return None


def submit(kind: str, arguments: dict[str, Any], request: str | None = None) -> Job:
    """The job, started or found by its `request`. Raises NotAllowed, and what `starting.start` raises."""
    with session.acting("job start", kinds.scope(kind)):
        job = starting.start(session.lake(), kind, arguments, session.starter(), local=True, request=request)
        session.wrote(job.id, {"kind": kind})
        return job


def unfinished(*of_kinds: str) -> list[Job]:
    """Jobs that wait or run, of these kinds (none: of all), the newest first."""
    return current.list(session.lake(), states=UNFINISHED, kinds=of_kinds)


def get(job_id: str) -> Job | None:
    """The job with this id; None if there is none."""
    try:
        return current.get(session.lake(), job_id) if job_id else None
    except BadInput:
        return None


def newest(kind: str, **arguments: Any) -> Job | None:
    """The newest of the last hundred jobs of the kind that was given all these arguments."""
    jobs = current.list(session.lake(), kinds=[kind], limit=100)
    return next((job for job in jobs if arguments.items() <= job.arguments.items()), None)


def may_stop(job: Job) -> bool:
    """Whether the user may stop it: who started it, and who may start its kind over HTTP."""
    return job.starter == session.starter() or session.may(kinds.scope(job.kind))


def stop(job: Job) -> None:
    """Asks the job to end; it may have ended already."""
    by = session.starter()
    try:
        with session.acting("job cancel", "read" if job.starter == by else kinds.scope(job.kind)):
            record.cancel(session.lake(), job.id, by)
            session.wrote(job.id, {"kind": job.kind})
    except LakeloopError as error:
        st.toast(escape(str(error)))


def retry(job: Job) -> None:
    """Starts a failed or cancelled job again; another user may have done it already."""
    try:
        with session.acting("job retry", kinds.scope(job.kind)):
            record.retry(session.lake(), job.id, session.starter())
            session.wrote(job.id, {"kind": job.kind})
    except LakeloopError as error:
        st.toast(escape(str(error)))
        return
    supervisor.ensure(session.lake())


def title(job: Job) -> str:
    """What the job does, in a few words."""
    given = job.arguments
    match job.kind:
        case "train":
            return f"Training {given.get('name') or 'run ' + given['resume']}"
        case "evaluate":
            return f"Evaluating run {given['run']}"
        case "gate":
            return f"Gate: run {given['candidate']} against {given.get('baseline', 'the promoted run')}"
        case "export":
            return f"Export of {given['slice']} as {given.get('format', 'imagefolder')}"
    kind = kinds.KINDS.get(job.kind)
    return kind.title if kind else job.kind


def sentence(job: Job) -> str:
    """The title and what happens: `Training cells: epoch 2 of 5, 40%, about 3 min left`."""
    happens = job.news or {"waiting": "waits for its turn", "running": "begins"}.get(job.state, job.state)
    return f"{title(job)}: {happens}"


def bar(job: Job, key: str) -> None:
    """A progress bar with the sentence, and the button that stops the job: it asks if somebody else started it."""
    share = job.progress.share if job.progress else None
    with st.container(horizontal=True, vertical_alignment="center", key=f"{key}-{job.id}"):
        st.progress(share or 0.0, escape(sentence(job)))
        if not may_stop(job) or job.cancelled_by is not None:
            return
        if job.starter == session.starter():
            if st.button("Stop", key=f"{key}-stop-{job.id}", type="tertiary"):
                stop(job)
                st.rerun(scope="fragment")
            return
        with st.popover("Stop", type="tertiary", key=f"{key}-ask-{job.id}"):
            st.markdown(f"Started by {escape(str(job.starter))}. Stop it?")
            if st.button("Stop the job", key=f"{key}-stop-{job.id}", type="primary"):
                stop(job)
                st.rerun(scope="fragment")
