"""Routes of SQL: ask, cancel, what was asked, saved queries.

The rows come as JSON or Arrow straight from the query's own process: here they are bytes. Waiting is done on threads
that are nobody else's, so that other requests are not behind a slow query.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from embeddings.search import near
from lake.errors import LakeloopError
from lake.sql import columnar, saved_queries
from lake.sql.sandbox import pool as sandbox
from search_app.api import bodies
from search_app.api.problems import JSON, ClientGone, Problem, problem_of
from search_app.api.routes.batch import ARROW
from search_app.api.routes.search import parsed_as
from search_app.backend import model_cache
from search_app.security.audit_log import AuditLog

if TYPE_CHECKING:
    from lake.sql.sandbox.results import ResultStream
    from search_app.api.service import Service

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

PATH = "/v1/sql"
BODY_BYTES = 4 << 20
# An answer up to this size is made whole before its status is said.
WHOLE_BYTES = 256 << 10
MOST_SECONDS = 300.0
MOST_ROWS = 1_000_000
NICENESS = 10
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("this is no number")
    return value


Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0, le=MOST_SECONDS, allow_inf_nan=False)]
Rows = Annotated[int, BeforeValidator(_number), Field(ge=0, le=MOST_ROWS)]
Parameters = dict[str, Any] | list[Any]


class SqlRequest(BaseModel):
    """One SELECT over the lake's tables and views."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(
        min_length=1, max_length=saved_queries.MOST_CHARACTERS, description="one SELECT, with $name or ? for values"
    )
    parameters: Parameters = Field(default={}, description="the values, by name or in order")
    timeout: Seconds = Field(
        default=sandbox.TIMEOUT_SECONDS, description="seconds until it must have ended, waiting included"
    )
    max_rows: Rows = Field(
        default=sandbox.MOST_ROWS, description="rows at most; `truncated` says whether there were more"
    )
    id: str | None = Field(
        default=None, pattern=_ID.pattern.replace(r"\Z", "$"), description="made by the caller, to cancel by"
    )


class SavedQueryRequest(BaseModel):
    """What is saved under a name."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(min_length=1, max_length=saved_queries.MOST_CHARACTERS)
    parameters: dict[str, Any] = Field(default={}, description="values of the parameters when nobody says otherwise")
    description: str | None = Field(default=None, max_length=10_000)


class Sql:
    """The pool of the lake, the threads that wait for it, and the log of what was asked."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.pool = sandbox.shared(service.lake)
        self.log = AuditLog(service.lake)
        self._threads: ThreadPoolExecutor | None = None

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """The function's result, on a thread of SQL's own: as many as may run and wait, and some to say no."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.pool.slots + self.pool.queue + 8, "sql")
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def prepare(self) -> None:
        """Has the first query find a process that waits and a fresh copy of the large tables.

        On a thread of its own: it takes as long as the copying does, after everything else.
        """
        self.pool.start()
        # Threads that this one starts, DuckDB's among them, inherit it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        with suppress(OSError):  # a full disk: queries say so, or are slower
            columnar.refresh(self.service.lake)

    def close(self) -> None:
        self.pool.close()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self.log.close()


def routes(sql: Sql) -> APIRouter:
    router = APIRouter()
    lake = sql.service.lake

    @router.post(PATH, response_class=Response)
    async def ask(request: Request) -> Response:
        """The answer to one SELECT. `Accept` chooses JSON or an Arrow stream; both come while they are made."""
        question = await _body(request, SqlRequest, sql)
        key_id = bodies.key_id(request.scope)
        arrow = ARROW in request.headers.get("accept", "")
        answer = _Answer(sql, question, key_id, arrow)
        begun = asyncio.ensure_future(sql.aside(answer.begin))
        gone = asyncio.ensure_future(_gone(request))
        await asyncio.wait({begun, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        if not begun.done():
            answer.cancel()
            with suppress(LakeloopError):
                await begun
            raise ClientGone
        whole = await begun
        media = ARROW if arrow else JSON
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        if whole is not None:
            return Response(whole, media_type=media, headers=headers | answer.facts())
        return StreamingResponse(answer.rest(), media_type=media, headers=headers)

    @router.delete(PATH + "/{sql_id}")
    def cancel(sql_id: str, request: Request) -> dict[str, str]:
        """Stops a query, waiting or running, that was asked with this `id` and the same key."""
        if not sql.pool.cancel(_own(sql_id, bodies.key_id(request.scope))):
            raise Problem(404, "unknown_query", f"no query {sql_id[:100]!r} of yours is running")
        return {"id": sql_id, "status": "cancelled"}

    @router.get("/v1/sql-history")
    def history() -> dict[str, Any]:
        """The last hundred queries that were asked, newest first."""
        sql.log.flush()
        return {"queries": [one.as_dict() for one in saved_queries.history(lake)]}

    @router.get("/v1/saved-queries")
    def saved() -> dict[str, Any]:
        """Every saved query, by name."""
        return {"queries": [one.as_dict() for one in saved_queries.list(lake)]}

    @router.get("/v1/saved-queries/{name}")
    def one_saved(name: str) -> dict[str, Any]:
        """One saved query."""
        return _known(name).as_dict()

    @router.put("/v1/saved-queries/{name}", response_class=Response)
    async def save(name: str, request: Request) -> Response:
        """Saves a query under a name, in place of the one that had it."""
        given = await _body(request, SavedQueryRequest, sql)

        def write() -> bytes:
            made = saved_queries.save(lake, name, given.sql, given.parameters, given.description, replacing=True)
            _audit("query save", name, request, {"sql": given.sql[: saved_queries.LOGGED_CHARACTERS]})
            return json.dumps(made.as_dict(), ensure_ascii=False).encode("utf-8", "replace")

        return Response(await run_in_threadpool(write), media_type=JSON)

    @router.delete("/v1/saved-queries/{name}")
    def delete(name: str, request: Request) -> dict[str, str]:
        """Takes a saved query from the list."""
        _known(name)
        saved_queries.delete(lake, name)
        _audit("query delete", name, request, None)
        return {"name": name, "status": "deleted"}

    def _known(name: str) -> saved_queries.SavedQuery:
        found = {one.name: one for one in saved_queries.list(lake)}.get(name)
        if found is None:
            raise Problem(404, "unknown_query", f"no query is saved under the name {name[:100]!r}")
        return found

    def _audit(action: str, name: str, request: Request, detail: dict[str, Any] | None) -> None:
        from lake.access import audit

        sql.log.put(audit.entry(action, name, key_id=bodies.key_id(request.scope), detail=detail))

    return router


class _Answer:
    """One query from its question to its last byte. `begin` and `rest` say the same bytes a plain file would hold."""

    def __init__(self, sql: Sql, question: SqlRequest, key_id: str | None, arrow: bool) -> None:
        self._sql, self._question, self._key_id, self._arrow = sql, question, key_id, arrow
        self._id = None if question.id is None else _own(question.id, key_id)
        self._running: ResultStream | None = None
        self._parts: Iterator[bytes] = iter(())
        self._first: list[bytes] = []
        self._cancelled = False

    def begin(self) -> bytes | None:
        """The whole answer when it is small, else None: then `rest` gives it. Raises what there is to refuse."""
        asked = self._question
        format: Literal["arrow", "json"] = "arrow" if self._arrow else "json"
        pool, lake = self._sql.pool, self._sql.service.lake
        given = asked.parameters or None
        try:
            more = near.extras(lake, asked.sql, given, parse=pool.tree, model=partial(model_cache.loaded, lake))
            self._running = pool.open(
                asked.sql, given, timeout=asked.timeout, max_rows=asked.max_rows, id=self._id, format=format, **more
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
        """The client went away: nobody wants the answer."""
        self._cancelled = True
        if self._running is not None:
            self._running.close()
        elif self._id is not None:
            self._sql.pool.cancel(self._id)

    def facts(self) -> dict[str, str]:
        """What an Arrow stream has no place for, as headers; known once the answer is whole."""
        assert self._running is not None
        return {"Lakeloop-Truncated": "true" if self._running.truncated else "false"} if self._arrow else {}

    async def rest(self) -> AsyncIterator[bytes]:
        """All of it, from the first byte. What goes wrong now comes after a status that said well.

        JSON then ends with `error` and is truncated; an Arrow stream breaks off without its end.
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
            self._log(str(error) if error else None if ended else "the client hung up")
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
        running, asked = self._running, self._question
        facts: dict[str, Any] = {"error": error, "key_id": self._key_id}
        if running is not None and error is None:
            facts |= {"rows": running.rows, "seconds": running.seconds, "truncated": running.truncated}
        self._sql.log.put(saved_queries.entry(asked.sql, asked.parameters or None, **facts))


async def _body(request: Request, kind: type[Model], sql: Sql) -> Model:
    media = bodies.media_type(request.scope)
    if media != JSON:
        raise Problem(415, "media_type", f"send {JSON}, not {media or 'no type'!r:.80}")
    body = await bodies.read_question(request.scope, request.receive, BODY_BYTES, sql.service.admission)
    return parsed_as(kind, body)


async def _gone(request: Request) -> None:
    """Waits for the client to hang up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _own(id: str, key_id: str | None) -> str:
    """Ids are the callers' own: nobody can name another's query."""
    return f"{key_id or ''} {id}"
