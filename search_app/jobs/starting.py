"""Starts a job for a worker process: checks its arguments, records it, and sees to it that a supervisor runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lake.errors import CouldNot
from lake.jobs import current, record
from search_app.jobs import kinds, supervisor

if TYPE_CHECKING:
    from lake.jobs.job import Job, Starter
    from lake.storage.store import Lake

MOST_WAITING = 200


class QueueFull(CouldNot):
    """So many jobs wait that no other is accepted."""


def start(
    lake: Lake, kind: str, arguments: Mapping[str, Any], by: Starter, *, local: bool = False, request: str | None = None
) -> Job:
    """The job, waiting. `local`: a person at this machine gave the arguments, so they may name files.

    The same `request` of the same starter gives the job of the first time. Raises BadInput for an unknown kind and for
    arguments that the job would refuse, QueueFull while MOST_WAITING jobs wait.
    """
    checked = kinds.get(kind).checked(lake, arguments, local=local)
    if len(current.places(lake, states=["waiting"])) >= MOST_WAITING:
        raise QueueFull(f"{MOST_WAITING} jobs wait already; start this one later")
    job = record.submit(lake, kind, checked, by, request)
    supervisor.ensure(lake)
    return job
