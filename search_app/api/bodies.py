"""Reads request bodies and headers: limits sizes before parsing, checks types before reading."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from lake.spool import events
from search_app.api.admission import Admission, BodyBudget
from search_app.api.problems import ClientGone, Problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

IMAGE_BYTES = 32 << 20
EVENT_BYTES = events.MOST_BYTES
BATCH_BYTES = 64 << 20
SEARCH_BYTES = 48 << 20  # an image of 32 MiB in Base64, and the other fields
KEY_CHARACTERS = 200
# Objects and lists in one JSON text: each takes thirty times as much memory as its two characters.
MOST_CONTAINERS = 100_000
# A million numbers, texts or pairs take a second to check, and the memory of ten times their bytes.
MOST_VALUES = 1_000_000
# Hashing or parsing more than this takes milliseconds, for which all other requests would wait.
ASIDE_BYTES = 256 << 10
# Parsing holds the interpreter for tens of milliseconds: each thread more delays all other requests by as much. These
# threads do nothing else, so that large bodies never hold up the look-ups of others.
_large = ThreadPoolExecutor(2, "large bodies")
_KEY = re.compile(rb"[!-~]{1,%d}\Z" % KEY_CHARACTERS)
# In the ASGI scope: a budget, and the bytes of the body that it counts as in memory until the response is sent.
IN_FLIGHT = "lakeloop_in_flight"

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of the last header of this name (in lower case)."""
    last = None
    for key, value in scope["headers"]:
        if key == name:
            last = value
    return last


def media_type(scope: Scope) -> str:
    """The content type without parameters, in lower case; "" if there is none."""
    return (header(scope, b"content-type") or b"").decode("latin-1").partition(";")[0].strip().lower()


def idempotency_key(scope: Scope) -> str | None:
    """The Idempotency-Key, prefixed with the caller's access key so that callers do not share keys.

    Raises Problem if it is malformed.
    """
    value = header(scope, b"idempotency-key")
    if value is None:
        return None
    if not _KEY.match(value):
        detail = f"an Idempotency-Key has 1 to {KEY_CHARACTERS} ASCII characters without spaces, not {value!r:.80}"
        raise Problem(400, "bad_key", detail)
    return f"{key_id(scope) or ''} {value.decode('latin-1')}"


def key_id(scope: Scope) -> str | None:
    """The id of the request's access key; see `search_app/security/access.py`."""
    value: str | None = scope.get("lakeloop_key_id")
    return value


def declared_length(scope: Scope) -> int | None:
    """The Content-Length. The HTTP parser has refused anything but digits."""
    value = header(scope, b"content-length")
    return int(value) if value is not None and value.isdigit() else None


async def read(scope: Scope, receive: Receive, limit: int, admission: Admission, events: int = 1) -> bytes:
    """The whole body, which counts as in flight until `release`.

    Raises Problem if it is too large or not admitted, before reading it; ClientGone.
    """
    declared = declared_length(scope)
    if declared is not None and declared > limit:
        raise too_large(limit)
    problem = admission.problem(declared or 0) or admission.over_rate(events)
    if problem is not None:
        raise problem
    return await _received(scope, receive, limit, admission.event_bodies)


async def read_query(scope: Scope, receive: Receive, limit: int, admission: Admission) -> bytes:
    """The body of a request that stores nothing: accepted even if nothing can be stored. Otherwise as `read`."""
    declared = declared_length(scope)
    if declared is not None and declared > limit:
        raise too_large(limit)
    problem = admission.query_bodies.too_much(declared or 0)
    if problem is not None:
        raise problem
    return await _received(scope, receive, limit, admission.query_bodies)


async def _received(scope: Scope, receive: Receive, limit: int, budget: BodyBudget) -> bytes:
    # One growing block: the parts of many bodies would fill the heap between each other, which then never shrinks.
    body: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        length = len(body) + len(part)
        if length > limit:
            raise too_large(limit)
        if part:
            problem = budget.too_much(len(part), own=len(body))
            if problem is not None:
                raise problem
            _hold(scope, budget, len(part))
            if body:
                body = bytearray(body) if isinstance(body, bytes) else body
                body += part
            else:
                body = part
        if not message.get("more_body", False):
            return bytes(body)


def _hold(scope: Scope, budget: BodyBudget, size: int) -> None:
    budget.held += size
    _, held = scope.get(IN_FLIGHT, (budget, 0))
    scope[IN_FLIGHT] = budget, held + size


def release(scope: Scope) -> None:
    """Counts the body as gone from memory, after the response."""
    if IN_FLIGHT in scope:
        budget, held = scope.pop(IN_FLIGHT)
        budget.held -= held


async def aside(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, computed on another thread if it processes many bytes (`size`)."""
    if size <= ASIDE_BYTES:
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_large, function, *arguments)


def digest(*parts: bytes) -> bytes:
    """Identifies a request: different lists of parts have different digests."""
    hash_ = hashlib.sha256()
    for part in parts:
        hash_.update(b"%d:" % len(part))
        hash_.update(part)
    return hash_.digest()


def too_large(limit: int, name: str = "the body") -> Problem:
    return Problem(413, "too_large", f"{name} may have at most {limit >> 20} MiB")


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in the bytes. Raises Problem with the reason if there is none."""
    _refuse_complex(data, name)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and numbers too long to read
        raise Problem(422, "not_json", f"{name} is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise Problem(422, "not_json", f"{name} is JSON, but not an object")
    return document


def parsed_as(kind: type[Model], body: bytes) -> Model:
    """The body as the model. Raises Problem naming the wrong field."""
    _refuse_complex(body, "the body")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise Problem(422, "invalid", f"{field}: {first['msg']}" if field else first["msg"]) from error


def values(data: bytes, start: int = 0, end: int | None = None) -> int:
    """About how many values the JSON text between these places has; Base64 has none of its signs."""
    return max(data.count(b",", start, end), data.count(b"{", start, end) + data.count(b"[", start, end))


def _refuse_complex(data: bytes, name: str) -> None:
    if data.count(b"{") + data.count(b"[") > MOST_CONTAINERS:
        raise Problem(422, "too_complex", f"{name} has more than {MOST_CONTAINERS:,} objects and lists")
    if values(data) > MOST_VALUES:
        raise Problem(422, "too_complex", f"{name} has more than {MOST_VALUES:,} values")
