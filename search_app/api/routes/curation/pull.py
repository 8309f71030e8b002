"""GET /v1/slices/{slice}/manifest and /images: a frozen version for another machine, resumable at any byte.

The manifest lists files in pages. The images are one stream of bytes in the manifest's order, read with Range. Both
have the tag of the version's content: a client sends it as If-Match and gets 412 once the content has changed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from lake import slices
from lake.errors import CouldNot
from lake.slices import transfer
from search_app.api import schemas
from search_app.api.admission import Slots
from search_app.api.paging import NOT_CHANGED, Cursor, Limit, page, tagged
from search_app.api.problems import Problem, not_found
from search_app.api.routes.curation.slices import PATH
from search_app.api.schemas import BINARY, SliceName

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from lake.slices.transfer import SliceContent
    from search_app.api.service import Service

# Each has about three batches of `transfer.BATCH_BYTES` in memory.
MOST_STREAMS = 4
# A client that takes nothing for so long is disconnected.
STALLED_SECONDS = 60.0
BYTES = "application/octet-stream"
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})\Z")
_HEX = "2a0986669d4b1c0b7f3e5a9c8d7e6f504132241506f7e8d9cabbac9d8e7f6051"
_ENTRY = {"path": f"images/{_HEX}.jpg", "bytes": 55_120, "sha256": _HEX, "row": '{"file_name": "...", "label": "car"}'}
_PARAMETERS = [
    {"name": "If-Match", "in": "header", "schema": {"type": "string"}, "description": "the manifest's tag, in quotes"},
    {"name": "Range", "in": "header", "schema": {"type": "string"}, "description": "bytes=FIRST- or bytes=FIRST-LAST"},
]


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    lake = service.lake
    streams = Slots(MOST_STREAMS, "streams of images")

    @router.get(
        PATH + "/{slice_name}/manifest", response_class=Response, responses=schemas.page_of(_ENTRY) | NOT_CHANGED
    )
    def manifest(
        slice_name: SliceName,
        request: Request,
        format: Annotated[
            Literal["jsonl", "imagefolder"], Query(description="of the files, as in an export")
        ] = "jsonl",
        limit: Limit = 1_000,
        cursor: Cursor = None,
    ) -> Response:
        """The files of a frozen version: path, size, hash and (for jsonl) the row of each image, by image_id.

        Images without bytes come last, as `{"left_out": image_id, "reason"}`. `tag` stands for the content as a whole.
        """
        content = _content(slice_name)

        def make() -> bytes:
            numbers = range(len(content) + len(content.left_out))
            part, following = page(numbers, lambda number: (number,), cursor, limit)
            first, last = (part[0], part[-1] + 1) if part else (0, 0)
            items, unsaid = transfer.entries(lake, content, format, first, max(0, min(last, len(content)) - first))
            missing = content.left_out[max(0, first - len(content)) : max(0, last - len(content))]
            items += [{"left_out": image_id, "reason": transfer.NO_BYTES} for image_id in missing]
            facts = {
                "slice": content.slice.id,
                "version": content.slice.version,
                "format": format,
                "definition": content.slice.definition,
                "predictions_version": content.slice.predictions_version,
                "erased_before": slices.erased_count(lake, content.slice) if cursor is None else None,
                "tag": content.tag,
                "images": len(content),
                "bytes": content.bytes,
                "unsaid": unsaid,
            }
            return schemas.as_json(facts | {"items": items, "next": following})

        return tagged(request, f"{content.tag}.{format}.{limit}.{cursor or ''}", make)

    @router.get(
        PATH + "/{slice_name}/images",
        response_class=Response,
        openapi_extra={"parameters": _PARAMETERS},
        responses={
            200: {"description": "the bytes of all images", "content": {BYTES: {"schema": BINARY}}},
            206: {"description": "the bytes in the range", "content": {BYTES: {"schema": BINARY}}},
            412: {"description": "the content is not the one in If-Match any more"},
            416: {"description": "the range begins after the last byte"},
        },
    )
    async def images(slice_name: SliceName, request: Request) -> Response:
        """The bytes of a frozen version's images, one after another in the manifest's order."""
        content = await run_in_threadpool(_content, slice_name)
        expected = request.headers.get("if-match")
        if expected is not None and expected not in ("*", f'"{content.tag}"'):
            raise Problem(412, "changed", f"the content of {content.slice.id} has changed, or images were erased")
        first, end = _range(request.headers.get("range"), content.bytes)
        headers = {
            "ETag": f'"{content.tag}"',
            "Accept-Ranges": "bytes",
            "Content-Length": str(end - first),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        partial = "range" in request.headers and _RANGE.match(request.headers["range"]) is not None
        if partial:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{content.bytes}"
        slot = ExitStack()
        slot.enter_context(streams.taken())
        parts = transfer.read(lake, content, first, end)
        return _Stream(_ahead(parts), slot, 206 if partial else 200, headers, BYTES)

    def _content(name: str) -> SliceContent:
        with not_found("unknown_slice"):
            slice_ = slices.get(lake, name)
        return transfer.of_slice(lake, slice_)

    return router


def _range(header: str | None, size: int) -> tuple[int, int]:
    """The first byte, and the one after the last. A range in another form is ignored, as RFC 9110 has it."""
    match = _RANGE.match(header or "")
    if match is None:
        return 0, size
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if first >= size or last < first:
        raise Problem(416, "no_such_range", f"the stream has {size:,} bytes; {header} is not among them")
    return first, min(last + 1, size)


async def _ahead(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The parts, each read on a thread while the one before it is sent."""
    reading = asyncio.ensure_future(run_in_threadpool(next, parts, None))
    try:
        while (part := await reading) is not None:
            reading = asyncio.ensure_future(run_in_threadpool(next, parts, None))
            yield part
    finally:
        await asyncio.wait({reading})
        if not reading.cancelled():
            reading.exception()  # seen


class _Stream(StreamingResponse):
    """A stream that holds a slot. It breaks off when an image was deleted meanwhile, or when the client takes nothing.

    The client sees fewer bytes than the Content-Length says.
    """

    def __init__(
        self, parts: AsyncIterator[bytes], slot: ExitStack, status: int, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(parts, status, headers, media_type)
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), STALLED_SECONDS)

        with self._slot:
            try:
                await super().__call__(scope, receive, send_in_time)
            except (CouldNot, TimeoutError, ClientDisconnect):
                return
