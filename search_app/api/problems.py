"""Error responses as application/problem+json (RFC 9457): a fixed reason for programs, a sentence for people.

Only this module converts errors to status codes.
"""

from __future__ import annotations

import errno
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Match, Route

from lake.errors import BadInput, LakeloopError, QueryStopped, UnreadableImage
from search_app.api.prometheus import HUNG_UP, REFUSED
from search_app.jobs.starting import QueueFull
from search_app.security.url_import import UrlRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Send

JSON = "application/json"
MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 5
QUEUE_RETRY_SECONDS = 60


class ClientGone(Exception):
    """The client closed the connection before it had sent its body, so no response is possible."""


class Problem(Exception):
    """An error response. `reason` is for machines, one word that never changes; `detail` is for people."""

    def __init__(self, status: int, reason: str, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def body(self) -> bytes:
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers(), MEDIA_TYPE)

    async def send(self, send: Send) -> None:
        """Sends the response from plain ASGI, without the framework."""
        await send_response(send, self.status, self.body(), MEDIA_TYPE, self.headers())


async def send_response(
    send: Send,
    status: int,
    body: bytes,
    media_type: str = JSON,
    headers: Mapping[str, str] | None = None,
) -> None:
    """One whole ASGI response."""
    raw = [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))]
    if headers:
        raw += [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def problem_of(error: BaseException) -> Problem | None:
    """The problem to respond with for an error; None for a bug of lakeloop."""
    match error:
        case Problem():
            return error
        case UnreadableImage():
            return Problem(422, "unreadable_image", str(error))
        case UrlRefused():
            return Problem(422, f"url_{error.reason}", str(error))
        case BadInput():
            return Problem(422, "invalid", str(error))
        case RecursionError():
            return Problem(422, "too_complex", "the request is nested too deeply")
        case QueryStopped():
            status = {"busy": 429, "cancelled": 409}.get(error.reason, 422)
            return Problem(status, error.reason, str(error), 1 if status == 429 else None)
        case QueueFull():
            return Problem(429, "too_many_jobs", str(error), QUEUE_RETRY_SECONDS)
        case LakeloopError():
            return Problem(503, "unavailable", str(error), RETRY_SECONDS)
        case sqlite3.OperationalError() if "full" in str(error):
            return disk_full()
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return disk_full()
        case sqlite3.Error() | OSError():
            return Problem(503, "unavailable", f"the spool could not store it ({error}); try again", RETRY_SECONDS)
    return None


@contextmanager
def not_found(reason: str) -> Iterator[None]:
    """For look-ups by a name in the path: BadInput in the block, the library's "no such name", becomes a 404."""
    try:
        yield
    except BadInput as error:
        raise Problem(404, reason, str(error)) from error


def disk_full() -> Problem:
    return Problem(507, "disk_full", "the disk is full; nothing of this request was stored", 30)


def add_error_handlers(api: FastAPI) -> None:
    @api.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: StarletteHTTPException) -> Response:
        response = Problem(error.status_code, _word(error.status_code), str(error.detail)).response()
        response.headers.update(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = ", ".join(sorted(_methods(request)))
        return response

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Problem(422, "invalid", f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}").response()

    @api.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=HUNG_UP)  # nobody receives it

    for kind in (Problem, LakeloopError, sqlite3.Error, OSError, RecursionError):
        api.add_exception_handler(kind, _known_error)


def _methods(request: Request) -> set[str]:
    """The methods allowed at the path; the framework knows those of a single route only."""
    routers = (getattr(route, "original_router", None) for route in request.app.routes)
    routes = [r for router in routers if router is not None for r in router.routes if isinstance(r, Route)]
    matches = [route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    # A path without a parameter comes first, then the one with most text beside its parameters.
    best = min(matches, key=lambda path: ("{" in path, -len(re.sub("{[^}]*}", "", path))), default=None)
    return {method for r in routes if r.path == best and r.include_in_schema for method in r.methods or ()}


async def _known_error(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    assert problem is not None
    request.scope[REFUSED] = [problem.reason]
    return problem.response()


def _word(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_")
