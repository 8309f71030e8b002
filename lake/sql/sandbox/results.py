"""A query in the sandbox and its result: as a stream of rows while it runs, or whole in memory."""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, LakeloopError, QueryStopped
from lake.sql import columnar
from lake.sql.sandbox import frames
from lake.sql.sandbox.process import ProcessEnded
from lake.storage import schema, views

if TYPE_CHECKING:
    import pyarrow as pa

    from lake.sql.sandbox.pool import Pool
    from lake.sql.sandbox.process import QueryProcess


@dataclass(frozen=True)
class QueryResult:
    """The rows in memory; `truncated` if the limits cut some off."""

    table: pa.Table
    columns: list[dict[str, str]]
    truncated: bool
    seconds: float


@dataclass(frozen=True)
class ParseLimits:
    """Seconds of a processor and bytes of memory that a child may use for one text."""

    seconds: float
    memory_bytes: int


@dataclass
class SandboxQuery:
    """A query that waits or runs. `started` is None while it waits; all times are `time.monotonic()`.

    `memory_bytes`: what its child may have in memory. A text that is only parsed, and not run, has `parse_limits`, too.
    """

    id: str
    sql: str
    submitted: float
    deadline: float
    memory_bytes: int
    parse_limits: ParseLimits | None = None
    started: float | None = None
    stop_reason: str | None = None
    child: QueryProcess | None = field(default=None, repr=False)

    def seconds(self) -> float:
        """Since it was submitted."""
        return time.monotonic() - self.submitted

    def left(self) -> float:
        """Seconds until its deadline; negative after it."""
        return self.deadline - time.monotonic()

    @property
    def expired(self) -> str:
        """The reason to stop it at its deadline. What is only parsed takes long because of others."""
        return "timeout" if self.parse_limits is None else "busy"

    def stopped(self) -> QueryStopped:
        """The error that reports why it was stopped."""
        limit = f"{self.deadline - self.submitted:g} s"
        messages = {
            "cancelled": "the query was cancelled",
            "timeout": f"the query took longer than {limit} and was stopped; ask for less, or give it more time",
            "memory": f"the query needs more than the {self.memory_bytes >> 20:,} MiB a query may have; ask for less",
            "died": "the process of the query crashed; the query or DuckDB is at fault",
        }
        if (most := self.parse_limits) is not None:
            messages |= {
                "busy": f"it could not be parsed within {limit}, because the machine is busy; try again later",
                "timeout": f"parsing it takes more than {most.seconds:g} s of a processor; write it simpler",
                "memory": f"parsing it takes more than {most.memory_bytes >> 20} MiB of memory; write it simpler",
            }
        reason = self.stop_reason or "died"
        return QueryStopped(reason, messages[reason])


@dataclass(frozen=True)
class Preparation:
    """What a query needs before it runs, depending on its calls of the table functions `names`.

    `make` gets them, `function_name` and `arguments` of each as json_serialize_sql gives them, and a function to call
    before each long step, which raises QueryStopped if the query is to end. It returns more tables that the query may
    name, and the functions as macros: statements that create them, by name.
    """

    names: tuple[str, ...]
    make: Callable[[list[dict[str, Any]], Callable[[], None]], tuple[Mapping[str, pa.Table], Mapping[str, str]]]


class FileGone(Exception):
    """A file of the columnar copy was deleted before the child opened it."""


class ResultStream:
    """A query that has begun to return rows: iterate over it, then close it.

    In format arrow, the parts are an Arrow IPC stream; in json, rows as JSON arrays with commas between them; in
    parsed, one JSON value about the query's text, and the query does not run. `columns` are names and DuckDB's types.
    `truncated`, `rows` and `seconds` are known at the end.
    """

    def __init__(
        self, pool: Pool, query: SandboxQuery, child: QueryProcess, watch: Callable[[], None] | None = None
    ) -> None:
        """`watch` is called all the time while the query runs, and raises once it is beyond its limits."""
        self.query = query
        self._watch = watch or (lambda: pool.check_limits(query, child))
        self.columns: list[dict[str, str]] = []
        self.truncated = False
        self.rows = 0
        self.seconds = 0.0
        self._pool = pool
        self._child = child
        self._ended = self._complete = False
        letter, payload = self._receive()
        assert letter == frames.COLUMNS
        self.columns = json.loads(payload)["columns"]

    def __enter__(self) -> ResultStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Raises BadInput and QueryStopped if the query fails or is stopped."""
        try:
            yield from self.parts()
        except LakeloopError as error:
            self._pool.finish(self.query, reusable=isinstance(error, BadInput))
            raise
        if self._complete:  # and not closed by another thread
            self._pool.finish(self.query, reusable=True)

    def parts(self) -> Iterator[bytes]:
        """As iterating, but the query keeps its turn and its child."""
        while not self._ended:
            try:
                letter, payload = self._receive()
            except LakeloopError:
                self._ended = True
                raise
            if letter == frames.ROWS:
                yield payload
                continue
            assert letter == frames.END
            summary = json.loads(payload)
            self.rows, self.truncated = summary["rows"], summary["truncated"]
            self.seconds = self.query.seconds()
            self._ended = self._complete = True

    def close(self) -> None:
        """Stops the query if it has not ended. From any thread."""
        if not self._ended:
            self._ended = True
            self._pool.stop(self.query, "cancelled")
            self._pool.finish(self.query, reusable=False)

    def _receive(self) -> tuple[bytes, bytes]:
        try:
            letter, payload = self._child.receive(self._watch)
        except ProcessEnded as ended:
            raise self._pool.died(self.query, ended) from None
        if letter != frames.FAILURE:
            return letter, payload
        failure = json.loads(payload)
        message = failure["message"].replace(str(columnar.folder(self._pool.lake)), "")
        match failure["reason"]:
            case "memory":
                self.query.stop_reason = "memory"
                raise self.query.stopped()
            case "io" if not self.columns:
                raise FileGone
            case "unknown":
                message = _with_suggestion(message, [*schema.TABLES, *views.VIEWS])
        raise BadInput(message)


def _with_suggestion(message: str, names: Sequence[str]) -> str:
    """DuckDB's message about an unknown table, with the nearest of all names: DuckDB knows only the attached ones."""
    unknown = re.match(r"Catalog Error: Table with name (\S+) does not exist!(\nDid you mean [^\n]*)?", message)
    if unknown is None:
        return message
    if unknown[1].lower() in views.RENAMED:
        return views.hint(message)
    near = difflib.get_close_matches(unknown[1].lower(), names, 1)
    hint = f'\nDid you mean "{near[0]}"?' if near else "\nSHOW TABLES lists the tables."
    return f"Catalog Error: Table with name {unknown[1]} does not exist!{hint}{message[unknown.end() :]}"
