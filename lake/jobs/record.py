"""The record of jobs: starts, changes of state, and the state of each job now, from rows and heartbeats.

A change of state is a row of table `jobs`, written once: every way out of an attempt has the same key, so of two
processes that end it one is refused. It does not know what the work of a kind is, nor how workers are started.
"""

from __future__ import annotations

import builtins
import datetime as dt
import hashlib
import json
import os
import secrets
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lake.errors import BadInput, CouldNot
from lake.jobs import live_state
from lake.jobs.live_state import LiveJob, Progress
from lake.slices.naming import unknown
from lake.sql.per_lake import PerLake
from lake.storage import schema, store

if TYPE_CHECKING:
    from lake.storage.store import Lake

State = Literal["waiting", "running", "done", "failed", "cancelled"]
STATES = ("waiting", "running", "done", "failed", "cancelled")
UNFINISHED = ("waiting", "running")
DIED = "the worker died"
LONGEST_ARGUMENTS = 64 << 10
LONGEST_RESULT = 1 << 20
# Longer arguments and results are not kept in memory.
LONGEST_KEPT = 8 << 10
# A dead worker's job that can resume is taken over until it had this many attempts.
MOST_ATTEMPTS = 3
_NAMESPACE = uuid.UUID("4f0c2b1e-8a57-5d39-9d4b-2e6a7c51f083")
_WIDE = ("arguments", "result")
_NARROW = tuple(column.name for column in schema.JOBS.columns if column.name not in _WIDE)


@dataclass(frozen=True)
class Job:
    """A job as it is now. Times are UTC.

    `state` is failed, with `died`, while its rows say running and its worker is gone. `progress` is None unless it runs
    and its worker can be seen; `seconds`: since this attempt was claimed; `cancelled_by`: who asked to cancel it, while
    it still runs. `user` and `key_id`: who started it, both None for anyone on an open server.
    """

    id: str
    kind: str
    arguments: dict[str, Any]
    state: State
    attempt: int
    takeovers: int
    detached: bool
    created_at: dt.datetime
    changed_at: dt.datetime
    user: str | None = None
    key_id: str | None = None
    host: str | None = None
    message: str | None = None
    error: str | None = None
    result: dict[str, Any] | None = None
    died: bool = False
    progress: Progress | None = None
    seconds: float | None = None
    cancelled_by: str | None = None

    @property
    def finished(self) -> bool:
        return self.state not in UNFINISHED

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the share that is done; None while there is no share, or too little of it."""
        share = self.progress.share if self.progress else None
        if not share or share < 0.01 or self.seconds is None:
            return None
        return self.seconds * (1 - share) / share

    def facts(self) -> dict[str, Any]:
        """As plain data for JSON."""
        progress = self.progress
        return {
            "id": self.id,
            "kind": self.kind,
            "arguments": self.arguments,
            "state": self.state,
            "attempt": self.attempt,
            "created_at": self.created_at.isoformat(),
            "changed_at": self.changed_at.isoformat(),
            "user": self.user,
            "key_id": self.key_id,
            "host": self.host,
            "message": self.message,
            "error": self.error,
            "result": self.result,
            "progress": progress
            and {"done": progress.done, "total": progress.total, "unit": progress.unit, "share": progress.share,
                 "stage": progress.stage, "facts": progress.facts},
            "seconds": self.seconds,
            "seconds_left": self.seconds_left,
            "cancelled_by": self.cancelled_by,
        }  # fmt: skip


@dataclass(frozen=True)
class Starter:
    """Who starts a job: a user of the system or of the app, an access key, or neither on an open server."""

    user: str | None = None
    key_id: str | None = None

    def __str__(self) -> str:
        return self.user or (f"key {self.key_id}" if self.key_id else "somebody")


# Changes of state --------------------------------------------------------------------------------------------


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
    """Records the end of an attempt. Returns False if its end is recorded already."""
    merged = {**(job.result or {}), **(result or {})} or None
    if merged is not None and len(json.dumps(merged)) > LONGEST_RESULT:
        raise CouldNot(f"the result of job {job.id} has more than {LONGEST_RESULT:,} bytes")
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


# Reading -----------------------------------------------------------------------------------------------------


def get(lake: Lake, name: str) -> Job:
    """The job with this id, or with the only id that starts with it. Raises BadInput with the nearest ids."""
    rows = _latest(lake)
    matches = [name] if name in rows else [job for job in rows if name and job.startswith(name)]
    if len(matches) > 1:
        raise BadInput(f"{len(matches)} jobs begin with {name!r}: {', '.join(sorted(matches)[:10])}")
    if not matches:
        raise unknown("job", name, rows)
    return _jobs(lake, [rows[matches[0]]])[0]


def list(
    lake: Lake,
    *,
    states: Collection[str] = (),
    kinds: Collection[str] = (),
    limit: int | None = None,
    before: tuple[dt.datetime, str] | None = None,
) -> builtins.list[Job]:
    """Jobs, newest first: those in one of the states and of one of the kinds; empty collections mean all.

    `before`: the `created_at` and id of the last job of the page before. At most `limit` jobs.
    """
    rows = [row for row in _latest(lake).values() if not kinds or row["kind"] in kinds]
    if before is not None:
        rows = [row for row in rows if _place(row) < before]
    live = _live(lake) if any(row["state"] == "running" for row in rows) else _Heartbeats({}, False)
    shown = [row for row in rows if not states or _shown(row, live)["state"] in states]
    shown.sort(key=_place, reverse=True)
    return _jobs(lake, shown if limit is None else shown[:limit], live)


def unfinished(lake: Lake) -> builtins.list[Job]:
    """Jobs whose rows say that they wait or run, with those whose worker died: oldest first."""
    rows = [row for row in _latest(lake).values() if row["state"] in UNFINISHED]
    return _jobs(lake, sorted(rows, key=_place))


def _place(row: Mapping[str, Any]) -> tuple[dt.datetime, str]:
    return row["created_at"], row["job"]


@dataclass
class _Rows:
    """The latest row of each job, from the fragments that were read so far. Long texts are left out: they are True."""

    fragments: set[int] = field(default_factory=set)
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)


_known_rows: PerLake[dict[int, _Rows]] = PerLake(dict)


def _latest(lake: Lake) -> dict[str, dict[str, Any]]:
    """The latest row of each job, as view `jobs_current` has it. It reads only what was added since the last call."""
    known, dataset = _known_rows(lake), lake.dataset("jobs")
    if dataset.version not in known:
        rows = next(iter(known.values()), _Rows())
        fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
        if not rows.fragments <= fragments.keys():  # maintenance merged some
            rows = _Rows()
        new = [fragment for number, fragment in fragments.items() if number not in rows.fragments]
        latest = dict(rows.latest)
        for row in dataset.scanner(fragments=new).to_table().to_pylist() if new else ():
            row |= {name: True for name in _WIDE if len(row[name] or "") > LONGEST_KEPT}
            if row["job"] not in latest or _order(row) > _order(latest[row["job"]]):
                latest[row["job"]] = row
        known[dataset.version] = rows = _Rows({*fragments}, latest)
        for version in [version for version in known if version < dataset.version]:
            known.pop(version, None)
        return rows.latest
    return known[dataset.version].latest


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["attempt"], min(2, STATES.index(row["state"])), row["changed_at"], row["event_id"]


@dataclass(frozen=True)
class _Heartbeats:
    """The claims, by job. `complete`: a job that runs here and has no claim is dead."""

    jobs: Mapping[str, LiveJob]
    complete: bool


def _live(lake: Lake) -> _Heartbeats:
    live = live_state.of(lake)
    try:
        return _Heartbeats(live.jobs(), live.complete())
    finally:
        live.close()


def _shown(row: Mapping[str, Any], live: _Heartbeats) -> dict[str, Any]:
    """What the heartbeats change in a row: the state of a running job, its progress."""
    job = live.jobs.get(row["job"])
    if row["state"] != "running":
        return {"state": row["state"]}
    if job is not None and job.alive and job.claim.attempt == row["attempt"]:
        return {
            "state": "running",
            "progress": job.progress,
            "seconds": job.seconds,
            "cancelled_by": job.cancelled_by,
        }
    if job is None and not (live.complete and row["host"] == os.uname().nodename):
        return {"state": "running"}  # on another machine, or its heartbeats were lost and the next one comes
    return {"state": "failed", "died": True, "error": DIED}


def _jobs(lake: Lake, rows: Iterable[Mapping[str, Any]], live: _Heartbeats | None = None) -> builtins.list[Job]:
    rows = [*rows]
    long = [row["event_id"] for row in rows if True in (row["arguments"], row["result"])]
    wide = lake.look_up("jobs", ["event_id", *_WIDE], "event_id", long).to_pylist() if long else []
    by_event = {row["event_id"]: row for row in wide}
    if live is None:
        live = _live(lake) if any(row["state"] == "running" for row in rows) else _Heartbeats({}, False)
    jobs = []
    for row in rows:
        values = {name: value for name, value in row.items() if name not in ("event_id", "job")}
        for name in _WIDE:
            text = by_event[row["event_id"]][name] if row[name] is True else row[name]
            values[name] = None if text is None else json.loads(text)
        jobs.append(Job(id=row["job"], **(values | _shown(row, live))))
    return jobs


def _write(lake: Lake, job: Job, change: str, attempt: int) -> bool:
    row = {
        **{name: getattr(job, name) for name in _NARROW if name not in ("event_id", "job")},
        "event_id": str(uuid.uuid5(_NAMESPACE, f"{job.id}/{attempt}/{change}")),
        "job": job.id,
        "arguments": json.dumps(job.arguments, ensure_ascii=False, allow_nan=False),
        "result": None if job.result is None else json.dumps(job.result, ensure_ascii=False, allow_nan=False),
    }
    return lake.insert("jobs", pa.Table.from_pylist([row], schema=schema.JOBS.arrow())) == 1
