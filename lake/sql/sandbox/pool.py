"""Runs queries of anybody: at most one per core at a time, each in a child process that is killed beyond its limits.

A query waits for its turn, gets a child that is running already, and must end within `timeout` seconds, the wait
included. A child that took long, grew, or was stopped is not used again; another is started instead. The pool knows
nothing of HTTP or of users.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from lake.errors import BadInput, QueryStopped
from lake.sql import columnar
from lake.sql.connections import LOCK, tables_read
from lake.sql.sandbox import frames
from lake.sql.sandbox.children import Children
from lake.sql.sandbox.process import NICENESS, PATIENCE_SECONDS, ProcessEnded, QueryProcess, encode
from lake.sql.sandbox.results import FileGone, ParseLimits, Preparation, QueryResult, ResultStream, SandboxQuery
from lake.storage import schema, views

if TYPE_CHECKING:
    from lake.storage.store import Lake

T = TypeVar("T")

TIMEOUT_SECONDS = 30.0
MOST_ROWS = 100_000
MOST_BYTES = 256 << 20
# Memory of one child: all running children share a quarter of the machine's, and each has at least and at most this.
LEAST_MEMORY, MOST_MEMORY = 1 << 30, 4 << 30
QUEUE = 64
# Of the calls that a query must be prepared for, as JSON.
MOST_CALL_BYTES = 4 << 20
# How often a query starts again because another process renewed the columnar copy while it was being opened.
ATTEMPTS = 5
Parameters = Sequence[Any] | Mapping[str, Any] | None


class Pool:
    """Safe to share between threads. `slots` queries may run at once, `queue` queries may wait."""

    def __init__(
        self,
        lake: Lake,
        *,
        slots: int | None = None,
        queue: int = QUEUE,
        memory_bytes: int | None = None,
        niceness: int = NICENESS,
    ) -> None:
        self.lake = lake
        cores = len(os.sched_getaffinity(0))
        self.slots = slots or cores
        share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 // self.slots
        self.memory_bytes = memory_bytes or min(MOST_MEMORY, max(LEAST_MEMORY, share))
        self.queue = queue
        self._turn = threading.Condition(threading.RLock())
        self._children = Children(self._turn, self.memory_bytes, min(4, cores), niceness)
        self._waiting: deque[SandboxQuery] = deque()
        self._running: dict[str, SandboxQuery] = {}
        self.closed = False
        self.peak = 0  # bytes, the most any child had in memory

    def start(self) -> None:
        """Starts a child in the background, so that the next query need not wait for one."""
        with self._turn:
            self._children.start(self.slots + 1 - len(self._running))

    def ready(self, timeout: float = 30.0) -> bool:
        """Waits until an idle child is there for the next query; False if that takes longer than `timeout` seconds."""
        return self._children.ready(timeout)

    def run(
        self,
        sql: str,
        parameters: Parameters = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        max_rows: int | None = MOST_ROWS,
        max_bytes: int = MOST_BYTES,
        prepare: Preparation | None = None,
        id: str | None = None,
    ) -> QueryResult:
        """The whole result in memory. Raises as `open` and as iterating over a ResultStream does."""
        with self.open(
            sql, parameters, timeout=timeout, max_rows=max_rows, max_bytes=max_bytes, prepare=prepare, id=id
        ) as stream:
            data = b"".join(stream)
            with pa.ipc.open_stream(io.BytesIO(data)) as reader:
                table = reader.read_all()
            return QueryResult(table, stream.columns, stream.truncated, stream.seconds)

    def open(
        self,
        sql: str,
        parameters: Parameters = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        max_rows: int | None = MOST_ROWS,
        max_bytes: int = MOST_BYTES,
        prepare: Preparation | None = None,
        id: str | None = None,
        format: Literal["arrow", "json"] = "arrow",
    ) -> ResultStream:
        """Starts a query; returns when its columns are known. Close the stream. `format`: see ResultStream.

        `prepare` makes what the query needs beside the lake's tables; its time is the query's.
        Raises BadInput with DuckDB's own message, and QueryStopped: `busy` if too many wait or its turn did not come,
        `timeout`, `memory`, `cancelled` or `died`.
        """
        if not 0 < timeout <= 86_400:
            raise BadInput(f"timeout is {timeout:g} seconds; it must be more than 0 and at most 86,400")
        if max_rows is not None and max_rows < 0:
            raise BadInput(f"max_rows is {max_rows}; it must be 0 or more")
        values = [*parameters] if isinstance(parameters, list | tuple) else parameters
        request = {
            "sql": sql,
            "parameters": values if values else None,
            "max_rows": max_rows,
            "max_bytes": max_bytes,
            "format": format,
            "names": [*schema.TABLES, *views.VIEWS],
        }
        try:
            encode(request)
        except (TypeError, ValueError) as error:
            raise BadInput(f"a parameter cannot be written as JSON: {error}") from None

        def begin(query: SandboxQuery) -> ResultStream:
            tables, macros = self._prepared(query, prepare) if prepare is not None else ({}, {})
            return self._begin(query, request | {"tables": [*tables], "macros": macros}, tables)

        return self._in_turn(self._query(sql, timeout, id), begin)

    def parse(
        self, text: str, wanted: dict[str, Any], tables: Mapping[str, pa.Schema], limits: ParseLimits, timeout: float
    ) -> Any:
        """What is `wanted` of a text (see `QueryRunner` in `child.py`), parsed within the limits. It does not run.

        `tables` are columns that it may name. Raises as `open`, and QueryStopped `busy` if it does not end in time.
        """
        query = self._query(text, timeout, None)
        query.parse_limits = limits
        parsed = self._in_turn(query, lambda query: self._parsed(query, wanted, tables))
        self.finish(query, reusable=True)
        return parsed

    def cancel(self, id: str) -> bool:
        """Stops the query, waiting or running; False if there is no query with this id."""
        with self._turn:
            query = self._running.get(id) or next((query for query in self._waiting if query.id == id), None)
            if query is not None:
                self.stop(query, "cancelled")
            return query is not None

    def queries(self) -> list[SandboxQuery]:
        """The running queries, then the waiting ones in order."""
        with self._turn:
            return [*self._running.values(), *self._waiting]

    def processes(self) -> list[int]:
        """The process ids of its children, at work and idle."""
        with self._turn:
            busy = [query.child for query in self._running.values() if query.child is not None]
            return [child.pid for child in [*busy, *self._children.idle]]

    def close(self) -> None:
        """Stops every query and ends every child."""
        with self._turn:
            self.closed = True
            for query in [*self._running.values(), *self._waiting]:
                self.stop(query, "cancelled")
        self._children.close()

    # Turns -------------------------------------------------------------------------------------------------

    def _query(self, sql: str, timeout: float, id: str | None) -> SandboxQuery:
        now = time.monotonic()
        return SandboxQuery(id or uuid.uuid4().hex, sql, now, now + timeout, self.memory_bytes)

    def _in_turn(self, query: SandboxQuery, begin: Callable[[SandboxQuery], T]) -> T:
        """What `begin` returns in the query's turn. The turn goes on after that; it ends if `begin` raises."""
        self._take_turn(query)
        try:
            return begin(query)
        except BaseException as error:
            self.finish(query, reusable=isinstance(error, BadInput))  # the child refused the query and is well
            raise

    def _take_turn(self, query: SandboxQuery) -> None:
        with self._turn:
            if self.closed:
                raise QueryStopped("cancelled", "the server is stopping")
            if query.id in self._running or any(other.id == query.id for other in self._waiting):
                raise BadInput(f"a query with the id {query.id[:80]!r} is running")
            if len(self._running) >= self.slots and len(self._waiting) >= self.queue:
                message = f"{len(self._running)} queries run and {len(self._waiting)} wait: try again later"
                raise QueryStopped("busy", message)
            self._waiting.append(query)
            try:
                while query.stop_reason or len(self._running) >= self.slots or self._waiting[0] is not query:
                    if query.stop_reason:
                        raise query.stopped()
                    if not self._turn.wait(max(0.0, query.left())) and query.left() <= 0:
                        message = (
                            f"the query waited {query.seconds():.1f} s and its turn did not come: "
                            f"{len(self._running)} queries run; try again later"
                        )
                        raise QueryStopped("busy", message)
                self._running[query.id] = query
            finally:
                self._waiting.remove(query)
                self._turn.notify_all()
        query.started = time.monotonic()

    def finish(self, query: SandboxQuery, reusable: bool) -> None:
        """Frees the place of a query that has ended. Its child is kept for the next one if it is `reusable`."""
        with self._turn:
            if self._running.get(query.id) is not query:
                return
            child, query.child = query.child, None
            if child is not None:
                child.resident()
                self.peak = max(self.peak, child.peak)
                # Idle priority cannot be taken back, and memory that grew is not returned.
                fit = child.alive() and not child.demoted and child.resident() < self.memory_bytes // 2
                if reusable and fit and not self.closed and query.stop_reason is None:
                    self._children.put(child)
                    child = None
                else:
                    child.kill()
            del self._running[query.id]
            self._turn.notify_all()
        if child is not None:
            threading.Thread(target=child.close, daemon=True).start()
            self.start()

    def stop(self, query: SandboxQuery, reason: str) -> None:
        """Ends a query, waiting or running; the first reason counts."""
        with self._turn:
            query.stop_reason = query.stop_reason or reason
            if query.child is not None:
                query.child.kill()
            self._turn.notify_all()

    def died(self, query: SandboxQuery, ended: ProcessEnded) -> QueryStopped:
        """The error for a query whose child has ended."""
        if query.stop_reason is None:
            # -9 that we did not send comes from the kernel, out of memory; -24 is the limit of processor time.
            query.stop_reason = {-9: "memory", -24: "timeout"}.get(ended.code or 0, "died")
        return query.stopped()

    def check_limits(self, query: SandboxQuery, child: QueryProcess) -> None:
        """Called all the time while a query runs. Raises QueryStopped once it is beyond its limits or cancelled."""
        now = time.monotonic()
        if now >= query.deadline:
            self.stop(query, query.expired)
        parses = query.parse_limits is not None  # these have little time, and end in time
        if not parses and not child.demoted and now - (query.started or now) > PATIENCE_SECONDS:
            child.demote()
            self.start()  # another child for the next query, which a start would slow down if it is quick
        if child.resident() > self.memory_bytes:
            self.stop(query, "memory")
        if query.stop_reason:
            raise query.stopped()

    def _check_parsing(self, query: SandboxQuery, child: QueryProcess, before: tuple[float, int]) -> None:
        """As `check_limits`, with the query's `parse_limits` of what its child uses more than `before`."""
        if query.parse_limits is not None:
            if child.processor_seconds() - before[0] > query.parse_limits.seconds:
                self.stop(query, "timeout")
            if child.resident() - before[1] > query.parse_limits.memory_bytes:
                self.stop(query, "memory")
        self.check_limits(query, child)

    # Children ----------------------------------------------------------------------------------------------

    def _prepared(self, query: SandboxQuery, prepare: Preparation) -> tuple[Mapping[str, pa.Table], Mapping[str, str]]:
        def go_on() -> None:
            if query.left() <= 0:
                self.stop(query, "timeout")
            if query.stop_reason:
                raise query.stopped()

        calls = self._parsed(query, {"calls": [*prepare.names]}, {})
        with self._turn:
            child, query.child = query.child, None
            assert child is not None
            self._children.put(child)
        return prepare.make(calls, go_on)

    def _parsed(self, query: SandboxQuery, wanted: dict[str, Any], tables: Mapping[str, pa.Schema]) -> Any:
        """What is `wanted` of the query's text: see `QueryRunner` in `child.py`. The child stays the query's."""
        child = self._children.take(query, [])
        before = child.processor_seconds(), child.resident()
        request = {
            "sql": query.sql,
            "parameters": None,
            "format": "parsed",
            "wanted": wanted | {"lock": [*LOCK]},
            "timeout": max(0.05, query.left()),
            "max_bytes": MOST_CALL_BYTES,
            "tables": [*tables],
        }
        try:
            child.send(frames.QUERY, encode(request))
            for columns in tables.values():
                child.send(frames.TABLE, _stream(columns.empty_table()))
            stream = ResultStream(self, query, child, lambda: self._check_parsing(query, child, before))
            return json.loads(b"".join(stream.parts()))
        except ProcessEnded as ended:
            raise self.died(query, ended) from None

    def _begin(self, query: SandboxQuery, request: dict[str, Any], tables: Mapping[str, pa.Table]) -> ResultStream:
        streams = [*map(_stream, tables.values())]
        names = [name for name in _tables(query.sql) if name not in request["tables"]]
        for _ in range(ATTEMPTS):
            pinned = columnar.pin(self.lake, names)
            setup = _setup(pinned)
            request["timeout"] = max(0.05, query.left())
            child = self._children.take(query, setup)
            # The child's own setup if it has these tables at these versions; else one that serves later queries, too.
            request["setup"] = child.setup if {*setup} <= {*child.setup} else _setup(columnar.widen(self.lake, pinned))
            try:
                child.send(frames.QUERY, encode(request))
                for stream in streams:
                    child.send(frames.TABLE, stream)
                child.setup = request["setup"]
                return ResultStream(self, query, child)
            except ProcessEnded as ended:
                raise self.died(query, ended) from None
            except FileGone:  # another process renewed the copy and deleted the files we had pinned
                columnar.pinned_tables(self.lake).clear()
            with self._turn:
                query.child = None
                self._children.put(child)
        raise QueryStopped("died", "the lake changed faster than it could be read; try again")


def _setup(pinned: columnar.PinnedTables) -> list[str]:
    return [*pinned.statements(), *views.statements(pinned.files), *LOCK]


def _tables(sql: str) -> list[str]:
    """The tables a query may read; all for SHOW TABLES."""
    words = views.reads(sql)
    if re.search(r"\bshow\b", sql, re.IGNORECASE):
        return [*schema.TABLES]
    return tables_read(" ".join(words)) if words else []


def _stream(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def shared(lake: Lake) -> Pool:
    """The one pool of this lake in this process, so that all its users together stay within the limits."""
    with _sharing:
        pool = _shared.get(lake)
        if pool is None or pool.closed:
            pool = _shared[lake] = Pool(lake)
            atexit.register(pool.close)
        return pool


_sharing = threading.Lock()
_shared: weakref.WeakKeyDictionary[Lake, Pool] = weakref.WeakKeyDictionary()
