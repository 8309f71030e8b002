"""Pages of long lists, by an opaque cursor, and ETags of what does not change.

A list has a stable order by a key of each item; the cursor is the key of a page's last item. So a page continues where
the last one ended, whatever was added or deleted before it.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request, Response

from search_app.api.problems import JSON, Problem

T = TypeVar("T")
Key = tuple[str | int, ...]

MOST_ITEMS = 1_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
Limit = Annotated[int, Query(ge=1, le=MOST_ITEMS, description="items of a page at most")]
Cursor = Annotated[
    str | None,
    Query(min_length=1, max_length=2_000, description="`next` of the page before; without one, the first page"),
]
NOT_CHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "it has the ETag in If-None-Match"}}


def page(items: Sequence[T], key: Callable[[T], Key], cursor: str | None, limit: int) -> tuple[Sequence[T], str | None]:
    """The items after the cursor, at most `limit`, and the cursor of the next page (None: this is the last).

    `items` are sorted by `key`, which no two share. Raises Problem for a cursor that this list did not give.
    """
    start = 0
    if cursor is not None:
        try:
            start = bisect_right(items, read_cursor(cursor), key=key)
        except TypeError as error:
            raise _bad_cursor() from error
    end = start + limit
    return items[start:end], make_cursor(key(items[end - 1])) if end < len(items) else None


def newest_first(moment: dt.datetime, name: str) -> Key:
    """The key of an item in a list in which later moments come first."""
    return -((moment - _EPOCH) // dt.timedelta(microseconds=1)), name


def moment_and_name(cursor: str) -> tuple[dt.datetime, str]:
    """The moment and the name of the item whose `newest_first` is in the cursor. Raises Problem."""
    match read_cursor(cursor):
        case int(moment), str(name):
            try:
                return _EPOCH - dt.timedelta(microseconds=moment), name
            except OverflowError as error:
                raise _bad_cursor() from error
    raise _bad_cursor()


def make_cursor(key: Key) -> str:
    text = json.dumps(key, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def read_cursor(cursor: str) -> Key:
    """The key in a cursor. Raises Problem if it is not a cursor."""
    try:
        key = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
    except (ValueError, RecursionError) as error:  # also text that is not ASCII, or not UTF-8 inside
        raise _bad_cursor() from error
    if not isinstance(key, list) or not key or not all(type(part) in (str, int) for part in key):
        raise _bad_cursor()
    return tuple(key)


def unchanged(request: Request, tag: str) -> bool:
    """Whether the client has what the ETag names already."""
    return f'"{tag}"' in request.headers.get("if-none-match", "")


def tagged(request: Request, tag: str, make: Callable[[], bytes], media_type: str = JSON) -> Response:
    """A response with an ETag. If the client has it, 304, and `make` is not called.

    Caches may store it for its client only, because keys may be required, and ask again each time, because what is
    immutable can still be deleted.
    """
    headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
    if unchanged(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(make(), media_type=media_type, headers=headers)


def _bad_cursor() -> Problem:
    return Problem(422, "bad_cursor", "the cursor is not one of this list: pass `next` of the page before, unchanged")
