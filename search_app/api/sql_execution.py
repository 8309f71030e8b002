"""Runs SQL for the API: the query pool with threads of its own, and the response to one query.

The rows arrive as JSON or Arrow bytes from the query's own process. Waiting for them uses separate threads, so that a
slow query does not delay other requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from embeddings.search import near
from lake import nesting
from lake.errors import LakeloopError
from lake.sql import columnar, saved_queries
from lake.sql.sandbox import filters
from lake.sql.sandbox import pool as sandbox
from search_app.api.problems import problem_of
from search_app.backend import model_cache
from search_app.security.audit_log import AuditLog

if TYPE_CHECKING:
    from lake.sql.sandbox.results import ResultStream
    from search_app.api.service import Service

T = TypeVar("T")

# A result up to this size is collected before the status is sent.
WHOLE_BYTES = 256 << 10
MOST_SECONDS = 300.0
MOST_ROWS = 1_000_000
NICENESS = 10
# The process for filters starts when the server is up, unless a filter comes before.
FILTERS_AFTER_SECONDS = 5.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("this is not a number")
    return value


Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0, le=MOST_SECONDS, allow_inf_nan=False)]
Rows = Annotated[int, BeforeValidator(_number), Field(ge=0, le=MOST_ROWS)]
Parameters = dict[str, Any] | list[Any]


class SqlRequest(BaseModel):
    """One SELECT over the lake's tables and views."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(
        min_length=1, max_length=nesting.MOST_CHARACTERS, description="one SELECT, with $name or ? for values"
    )
    parameters: Parameters = Field(default={}, description="the values, by name or in order")
    timeout: Seconds = Field(
        default=sandbox.TIMEOUT_SECONDS, description="seconds until it must end, including waiting"
    )
    max_rows: Rows = Field(
        default=sandbox.MOST_ROWS, description="rows at most; `truncated` says whether there were more"
    )
    id: str | None = Field(
        default=None, pattern=_ID.pattern.replace(r"\Z", "$"), description="made by the caller, to cancel by"
    )


class Sql:
    """The query pool of the lake, the threads that wait for it, and the log of queries."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.pool = sandbox.shared(service.lake)
        self.log = AuditLog(service.lake)
        self._threads: ThreadPoolExecutor | None = None
        self._later = threading.Timer(FILTERS_AFTER_SECONDS, filters.start, [service.lake])
        self._later.daemon = True

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """The function's result, computed on a thread of this class: one per running or waiting query, and some more
        to refuse others."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.pool.slots + self.pool.queue + 8, "sql")
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def prepare(self) -> None:
        """Starts processes for the first query and the first filter, and refreshes the copy of the large tables.

        Run it on a thread of its own: copying takes long, and it runs at a low priority.
        """
        self.pool.start()
        self._later.start()
        # Threads that this one starts, DuckDB's among them, inherit the priority.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        with suppress(OSError):  # a full disk: queries report it, or are slower
            columnar.refresh(self.service.lake)

    def close(self) -> None:
        self._later.cancel()
        self.pool.close()
        filters.close(self.service.lake)
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self.log.close()


class SqlResult:
    """The response to one query, up to its last byte. `start` and `stream` give the same bytes."""

    def __init__(self, sql: Sql, request: SqlRequest, key_id: str | None, arrow: bool) -> None:
        self._sql, self._request, self._key_id, self._arrow = sql, request, key_id, arrow
        self._id = callers_id(request.id or uuid.uuid4().hex, key_id)
        self._running: ResultStream | None = None
        self._parts: Iterator[bytes] = iter(())
        self._first: list[bytes] = []
        self._cancelled = False

    def start(self) -> bytes | None:
        """The whole response if it is small, else None: then `stream` sends it. Raises if the query is refused."""
        request = self._request
        format: Literal["arrow", "json"] = "arrow" if self._arrow else "json"
        pool, lake = self._sql.pool, self._sql.service.lake
        parameters = request.parameters or None
        try:
            model = partial(model_cache.loaded, lake)
            self._running = pool.open(
                request.sql,
                parameters,
                timeout=request.timeout,
                max_rows=request.max_rows,
                id=self._id,
                format=format,
                prepare=near.preparation(lake, request.sql, parameters, model),
            )
            if self._cancelled:
                self._running.close()
            self._parts = iter(self._running)
            size = 0
            for part in self._parts:
                self._first.append(part)
                size += len(part)
                if size > WHOLE_BYTES:
                    return None
        except LakeloopError as error:
            self._log(str(error))
            raise
        self._log(None)
        return b"".join((self._head(), *self._first, self._tail(None)))

    def cancel(self) -> None:
        """Stops the query, because the client closed the connection."""
        self._cancelled = True
        if self._running is not None:
            self._running.close()
        else:
            self._sql.pool.cancel(self._id)

    def headers(self) -> dict[str, str]:
        """Headers with the facts that an Arrow stream cannot hold; known once the response is complete."""
        assert self._running is not None
        return {"Lakeloop-Truncated": "true" if self._running.truncated else "false"} if self._arrow else {}

    async def stream(self) -> AsyncIterator[bytes]:
        """The whole response, from the first byte. An error now comes after status 200 was sent.

        Then JSON ends with `error` and is truncated; an Arrow stream breaks off without its end.
        """
        assert self._running is not None
        error: LakeloopError | None = None
        ended = False
        try:
            yield self._head()
            for part in self._first:
                yield part
            self._first.clear()
            while (more := await self._sql.aside(self._next)) is not None:
                yield more
            ended = True
        except LakeloopError as raised:
            error, ended = raised, True
        finally:
            if not ended:
                self._running.close()
            self._log(str(error) if error else None if ended else "the client closed the connection")
        if error is not None and self._arrow:
            raise ConnectionAbortedError(str(error)) from error
        yield self._tail(error)

    def _next(self) -> bytes | None:
        for part in self._parts:
            return part
        return None

    def _head(self) -> bytes:
        assert self._running is not None
        if self._arrow:
            return b""
        return b'{"columns":' + json.dumps(self._running.columns, ensure_ascii=False).encode() + b',"rows":['

    def _tail(self, error: LakeloopError | None) -> bytes:
        assert self._running is not None
        if self._arrow:
            return b""
        facts: dict[str, Any] = {
            "truncated": self._running.truncated or error is not None,
            "seconds": round(self._running.seconds, 4),
        }
        if error is not None:
            problem = problem_of(error)
            assert problem is not None
            facts["error"] = {"reason": problem.reason, "detail": problem.detail}
        return b"]," + json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")[1:]

    def _log(self, error: str | None) -> None:
        running, request = self._running, self._request
        facts: dict[str, Any] = {"error": error, "key_id": self._key_id}
        if running is not None and error is None:
            facts |= {"rows": running.rows, "seconds": running.seconds, "truncated": running.truncated}
        self._sql.log.put(saved_queries.entry(request.sql, request.parameters or None, **facts))


def callers_id(id: str, key_id: str | None) -> str:
    """The id prefixed with the caller's key, so that callers cannot cancel each other's queries."""
    return f"{key_id or ''} {id}"
