"""Reading what was sent: capped before it is parsed, refused by type before it is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from search_app.api.admission import Admission
from search_app.api.problems import Refusal

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

IMAGE_BYTES = 32 << 20
EVENT_BYTES = 4 << 20
BATCH_BYTES = 64 << 20
KEY_CHARACTERS = 200


class ClientGone(Exception):
    """The client hung up before it had sent its body: there is nobody to answer."""


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
    """The key, told apart from other callers' equal keys by who they are. Raises Refusal when it is too long."""
    given = header(scope, b"idempotency-key")
    if given is None:
        return None
    if not 0 < len(given) <= KEY_CHARACTERS:
        raise Refusal(400, "bad_key", f"an Idempotency-Key has 1 to {KEY_CHARACTERS} characters, not {len(given)}")
    return f"{key_id(scope) or ''} {given.decode('latin-1')}"


def key_id(scope: Scope) -> str | None:
    """The access key the request came with; see `search_app/access.py`."""
    found: str | None = scope.get("lakeloop_key_id")
    return found


def declared_length(scope: Scope) -> int | None:
    """The length the request says its body has. The HTTP parser has refused anything but digits."""
    given = header(scope, b"content-length")
    return int(given) if given is not None and given.isdigit() else None


async def read(scope: Scope, receive: Receive, limit: int, admission: Admission, events: int = 1) -> bytes:
    """The whole body. Raises Refusal when it is too large or not admitted (before reading it), ClientGone."""
    declared = declared_length(scope)
    if declared is not None and declared > limit:
        raise too_large(limit)
    refusal = admission.refusal(declared or 0) or admission.over_rate(events)
    if refusal is not None:
        raise refusal
    held = declared or 0
    admission.in_flight += held
    try:
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
            if part:
                parts.append(part)
            if not message.get("more_body", False):
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        admission.in_flight -= held


def too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"the body may have {limit >> 20} MiB at most")


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object these bytes are. Raises Refusal saying why they are none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and numbers too long to read
        raise Refusal(422, "not_json", f"{what} is not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise Refusal(422, "not_json", f"{what} is JSON, but not an object")
    return found
