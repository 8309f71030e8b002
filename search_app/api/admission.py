"""What the server takes in, and when it says not now: by rate, by what waits in the spool, by what the disk has left.

Decided before a body is read, so that saying no costs next to nothing however many ask. Only writes are refused;
reads stay up.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_app.api.problems import Problem

if TYPE_CHECKING:
    from lake.spool.spool import Depth

# A burst of this much of a second's rate is let through at once.
BURST_SECONDS = 0.25


@dataclass(frozen=True)
class IngestLimits:
    """`rate` is events a second (None: any); `spool_bytes` and `spool_seconds` what may wait, and for how long;
    `free_bytes` what the disk must have left; `in_flight_bytes` the bodies that may be in memory at once."""

    rate: float | None = None
    spool_bytes: int = 20 << 30
    spool_seconds: float = 6 * 3600
    free_bytes: int = 1 << 30
    in_flight_bytes: int = 256 << 20


class Admission:
    """For one event loop. `look` is told the state of the spool from time to time; `admit` decides by the last."""

    def __init__(self, limits: IngestLimits) -> None:
        self.limits = limits
        self.in_flight = 0
        self._refusal: Problem | None = None
        self._tokens = max(1.0, (limits.rate or 0) * BURST_SECONDS)
        self._filled = time.monotonic()

    def look(self, depth: Depth, free_bytes: int) -> None:
        """Takes note of how full the spool and its disk are."""
        limits = self.limits
        self._refusal = None
        if free_bytes < limits.free_bytes:
            left = f"{free_bytes / 2**20:,.0f} MiB left, {limits.free_bytes / 2**20:,.0f} are kept free"
            self._refusal = Problem(507, "disk_full", f"the disk is nearly full ({left})", 30)
        elif depth.bytes > limits.spool_bytes:
            held = f"{depth.bytes / 2**30:,.1f} GiB wait, {limits.spool_bytes / 2**30:,.1f} may"
            self._refusal = Problem(503, "spool_full", f"the lake is behind ({held})", 10)
        elif depth.age() > limits.spool_seconds:
            waited = f"the oldest event waits for {depth.age():,.0f} s, {limits.spool_seconds:,.0f} are allowed"
            self._refusal = Problem(503, "spool_old", f"the lake is behind ({waited})", 10)

    def problem(self, size: int) -> Problem | None:
        """Why a request with a body of `size` bytes is not taken in now; None when it is, whatever its rate."""
        return self._refusal or self.too_much(size)

    def too_much(self, size: int, own: int = 0) -> Problem | None:
        """Why no more `size` bytes of a body can be in memory now; None when they can. `own` of it are there."""
        if self.in_flight > own and self.in_flight + size > self.limits.in_flight_bytes:
            return Problem(503, "busy", "too many large requests at once", 1)
        return None

    def over_rate(self, events: int = 1) -> Problem | None:
        """Takes `events` from the rate's allowance, or says why not."""
        rate = self.limits.rate
        if rate is None:
            return None
        moment = time.monotonic()
        most = max(1.0, rate * BURST_SECONDS)
        self._tokens = min(most, self._tokens + (moment - self._filled) * rate)
        self._filled = moment
        # A batch larger than a burst goes when the allowance is whole, and is paid back by those after it.
        if self._tokens < min(events, most):
            wait = (min(events, most) - self._tokens) / rate
            return Problem(429, "rate", f"more than {rate:g} events a second", max(1, math.ceil(wait)))
        self._tokens -= events
        return None
