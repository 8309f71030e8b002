"""A job as it is at one moment, and who starts jobs."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lake.jobs.live_state import Progress

State = Literal["waiting", "running", "done", "failed", "cancelled"]
STATES = ("waiting", "running", "done", "failed", "cancelled")
UNFINISHED = ("waiting", "running")


@dataclass(frozen=True)
class Starter:
    """Who starts a job: a user of the system or of the app, an access key, or neither on an open server."""

    user: str | None = None
    key_id: str | None = None

    def __str__(self) -> str:
        return self.user or (f"key {self.key_id}" if self.key_id else "somebody")


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
    def may_continue(self) -> bool:
        """It is failed for now: its worker died, and a supervisor soon queues it again or records the failure."""
        return self.died and self.detached

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the share that is done; None while there is no share, or too little of it."""
        share = self.progress.share if self.progress else None
        if not share or share < 0.01 or self.seconds is None:
            return None
        return self.seconds * (1 - share) / share

    @property
    def starter(self) -> Starter:
        """Who started it."""
        return Starter(self.user, self.key_id)

    @property
    def news(self) -> str:
        """In words: its progress while it runs, else why its state changed; empty where there is nothing to say."""
        if self.state != "running":
            return self.error or self.message or ""
        if self.cancelled_by is not None:
            return "ending"
        if self.progress is None:
            return f"on {self.host}"
        done = "" if self.progress.share is None else f"{self.progress.share:.0%}"
        left = "" if self.seconds_left is None else f"about {_span(self.seconds_left)} left"
        return ", ".join(part for part in (self.progress.stage, done, left) if part)

    def facts(self) -> dict[str, Any]:
        """As plain data for JSON."""
        progress = self.progress
        return {
            "id": self.id,
            "kind": self.kind,
            "arguments": self.arguments,
            "state": self.state,
            "may_continue": self.may_continue,
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


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"
