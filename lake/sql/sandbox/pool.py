"""Queries of anybody over a lake: at most one running per core, each in a child that is killed when it goes too far.

A query waits for its turn, gets a child that was started before, and must have ended `timeout` seconds after it was
asked, the waiting included. A child that took long, grew, or was stopped is not used again; another is started in its
place. It knows neither HTTP nor who asks.
"""

from __future__ import annotations

import atexit
import difflib
import io
import json
import os
import re
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from lake.errors import BadInput, LakeloopError, QueryStopped
from lake.sql import columnar
from lake.sql.connections import LOCK, named
from lake.sql.sandbox.process import PATIENCE_SECONDS, Ended, Process, describe
from lake.storage import schema, views

if TYPE_CHECKING:
    from lake.storage.store import Lake

TIMEOUT_SECONDS = 30.0
MOST_ROWS = 100_000
MOST_BYTES = 256 << 20
# What a query's process may have: a quarter of the machine's memory between all that run, within these.
LEAST_MEMORY, MOST_MEMORY = 1 << 30, 4 << 30
QUEUE = 64
# To read a copy that is being brought up to date by others.
ATTEMPTS = 5
Parameters = Sequence[Any] | Mapping[str, Any] | None


@dataclass(frozen=True)
class Answer:
    """The rows in memory; `truncated` when there were more than the caps let through."""

    table: pa.Table
    columns: list[dict[str, str]]
    truncated: bool
    seconds: float


@dataclass
class Query:
    """One query on its way. `started` is None while it waits for its turn."""

    id: str
    sql: str
    asked: float
    deadline: float
    started: float | None = None
    stopped: str | None = None
    child: Process | None = field(default=None, repr=False)

    def seconds(self) -> float:
        """How long ago it was asked."""
        return time.monotonic() - self.asked

    def left(self) -> float:
        return self.deadline - time.monotonic()


class Pool:
    """Safe to share between threads. `slots` children may run at once, `queue` queries may wait."""

    def __init__(
        self,
        lake: Lake,
        *,
        slots: int | None = None,
        queue: int = QUEUE,
        memory_bytes: int | None = None,
    ) -> None:
        self.lake = lake
        cores = len(os.sched_getaffinity(0))
        self.slots = slots or cores
        share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 // self.slots
        self.memory_bytes = memory_bytes or min(MOST_MEMORY, max(LEAST_MEMORY, share))
        self.queue = queue
        self._threads = min(4, cores)
        self._turn = threading.Condition(threading.RLock())
        self._waiting: deque[Query] = deque()
        self._running: dict[str, Query] = {}
        self._idle: list[Process] = []
        self._starting = 0
        self._failures = 0
        self.closed = False
        self.peak = 0  # bytes, the most any child had in memory

    def start(self) -> None:
        """Starts a child for later, in the background; the first query does not wait for one then."""
        with self._turn:
            if self.closed or len(self._idle) + self._starting + len(self._running) > self.slots:
                return
            self._starting += 1
        threading.Thread(target=self._start, name="start a query's process", daemon=True).start()

    def ready(self, timeout: float = 30.0) -> bool:
        """Waits until a child is there that the next query can have; False when that takes longer."""
        deadline = time.monotonic() + timeout
        with self._turn:
            while not self._idle and (left := deadline - time.monotonic()) > 0:
                self.start()
                self._turn.wait(min(left, 0.5))
            return bool(self._idle)

    def run(
        self,
        sql: str,
        parameters: Parameters = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        max_rows: int | None = MOST_ROWS,
        max_bytes: int = MOST_BYTES,
        tables: Mapping[str, pa.Table] | None = None,
        macros: Mapping[str, str] | None = None,
        id: str | None = None,
    ) -> Answer:
        """The answer in memory. Raises as `open`, and while it runs."""
        with self.open(
            sql,
            parameters,
            timeout=timeout,
            max_rows=max_rows,
            max_bytes=max_bytes,
            tables=tables,
            macros=macros,
            id=id,
        ) as running:
            data = b"".join(running)
            with pa.ipc.open_stream(io.BytesIO(data)) as reader:
                table = reader.read_all()
            return Answer(table, running.columns, running.truncated, running.seconds)

    def open(
        self,
        sql: str,
        parameters: Parameters = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        max_rows: int | None = MOST_ROWS,
        max_bytes: int = MOST_BYTES,
        tables: Mapping[str, pa.Table] | None = None,
        macros: Mapping[str, str] | None = None,
        id: str | None = None,
        format: Literal["arrow", "json", "tree"] = "arrow",
    ) -> Running:
        """The query, its columns known and its rows to come; to be closed. `format`: see `Running`.

        `tables` are more tables the query may name; `macros` table functions it may call, each by the statement that
        makes it.
        Raises BadInput with DuckDB's own words, and QueryStopped: `busy` when too many wait or its turn did not come,
        `timeout`, `memory`, `cancelled`.
        """
        if not 0 < timeout <= 86_400:
            raise BadInput(f"timeout is {timeout:g}, not more than 0 and at most 86,400 seconds")
        if max_rows is not None and max_rows < 0:
            raise BadInput(f"max_rows is {max_rows}, not 0 or more")
        moment = time.monotonic()
        query = Query(id or uuid.uuid4().hex, sql, moment, moment + timeout)
        given = [*parameters] if isinstance(parameters, list | tuple) else parameters
        question = {
            "sql": sql,
            "parameters": given if given else None,
            "max_rows": max_rows,
            "max_bytes": max_bytes,
            "format": format,
            "tables": [*(tables or {})],
            "macros": {**(macros or {})},
        }
        try:
            describe(question)
        except (TypeError, ValueError) as error:
            raise BadInput(f"a parameter is nothing JSON can say: {error}") from None
        streams = [_stream(table) for table in (tables or {}).values()]
        self._take_turn(query)
        try:
            return self._ask(query, question, streams)
        except BaseException as error:
            self._leave(query, reusable=isinstance(error, BadInput))  # it said no, and is well
            raise

    def tree(self, sql: str, timeout: float = TIMEOUT_SECONDS) -> Any:
        """What DuckDB's parser makes of a text, as json_serialize_sql has it; parsed in a child. Raises as `open`."""
        with self.open(sql, timeout=timeout, max_rows=None, format="tree") as running:
            return json.loads(b"".join(running))

    def cancel(self, id: str) -> bool:
        """Stops the query, waiting or running; False when there is none of that id."""
        with self._turn:
            query = self._running.get(id) or next((one for one in self._waiting if one.id == id), None)
            if query is None:
                return False
            self._stop(query, "cancelled")
            return True

    def queries(self) -> list[Query]:
        """Those that run, then those that wait, in order."""
        with self._turn:
            return [*self._running.values(), *self._waiting]

    def processes(self) -> list[int]:
        """The process ids of its children, at work and idle."""
        with self._turn:
            busy = [one.child for one in self._running.values() if one.child is not None]
            return [one.pid for one in [*busy, *self._idle]]

    def close(self) -> None:
        """Stops what runs and ends every child."""
        with self._turn:
            self.closed = True
            for query in [*self._running.values(), *self._waiting]:
                self._stop(query, "cancelled")
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    # Turns -------------------------------------------------------------------------------------------------

    def _take_turn(self, query: Query) -> None:
        with self._turn:
            if self.closed:
                raise QueryStopped("cancelled", "the server is stopping")
            if query.id in self._running or any(one.id == query.id for one in self._waiting):
                raise BadInput(f"a query with the id {query.id[:80]!r} is running")
            if len(self._running) >= self.slots and len(self._waiting) >= self.queue:
                said = f"{len(self._running)} queries run and {len(self._waiting)} wait: try again later"
                raise QueryStopped("busy", said)
            self._waiting.append(query)
            try:
                while query.stopped or len(self._running) >= self.slots or self._waiting[0] is not query:
                    if query.stopped:
                        raise self._why(query)
                    if not self._turn.wait(max(0.0, query.left())) and query.left() <= 0:
                        said = f"in {query.seconds():.1f} s its turn did not come: {len(self._running)} queries run"
                        raise QueryStopped("busy", said)
                self._running[query.id] = query
            finally:
                self._waiting.remove(query)
                self._turn.notify_all()
        query.started = time.monotonic()

    def _leave(self, query: Query, reusable: bool) -> None:
        """The query has ended, well or not."""
        with self._turn:
            if self._running.get(query.id) is not query:
                return
            child, query.child = query.child, None
            if child is not None:
                child.resident()
                self.peak = max(self.peak, child.peak)
                # One with idle priority keeps it; memory that grew is not given back.
                fit = child.alive() and not child.demoted and child.resident() < self.memory_bytes // 2
                if reusable and fit and not self.closed and query.stopped is None:
                    self._idle.append(child)
                    child = None
                else:
                    child.kill()
            del self._running[query.id]
            self._turn.notify_all()
        if child is not None:
            threading.Thread(target=child.close, daemon=True).start()
            self.start()

    def _stop(self, query: Query, reason: str) -> None:
        query.stopped = query.stopped or reason
        if query.child is not None:
            query.child.kill()
        self._turn.notify_all()

    def _why(self, query: Query) -> QueryStopped:
        limit = query.deadline - query.asked
        sentences = {
            "cancelled": "the query was cancelled",
            "timeout": f"the query took longer than {limit:g} s and was stopped; ask for less, or give it more time",
            "memory": f"the query needs more than the {self.memory_bytes >> 20:,} MiB a query may have; ask for less",
            "died": "the process of the query crashed; the query or DuckDB is at fault",
        }
        reason = query.stopped or "died"
        return QueryStopped(reason, sentences[reason])

    # Children ----------------------------------------------------------------------------------------------

    def _ask(self, query: Query, question: dict[str, Any], streams: list[bytes]) -> Running:
        names = [name for name in _tables(query.sql) if name not in question["tables"]]
        names = [] if question["format"] == "tree" else names
        question["names"] = [*schema.TABLES, *views.VIEWS]
        for _ in range(ATTEMPTS):
            pinned = columnar.pin(self.lake, names)
            setup = _setup(pinned)
            question["timeout"] = max(0.05, query.left())
            child = self._child(query, setup)
            # What it has, when that is these tables at these versions and more; else a connection for the next, too.
            question["setup"] = child.setup if {*setup} <= {*child.setup} else _setup(columnar.widen(self.lake, pinned))
            try:
                child.send(b"Q", describe(question))
                for stream in streams:
                    child.send(b"T", stream)
                child.setup = question["setup"]
                return Running(self, query, child)
            except Ended as ended:
                raise self._epitaph(query, ended) from None
            except _Gone:  # another process brought the copy up to date, and deleted what we were told of
                columnar.pinned_tables(self.lake).clear()
            with self._turn:
                query.child = None
                self._idle.append(child)
        raise QueryStopped("died", "the lake changed faster than it could be read; try again")

    def _child(self, query: Query, setup: list[str]) -> Process:
        """An idle child, best one that has these files open; waits for one that starts, as long as the query may."""
        wanted = {*setup}
        with self._turn:
            failures = self._failures
            while True:
                self._idle = [one for one in self._idle if one.alive()]
                ready = sorted(self._idle, key=lambda one: (not wanted <= {*one.setup}, bool(one.setup)))
                if ready:
                    break
                self.start()
                if self._failures > failures:
                    raise QueryStopped("died", "no process for the query could be started; try again")
                self._turn.wait(max(0.0, min(query.left(), 0.5)))
                if query.left() <= 0:
                    query.stopped = query.stopped or "timeout"
                if query.stopped:
                    raise self._why(query)
            found = ready[0]
            self._idle.remove(found)
            query.child = found
            if query.stopped:
                raise self._why(query)
        return found

    def _start(self) -> None:
        child = None
        try:
            child = Process(self.memory_bytes, self._threads)
            child.ready()
        except (OSError, Ended):  # whoever waits for it is told
            if child is not None:
                child.close()
            child = None
        with self._turn:
            self._starting -= 1
            self._failures += child is None
            if child is not None and not self.closed:
                self._idle.append(child)
                child = None
            self._turn.notify_all()
        if child is not None:
            child.close()

    def _look(self, query: Query, child: Process) -> None:
        """While a query runs: is it still allowed to?"""
        moment = time.monotonic()
        if moment >= query.deadline:
            with self._turn:
                self._stop(query, "timeout")
        if not child.demoted and moment - (query.started or moment) > PATIENCE_SECONDS:
            child.demote()
            self.start()  # the next finds another; a quick one would only be slowed by its start
        if child.resident() > self.memory_bytes:
            with self._turn:
                self._stop(query, "memory")
        if query.stopped:
            raise self._why(query)

    def _epitaph(self, query: Query, ended: Ended) -> QueryStopped:
        if query.stopped is None:
            # -9 without us is the kernel's, out of memory; -24 is the limit of processor time.
            query.stopped = {-9: "memory", -24: "timeout"}.get(ended.code or 0, "died")
        return self._why(query)


class Running:
    """A query that has begun to answer; iterate it for its rows, then close it.

    With the format arrow, the parts are an Arrow IPC stream; with json, they are rows as JSON arrays, with commas
    between them; with tree, the query is parsed and not run. `columns` are names and DuckDB's types. `truncated`,
    `rows` and `seconds` are known at the end.
    """

    def __init__(self, pool: Pool, query: Query, child: Process) -> None:
        self.query = query
        self.columns: list[dict[str, str]] = []
        self.truncated = False
        self.rows = 0
        self.seconds = 0.0
        self._pool = pool
        self._child = child
        self._ended = False
        kind, said = self._receive()
        assert kind == b"H"
        self.columns = json.loads(said)["columns"]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Raises BadInput and QueryStopped for what happens while rows are made."""
        while not self._ended:
            try:
                kind, said = self._receive()
            except LakeloopError as error:
                self._ended = True
                self._pool._leave(self.query, reusable=isinstance(error, BadInput))
                raise
            if kind == b"D":
                yield said
                continue
            assert kind == b"E"
            facts = json.loads(said)
            self.rows, self.truncated = facts["rows"], facts["truncated"]
            self.seconds = self.query.seconds()
            self._ended = True
            self._pool._leave(self.query, reusable=True)

    def close(self) -> None:
        """Ends the query if it has not ended. From any thread."""
        if not self._ended:
            self._ended = True
            with self._pool._turn:
                self._pool._stop(self.query, "cancelled")
            self._pool._leave(self.query, reusable=False)

    def _receive(self) -> tuple[bytes, bytes]:
        try:
            kind, said = self._child.receive(lambda: self._pool._look(self.query, self._child))
        except Ended as ended:
            raise self._pool._epitaph(self.query, ended) from None
        if kind != b"X":
            return kind, said
        problem = json.loads(said)
        message = problem["message"].replace(str(columnar.folder(self._pool.lake)), "")
        match problem["reason"]:
            case "memory":
                self.query.stopped = "memory"
                raise self._pool._why(self.query)
            case "io" if not self.columns:
                raise _Gone
            case "unknown":
                message = _meant(message, [*schema.TABLES, *views.VIEWS])
        raise BadInput(message)


class _Gone(Exception):
    """A file of the copy was deleted before it was opened."""


def _setup(pinned: columnar.Pinned) -> list[str]:
    return [*pinned.statements(), *views.statements(pinned.files), *LOCK]


def _tables(sql: str) -> list[str]:
    """The tables a query may read; all for SHOW TABLES."""
    words = views.reads(sql)
    if re.search(r"\bshow\b", sql, re.IGNORECASE):
        return [*schema.TABLES]
    return named(" ".join(words)) if words else []


def _meant(message: str, known: Sequence[str]) -> str:
    """DuckDB's words about a table that is not there, with the nearest of those that are: it has seen few of them."""
    wrong = re.match(r"Catalog Error: Table with name (\S+) does not exist!(\nDid you mean [^\n]*)?", message)
    if wrong is None:
        return message
    near = difflib.get_close_matches(wrong[1].lower(), known, 1)
    hint = f'\nDid you mean "{near[0]}"?' if near else "\nSHOW TABLES names those there are."
    return f"Catalog Error: Table with name {wrong[1]} does not exist!{hint}{message[wrong.end() :]}"


def _stream(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def shared(lake: Lake) -> Pool:
    """The pool of all who ask this lake in this process, so that together they take no more than one may."""
    with _sharing:
        pool = _shared.get(lake)
        if pool is None or pool.closed:
            pool = _shared[lake] = Pool(lake)
            atexit.register(pool.close)
        return pool


_sharing = threading.Lock()
_shared: weakref.WeakKeyDictionary[Lake, Pool] = weakref.WeakKeyDictionary()
