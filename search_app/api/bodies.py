"""Reading what was sent: capped before it is parsed, refused by type before it is read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from search_app.api.admission import Admission
from search_app.api.problems import ClientGone, Problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

IMAGE_BYTES = 32 << 20
EVENT_BYTES = 4 << 20
BATCH_BYTES = 64 << 20
SEARCH_BYTES = 48 << 20  # an image of 32 MiB in Base64, and the rest of the question
KEY_CHARACTERS = 200
# Objects and lists in one JSON text: each takes thirty times the memory of its two characters.
MOST_CONTAINERS = 100_000
# Hashing or parsing more than this takes milliseconds, which all other requests would wait for.
ASIDE_BYTES = 256 << 10
_KEY = re.compile(rb"[!-~]{1,%d}\Z" % KEY_CHARACTERS)
# In the ASGI scope: the bytes of the body that count as in memory until the request is answered.
HELD = "lakeloop_held"

T = TypeVar("T")


def header(scope: Scope, name: bytes) -> bytes | None:
    """The last header of this name (lower case)."""
    found = None
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


def media_type(scope: Scope) -> str:
    """The content type without parameters, lower case; "" when there is none."""
    return (header(scope, b"content-type") or b"").decode("latin-1").partition(";")[0].strip().lower()


def idempotency_key(scope: Scope) -> str | None:
    """The key, told apart from other callers' equal keys by who they are. Raises Problem when it is malformed."""
    given = header(scope, b"idempotency-key")
    if given is None:
        return None
    if not _KEY.match(given):
        detail = f"an Idempotency-Key has 1 to {KEY_CHARACTERS} ASCII characters without spaces, not {given!r:.80}"
        raise Problem(400, "bad_key", detail)
    return f"{key_id(scope) or ''} {given.decode('latin-1')}"


def key_id(scope: Scope) -> str | None:
    """The access key the request came with; see `search_app/security/access.py`."""
    found: str | None = scope.get("lakeloop_key_id")
    return found


def declared_length(scope: Scope) -> int | None:
    """The length the request says its body has. The HTTP parser has refused anything but digits."""
    given = header(scope, b"content-length")
    return int(given) if given is not None and given.isdigit() else None


async def read(scope: Scope, receive: Receive, limit: int, admission: Admission, events: int = 1) -> bytes:
    """The whole body. Raises Problem when it is too large or not admitted (before reading it), ClientGone.

    It counts as in flight until `release`.
    """
    declared = declared_length(scope)
    if declared is not None and declared > limit:
        raise too_large(limit)
    problem = admission.problem(declared or 0) or admission.over_rate(events)
    if problem is not None:
        raise problem
    return await _received(scope, receive, limit, admission)


async def read_question(scope: Scope, receive: Receive, limit: int, admission: Admission) -> bytes:
    """The body of a request that stores nothing, and is answered when nothing can be stored. Otherwise as `read`."""
    declared = declared_length(scope)
    if declared is not None and declared > limit:
        raise too_large(limit)
    problem = admission.too_much(declared or 0)
    if problem is not None:
        raise problem
    return await _received(scope, receive, limit, admission)


async def _received(scope: Scope, receive: Receive, limit: int, admission: Admission) -> bytes:
    held = declared_length(scope) or 0
    _hold(scope, admission, held)
    parts = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        length += len(part)
        if length > limit:
            raise too_large(limit)
        if length > held:  # a body that comes in chunks says nothing of its length before
            problem = admission.too_much(length - held, own=held)
            if problem is not None:
                raise problem
            _hold(scope, admission, length - held)
            held = length
        if part:
            parts.append(part)
        if not message.get("more_body", False):
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _hold(scope: Scope, admission: Admission, size: int) -> None:
    admission.in_flight += size
    scope[HELD] = scope.get(HELD, 0) + size


def release(scope: Scope, admission: Admission) -> None:
    """The request is answered: its body is in memory no more."""
    admission.in_flight -= scope.pop(HELD, 0)


async def aside(size: int, function: Callable[..., T], *arguments: Any) -> T:
    """The function's result; beside the event loop when `size` bytes are to be gone through."""
    if size <= ASIDE_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def digest(*parts: bytes) -> bytes:
    """Tells a request from another: no two lists of parts have the same."""
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


def too_large(limit: int, what: str = "the body") -> Problem:
    return Problem(413, "too_large", f"{what} may have {limit >> 20} MiB at most")


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object these bytes are. Raises Problem saying why they are none."""
    if data.count(b"{") + data.count(b"[") > MOST_CONTAINERS:
        raise Problem(422, "too_complex", f"{what} has more than {MOST_CONTAINERS:,} objects and lists")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and numbers too long to read
        raise Problem(422, "not_json", f"{what} is not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise Problem(422, "not_json", f"{what} is JSON, but not an object")
    return found
