"""Parses filters of others in child processes of their own, with less time and memory than queries have.

They do not wait for queries. The first filter waits half a second for a process, unless `start` was called before.
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING

from lake.sql.per_lake import PerLake
from lake.sql.sandbox.pool import Pool
from lake.sql.sandbox.results import ParseLimits

if TYPE_CHECKING:
    import pyarrow as pa

    from lake.storage.store import Lake

# How long one may take with its wait.
WAIT_SECONDS = 15.0
# The longest list of numbers that a filter over HTTP may have takes half of both.
LIMITS = ParseLimits(0.6, 128 << 20)
MEMORY_BYTES = 512 << 20


class _Parsers:
    """The pool of one lake, made when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: Pool | None = None

    def pool(self, lake: Lake) -> Pool:
        with self._lock:
            if self._pool is None or self._pool.closed:
                # They end soon, and people wait for them: they run at the server's own priority, but leave it cores.
                slots = max(1, len(os.sched_getaffinity(0)) // 2)
                self._pool = Pool(lake, slots=slots, memory_bytes=MEMORY_BYTES, niceness=0)
                atexit.register(self._pool.close)
            return self._pool

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.close()
                atexit.unregister(self._pool.close)
                self._pool = None


_parsers = PerLake(_Parsers)


def lance_filter(lake: Lake, text: str, samples: pa.Schema, *, bounded: bool) -> str | None:
    """The filter over table samples, whose columns are `samples`, in Lance's dialect; None if it has none there.

    If `bounded`, it may use only what needs no more memory than its arguments; see `parsing.py`. Raises BadInput
    unless it is one expression, true or false of a row; QueryStopped: `timeout` or `memory` beyond the limits, `busy`
    if its turn does not come.
    """
    pool = _parsers(lake).pool(lake)
    parsed: str | None = pool.parse(text, {"bounded": bounded}, {"samples": samples}, LIMITS, WAIT_SECONDS)
    return parsed


def start(lake: Lake) -> None:
    """Starts a process in the background for the first filter."""
    _parsers(lake).pool(lake).start()


def close(lake: Lake) -> None:
    """Ends the processes."""
    _parsers(lake).close()
