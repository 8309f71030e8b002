"""Routes of SQL: run a query, cancel it, the history, saved queries."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from lake import nesting
from lake.errors import LakeloopError
from lake.sql import saved_queries
from search_app.api import bodies, paging, schemas
from search_app.api.problems import JSON, ClientGone, Problem
from search_app.api.routes.batch import ARROW
from search_app.api.schemas import QueryName, SqlId
from search_app.api.sql_execution import Sql, SqlRequest, SqlResult, callers_id

Model = TypeVar("Model", bound=BaseModel)

PATH = "/v1/sql"
BODY_BYTES = 4 << 20


# A query may have 20,000 characters, and its parameters as many.
HistoryLimit = Annotated[int, Query(ge=1, le=200, description="queries of a page at most")]


class SavedQueryRequest(BaseModel):
    """A query to save under a name."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(min_length=1, max_length=nesting.MOST_CHARACTERS)
    parameters: dict[str, Any] = Field(default={}, description="default values of the parameters")
    description: str | None = Field(default=None, max_length=10_000)


class SqlColumn(BaseModel):
    name: str
    type: str = Field(description="DuckDB's")


class SqlRows(BaseModel):
    """The result of a SELECT."""

    columns: list[SqlColumn]
    rows: list[list[Any]]
    truncated: bool = Field(description="there were more rows than `max_rows`, or more than 256 MiB")
    seconds: float
    error: dict[str, Any] = Field(
        default={}, description="why the remaining rows did not come, after the first were sent; left out if all came"
    )


def routes(sql: Sql) -> APIRouter:
    router = APIRouter()
    lake = sql.service.lake

    @router.post(
        PATH,
        response_class=Response,
        openapi_extra=schemas.request(schemas.json_body(SqlRequest.model_json_schema())),
        responses={
            200: {
                "model": SqlRows,
                "description": "the rows, in the order of the columns",
                "content": {ARROW: {"schema": schemas.BINARY}},
            }
        },
    )
    async def ask(request: Request) -> Response:
        """The result of one SELECT. `Accept` chooses JSON or an Arrow stream; rows are sent as they are computed."""
        sql_request = await _body(request, SqlRequest, sql)
        key_id = bodies.key_id(request.scope)
        arrow = ARROW in request.headers.get("accept", "")
        result = SqlResult(sql, sql_request, key_id, arrow)
        started = asyncio.ensure_future(sql.aside(result.start))
        disconnected = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait({started, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        disconnected.cancel()
        with suppress(asyncio.CancelledError):
            await disconnected
        if not started.done():
            result.cancel()
            with suppress(LakeloopError):
                await started
            raise ClientGone
        whole = await started
        media = ARROW if arrow else JSON
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        if whole is not None:
            return Response(whole, media_type=media, headers=headers | result.headers())
        return StreamingResponse(result.stream(), media_type=media, headers=headers)

    @router.delete(PATH + "/{sql_id}")
    def cancel(sql_id: SqlId, request: Request) -> dict[str, str]:
        """Stops a query, waiting or running, that was sent with this `id` and the same key."""
        if not sql.pool.cancel(callers_id(sql_id, bodies.key_id(request.scope))):
            raise Problem(404, "unknown_query", f"no query {sql_id[:100]!r} of your key is running")
        return {"id": sql_id, "status": "cancelled"}

    @router.get("/v1/sql-history")
    def history(limit: HistoryLimit = 100, cursor: paging.Cursor = None) -> dict[str, Any]:
        """The queries that ran, newest first; `next` is the cursor of older ones."""
        sql.log.flush()
        before = None if cursor is None else paging.moment_and_name(cursor)
        entries = saved_queries.history(lake, limit + 1, before)
        part, last = entries[:limit], entries[min(limit, len(entries)) - 1] if entries else None
        key = None if last is None else paging.newest_first(last.timestamp, last.event_id)
        following = paging.make_cursor(key) if key is not None and len(entries) > limit else None
        return {"queries": [query.as_dict() for query in part], "next": following}

    @router.get("/v1/saved-queries")
    def saved() -> dict[str, Any]:
        """Every saved query, by name."""
        return {"queries": [query.as_dict() for query in saved_queries.list(lake)]}

    @router.get("/v1/saved-queries/{name}")
    def one_saved(name: QueryName) -> dict[str, Any]:
        """One saved query."""
        return _known(name).as_dict()

    @router.put(
        "/v1/saved-queries/{name}",
        response_class=Response,
        openapi_extra=schemas.request(schemas.json_body(SavedQueryRequest.model_json_schema())),
        responses={200: {"description": "the saved query", "content": schemas.json_body({"type": "object"})}},
    )
    async def save(name: QueryName, request: Request) -> Response:
        """Saves a query under a name and replaces a query that had it."""
        new = await _body(request, SavedQueryRequest, sql)

        def write() -> bytes:
            query = saved_queries.save(lake, name, new.sql, new.parameters, new.description, replacing=True)
            _audit("query save", name, request, {"sql": new.sql[: saved_queries.LOGGED_CHARACTERS]})
            return json.dumps(query.as_dict(), ensure_ascii=False).encode("utf-8", "replace")

        return Response(await run_in_threadpool(write), media_type=JSON)

    @router.delete("/v1/saved-queries/{name}")
    def delete(name: QueryName, request: Request) -> dict[str, str]:
        """Deletes a saved query."""
        _known(name)
        saved_queries.delete(lake, name)
        _audit("query delete", name, request, None)
        return {"name": name, "status": "deleted"}

    def _known(name: str) -> saved_queries.SavedQuery:
        query = {query.name: query for query in saved_queries.list(lake)}.get(name)
        if query is None:
            raise Problem(404, "unknown_query", f"no query is saved under the name {name[:100]!r}")
        return query

    def _audit(action: str, name: str, request: Request, detail: dict[str, Any] | None) -> None:
        from lake.access import audit

        sql.log.put(audit.entry(action, name, key_id=bodies.key_id(request.scope), detail=detail))

    return router


async def _body(request: Request, kind: type[Model], sql: Sql) -> Model:
    media = bodies.media_type(request.scope)
    if media != JSON:
        raise Problem(415, "media_type", f"send {JSON}, not {media or 'no type'!r:.80}")
    body = await bodies.read_query(request.scope, request.receive, BODY_BYTES, sql.service.admission)
    return bodies.parsed_as(kind, body)


async def _disconnected(request: Request) -> None:
    """Waits until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
