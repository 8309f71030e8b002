"""The child processes of a pool that wait for a query, and starting more of them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from lake.errors import QueryStopped
from lake.sql.sandbox.process import ProcessEnded, QueryProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lake.sql.sandbox.results import SandboxQuery


class Children:
    """Safe to share between threads: `turn` is the pool's lock, and is notified of every new child."""

    def __init__(self, turn: threading.Condition, memory_bytes: int, threads: int, niceness: int) -> None:
        self._turn, self._memory_bytes, self._threads, self._niceness = turn, memory_bytes, threads, niceness
        self.idle: list[QueryProcess] = []
        self._starting = 0
        self._failures = 0
        self._closed = False

    def start(self, most: int) -> None:
        """Starts a child in the background, unless `most` are idle or being started."""
        with self._turn:
            if self._closed or len(self.idle) + self._starting >= most:
                return
            self._starting += 1
        threading.Thread(target=self._start, name="start a query's process", daemon=True).start()

    def ready(self, timeout: float) -> bool:
        """Waits until an idle child is there; False if that takes longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._turn:
            while not self.idle and (left := deadline - time.monotonic()) > 0:
                self.start(1)
                self._turn.wait(min(left, 0.5))
            return bool(self.idle)

    def take(self, query: SandboxQuery, setup: Sequence[str]) -> QueryProcess:
        """An idle child, preferably one set up like this; waits for one. Raises QueryStopped.

        The child is the query's then. It waits until the query's deadline, or until the query is stopped.
        """
        wanted = {*setup}
        with self._turn:
            failures = self._failures
            while not query.stop_reason:
                self.idle = [child for child in self.idle if child.alive()]
                if self.idle:
                    best = min(self.idle, key=lambda child: (not wanted <= {*child.setup}, bool(child.setup)))
                    self.idle.remove(best)
                    query.child = best
                    return best
                self.start(1)
                if self._failures > failures:
                    raise QueryStopped("died", "no process for the query could be started; try again")
                self._turn.wait(max(0.0, min(query.left(), 0.5)))
                if query.left() <= 0:
                    query.stop_reason = query.stop_reason or query.expired
            raise query.stopped()

    def put(self, child: QueryProcess) -> None:
        """Takes back a child that is well."""
        with self._turn:
            self.idle.append(child)
            self._turn.notify_all()

    def close(self) -> None:
        """Ends every idle child. None starts any more."""
        with self._turn:
            self._closed = True
            idle, self.idle = self.idle, []
        for child in idle:
            child.close()

    def _start(self) -> None:
        child = None
        try:
            child = QueryProcess(self._memory_bytes, self._threads, self._niceness)
            child.ready()
        except (OSError, ProcessEnded):  # `_failures` tells the queries that wait for it
            if child is not None:
                child.close()
            child = None
        with self._turn:
            self._starting -= 1
            self._failures += child is None
            if child is not None and not self._closed:
                self.idle.append(child)
                child = None
            self._turn.notify_all()
        if child is not None:
            child.close()
