"""Decides which requests the server accepts now: by rate, size of the spool, free disk space, and long work at once.

It decides before a body is read, so that refusing is cheap however many requests come. Only writes and long work are
refused; other reads go on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_app.api.problems import Problem

if TYPE_CHECKING:
    from lake.spool.spool import Depth

# A burst of this many seconds' worth of events passes at once.
BURST_SECONDS = 0.25


@dataclass(frozen=True)
class IngestLimits:
    """`rate`: events a second (None: any). `spool_bytes`, `spool_seconds`: the size and age of waiting events at most.
    `free_bytes`: free space at least. `in_flight_bytes`: bodies of events in memory at most; as much of others."""

    rate: float | None = None
    spool_bytes: int = 20 << 30
    spool_seconds: float = 6 * 3600
    free_bytes: int = 1 << 30
    in_flight_bytes: int = 256 << 20


class BodyBudget:
    """Bytes of request bodies in memory, counted as they arrive: a declared length that never comes holds nothing."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def too_much(self, size: int, own: int = 0) -> Problem | None:
        """Why `size` more bytes of a body cannot be in memory now, or None. `own` bytes of that body already are."""
        if self.held > own and self.held + size > self.most:
            return Problem(503, "busy", "too many large requests at once", 1)
        return None


class Slots:
    """At most `most` at once of what takes much time or memory. Others are refused, not queued."""

    def __init__(self, most: int, what: str) -> None:
        self._free = threading.BoundedSemaphore(most)
        self._refusal = f"{most} {what} are in work, which is the limit; try again"

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Takes a slot for the block. Raises Problem (429) if none is free."""
        if not self._free.acquire(blocking=False):
            raise Problem(429, "busy", self._refusal, 1)
        try:
            yield
        finally:
            self._free.release()


class Admission:
    """For one event loop. `look` records the state of the spool from time to time; `problem` decides by the last."""

    def __init__(self, limits: IngestLimits) -> None:
        self.limits = limits
        self.event_bodies = BodyBudget(limits.in_flight_bytes)
        self.query_bodies = BodyBudget(limits.in_flight_bytes)  # of its own: questions never keep events out
        self._spool_problem: Problem | None = None
        self._tokens = max(1.0, (limits.rate or 0) * BURST_SECONDS)
        self._filled = time.monotonic()

    def look(self, depth: Depth, free_bytes: int) -> None:
        """Records how full the spool and its disk are."""
        limits = self.limits
        self._spool_problem = None
        if free_bytes < limits.free_bytes:
            sizes = f"{free_bytes / 2**20:,.0f} MiB left; {limits.free_bytes / 2**20:,.0f} MiB must stay free"
            self._spool_problem = Problem(507, "disk_full", f"the disk is nearly full ({sizes})", 30)
        elif depth.bytes > limits.spool_bytes:
            sizes = f"{depth.bytes / 2**30:,.1f} GiB wait; the limit is {limits.spool_bytes / 2**30:,.1f} GiB"
            self._spool_problem = Problem(503, "spool_full", f"the lake is behind ({sizes})", 10)
        elif depth.age() > limits.spool_seconds:
            ages = f"the oldest event waits for {depth.age():,.0f} s; the limit is {limits.spool_seconds:,.0f} s"
            self._spool_problem = Problem(503, "spool_old", f"the lake is behind ({ages})", 10)

    def problem(self, size: int) -> Problem | None:
        """Why a request with a body of `size` bytes is refused now, apart from its rate; None if it is accepted."""
        return self._spool_problem or self.event_bodies.too_much(size)

    def over_rate(self, events: int = 1) -> Problem | None:
        """Takes `events` from the rate's allowance and returns None, or returns why it cannot."""
        rate = self.limits.rate
        if rate is None:
            return None
        now = time.monotonic()
        most = max(1.0, rate * BURST_SECONDS)
        self._tokens = min(most, self._tokens + (now - self._filled) * rate)
        self._filled = now
        # A batch larger than a burst passes when the allowance is full; the requests after it wait the longer.
        if self._tokens < min(events, most):
            wait = (min(events, most) - self._tokens) / rate
            return Problem(429, "rate", f"more than {rate:g} events a second", max(1, math.ceil(wait)))
        self._tokens -= events
        return None
