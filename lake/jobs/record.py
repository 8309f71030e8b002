"""The record of jobs: each start and each change of state is a row of table `jobs`, written once.

Every way out of an attempt has the same key, so of two processes that end it one is refused. It does not know what the
work of a kind is, nor how workers are started.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lake.errors import BadInput, CouldNot
from lake.jobs import live_state
from lake.jobs.current import get
from lake.jobs.job import Job, Starter
from lake.storage import schema, store

if TYPE_CHECKING:
    from lake.storage.store import Lake

LONGEST_ARGUMENTS = 64 << 10
LONGEST_RESULT = 1 << 20
_NAMESPACE = uuid.UUID("4f0c2b1e-8a57-5d39-9d4b-2e6a7c51f083")
_AS_COLUMNS = tuple(
    column.name for column in schema.JOBS.columns if column.name not in ("event_id", "job", "arguments", "result")
)


def new(kind: str, arguments: Mapping[str, Any], by: Starter, *, detached: bool, request: str | None = None) -> Job:
    """A job that is not recorded yet, as waiting.

    `request`: what makes the request unique, such as an Idempotency-Key; the same request of the same starter gives the
    same id. Raises BadInput for arguments of more than 64 KiB.
    """
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > LONGEST_ARGUMENTS:
        raise BadInput(f"the arguments have {len(text.encode()):,} bytes; a job takes at most {LONGEST_ARGUMENTS:,}")
    if request is None:
        job_id = secrets.token_hex(6)
    else:
        job_id = hashlib.sha256(json.dumps([by.user, by.key_id, request]).encode()).hexdigest()[:12]
    now = store.now()
    return Job(job_id, kind, json.loads(text), "waiting", 1, 0, detached, now, now, by.user, by.key_id)


def submit(lake: Lake, kind: str, arguments: Mapping[str, Any], by: Starter, request: str | None = None) -> Job:
    """Records a new job as waiting: a worker process may take it from now on.

    The same `request` of the same starter gives the job of the first time. Raises BadInput if that one is another kind
    or has other arguments, and what `new` raises.
    """
    job = new(kind, arguments, by, detached=True, request=request)
    if not _write(lake, job, "created", 1):
        known = get(lake, job.id)
        if (known.kind, known.arguments) != (kind, job.arguments):
            raise BadInput(f"this Idempotency-Key was used for another request: job {job.id}")
        return known
    return job


def started(lake: Lake, job: Job) -> Job:
    """Records that this process works on the job. It must have claimed it before."""
    job = replace(job, state="running", changed_at=store.now(), host=os.uname().nodename, message=None, error=None)
    _write(lake, job, "running", job.attempt)
    return job


def noted(lake: Lake, job: Job, number: int, result: Mapping[str, Any]) -> Job:
    """Records what a running job has made so far, so that another attempt can continue it. `number`: 1, 2, ..."""
    job = replace(job, changed_at=store.now(), result={**(job.result or {}), **result})
    _write(lake, job, f"note {number}", job.attempt)
    return job


def ended(
    lake: Lake,
    job: Job,
    state: Literal["done", "failed", "cancelled"],
    *,
    error: str | None = None,
    message: str | None = None,
    result: Mapping[str, Any] | None = None,
) -> bool:
    """Records the end of an attempt. Returns False if its end is recorded already.

    The attempt has failed if its result is longer than LONGEST_RESULT.
    """
    merged = {**(job.result or {}), **(result or {})} or None
    if merged is not None and len(json.dumps(merged)) > LONGEST_RESULT:
        state, merged = "failed", job.result
        error = f"the work is done, but its result has more than {LONGEST_RESULT:,} bytes; give it less to do at once"
    job = replace(job, state=state, changed_at=store.now(), error=error, message=message, result=merged)
    return _write(lake, job, "end", job.attempt)


def begin_again(lake: Lake, job: Job, message: str, *, takeover: bool) -> bool:
    """Queues the next attempt of a job. Returns False if its state changed meanwhile.

    `takeover`: its worker died, and nobody asked for another attempt.
    """
    open_end = job.died or job.state == "running"
    again = replace(
        job,
        state="waiting",
        attempt=job.attempt + 1,
        takeovers=job.takeovers + 1 if takeover else 0,
        detached=True,
        changed_at=store.now(),
        message=message,
        error=None,
    )
    return _write(lake, again, "end" if open_end else "again", job.attempt)


def retry(lake: Lake, name: str, by: Starter) -> Job:
    """Queues another attempt of a failed or cancelled job. It resumes what the last attempt left, where its kind can.

    Raises BadInput for an unknown job, and for one that waits, runs or is done.
    """
    job = get(lake, name)
    if job.state not in ("failed", "cancelled"):
        raise BadInput(f"job {job.id} is {job.state}; only a failed or cancelled job can be started again")
    begin_again(lake, job, f"started again by {by}", takeover=False)
    return get(lake, job.id)


def cancel(lake: Lake, name: str, by: Starter) -> Job:
    """Cancels a job: at once if it waits, else its worker is asked to end, which takes it seconds.

    Raises BadInput for an unknown job and for one that has ended, CouldNot if it runs where nobody can ask it.
    """
    job = get(lake, name)
    live = live_state.of(lake)
    message = f"cancelled by {by}"
    try:
        if job.state == "running":
            if not live.ask_to_cancel(job.id, str(by)):
                fresh = get(lake, job.id)
                if fresh.state == "running":
                    raise CouldNot(f"job {job.id} runs on {job.host}; cancel it there")
                return fresh
        elif job.state == "waiting" or job.died:
            claim = live.claim(job.id, job.attempt, queued=False)
            if claim is None:  # a worker was faster
                live.ask_to_cancel(job.id, str(by))
            else:
                ended(lake, job, "cancelled", message=message)
                live.release(claim)
        else:
            raise BadInput(f"job {job.id} is {job.state} already")
    finally:
        live.close()
    return get(lake, job.id)


def _write(lake: Lake, job: Job, change: str, attempt: int) -> bool:
    row = {
        **{name: getattr(job, name) for name in _AS_COLUMNS},
        "event_id": str(uuid.uuid5(_NAMESPACE, f"{job.id}/{attempt}/{change}")),
        "job": job.id,
        "arguments": json.dumps(job.arguments, ensure_ascii=False, allow_nan=False),
        "result": None if job.result is None else json.dumps(job.result, ensure_ascii=False, allow_nan=False),
    }
    return lake.insert("jobs", pa.Table.from_pylist([row], schema=schema.JOBS.arrow())) == 1
