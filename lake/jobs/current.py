"""The state of each job now, from the rows of table `jobs` and the heartbeats of workers."""

from __future__ import annotations

import builtins
import datetime as dt
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.jobs import live_state
from lake.jobs.job import STATES, UNFINISHED, Job
from lake.jobs.live_state import LiveJob
from lake.sql.per_lake import PerLake

if TYPE_CHECKING:
    from lake.storage.store import Lake

DIED = "the worker died"
# Longer arguments and results are not kept in memory.
LONGEST_KEPT = 8 << 10
_WIDE = ("arguments", "result")
_NO_TEXTS: dict[str, Any] = dict.fromkeys(_WIDE)


def get(lake: Lake, name: str) -> Job:
    """The job with this id, or with the only id that starts with it. Raises BadInput with the nearest ids."""
    rows = _latest(lake)
    matches = [name] if name in rows else [job for job in rows if name and job.startswith(name)]
    if len(matches) > 1:
        raise BadInput(f"{len(matches)} jobs begin with {name!r}: {', '.join(sorted(matches)[:10])}")
    if not matches:
        from lake.slices.naming import unknown  # its package imports DuckDB, which no other function here needs

        raise unknown("job", name, rows)
    return _jobs(lake, [rows[matches[0]]])[0]


@dataclass(frozen=True)
class Place:
    """Where a job stands in the list: later jobs come first."""

    created_at: dt.datetime
    id: str


def places(lake: Lake, states: Collection[str] = (), kinds: Collection[str] = ()) -> builtins.list[Place]:
    """The jobs in one of the states and of one of the kinds, newest first; empty collections mean all."""
    rows = [row for row in _latest(lake).values() if not kinds or row["kind"] in kinds]
    if states:
        rows, live = _observed(lake, rows)
        rows = [row for row in rows if _shown(row, live)["state"] in states]
    return [Place(*_place(row)) for row in sorted(rows, key=_place, reverse=True)]


def at_places(lake: Lake, chosen: Iterable[Place]) -> builtins.list[Job]:
    """The jobs at these places, in this order, without arguments and results of more than 8 KiB: `get` has them."""
    rows = _latest(lake)
    return _jobs(lake, [rows[place.id] for place in chosen], long=False)


def list(
    lake: Lake, *, states: Collection[str] = (), kinds: Collection[str] = (), limit: int | None = None
) -> builtins.list[Job]:
    """The first `limit` jobs of `places`, as `at_places` gives them."""
    return at_places(lake, places(lake, states, kinds)[:limit])


def unfinished(lake: Lake) -> builtins.list[Job]:
    """Jobs whose rows say that they wait or run, with those whose worker died: oldest first."""
    rows = [row for row in _latest(lake).values() if row["state"] in UNFINISHED]
    return _jobs(lake, sorted(rows, key=_place))


def _place(row: Mapping[str, Any]) -> tuple[dt.datetime, str]:
    return row["created_at"], row["job"]


@dataclass(frozen=True)
class _Rows:
    """The latest row of each job at a version, from these fragments. Long texts are left out: they are True."""

    version: int = 0
    fragments: frozenset[int] = frozenset()
    latest: Mapping[str, dict[str, Any]] = field(default_factory=dict)


# One entry, which is replaced whole: threads that read it see one version.
_known_rows: PerLake[dict[str, _Rows]] = PerLake(dict)


def _latest(lake: Lake) -> Mapping[str, dict[str, Any]]:
    """The latest row of each job, as view `jobs_current` has it. It reads only what was added since the last call."""
    dataset = lake.dataset("jobs")
    rows = _known_rows(lake).get("rows", _Rows())
    if rows.version != dataset.version:
        fragments = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
        if not rows.fragments <= fragments.keys():  # maintenance merged some
            rows = _Rows()
        new = [fragment for number, fragment in fragments.items() if number not in rows.fragments]
        latest = dict(rows.latest)
        for row in dataset.scanner(fragments=new).to_table().to_pylist() if new else ():
            row |= {name: True for name in _WIDE if len(row[name] or "") > LONGEST_KEPT}
            if row["job"] not in latest or _order(row) >= _order(latest[row["job"]]):
                latest[row["job"]] = row
        rows = _known_rows(lake)["rows"] = _Rows(int(dataset.version), frozenset(fragments), latest)
    return rows.latest


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["attempt"], min(2, STATES.index(row["state"])), row["changed_at"], row["event_id"]


@dataclass(frozen=True)
class _Heartbeats:
    """The claims, by job. `complete`: a job that runs here and has no claim is dead."""

    jobs: Mapping[str, LiveJob]
    complete: bool


def _heartbeats(lake: Lake, rows: Iterable[Mapping[str, Any]]) -> _Heartbeats:
    """Those of the rows that run. Without such a row, no file is read."""
    if not any(row["state"] == "running" for row in rows):
        return _Heartbeats({}, False)
    live = live_state.of(lake)
    try:
        return _Heartbeats(live.jobs(), live.complete())
    finally:
        live.close()


def _observed(lake: Lake, rows: Sequence[dict[str, Any]]) -> tuple[builtins.list[dict[str, Any]], _Heartbeats]:
    """The rows with the heartbeats of those that run.

    A worker records its end before it gives its claim back, so a row whose claim is gone is read again: only a job that
    still runs by its row is dead.
    """
    while True:
        live = _heartbeats(lake, rows)
        if not any("died" in _shown(row, live) for row in rows):
            return [*rows], live
        latest = _latest(lake)
        fresh = [latest[row["job"]] for row in rows]
        if [row["event_id"] for row in fresh] == [row["event_id"] for row in rows]:
            return fresh, live
        rows = fresh


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


def _jobs(lake: Lake, rows: Sequence[dict[str, Any]], long: bool = True) -> builtins.list[Job]:
    rows, live = _observed(lake, rows)
    left_out = [row["event_id"] for row in rows if long and True in (row["arguments"], row["result"])]
    wide = lake.look_up("jobs", ["event_id", *_WIDE], "event_id", left_out).to_pylist() if left_out else []
    by_event = {row["event_id"]: row for row in wide}
    jobs = []
    for row in rows:
        values = {name: value for name, value in row.items() if name not in ("event_id", "job")}
        for name in _WIDE:
            text = by_event.get(row["event_id"], _NO_TEXTS)[name] if row[name] is True else row[name]
            values[name] = None if text is None else json.loads(text)
        values["arguments"] = values["arguments"] or {}
        jobs.append(Job(id=row["job"], **(values | _shown(row, live))))
    return jobs
