"""Routes of images: thumbnails and images by id, and the images used as search queries.

An image's id is the hash of its content, so browsers may cache it for ever.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from lake.images import decode
from lake.images.image_header import read_header
from search_app.api import bodies, schemas
from search_app.api.problems import Problem
from search_app.api.schemas import ImageId

if TYPE_CHECKING:
    from search_app.api.service import Service
    from search_app.backend.query_images import QueryImages
    from search_app.security.uploads import Uploads

FOR_EVER = "public, max-age=31536000, immutable"
_ID = re.compile(r"[0-9a-f]{64}")
_BROWSER_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
_OTHER_TYPES = {"TIFF": "image/tiff"}
_ONLY_A_PICTURE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}


_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "the picture", "content": schemas.IMAGE},
    304: {"description": "the picture has the ETag in If-None-Match"},
}


def routes(service: Service, uploads: Uploads, queries: QueryImages) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get("/v1/thumbnails/{image_id}", response_class=Response, responses=_PICTURE)
    def thumbnail(image_id: ImageId, request: Request) -> Response:
        """The small JPEG of an image, cacheable for ever because the id is the hash of the content."""
        data = lake.thumbnail(checked(image_id))
        if data is None:
            raise _no_image(image_id)
        return _picture(data, "image/jpeg", f"{image_id}-t", request)

    @router.get("/v1/images/{image_id}", response_class=Response, responses=_PICTURE)
    def image(image_id: ImageId, request: Request, view: bool = False) -> Response:
        """The stored bytes. With `?view=1`, formats that browsers do not show come as JPEG."""
        stored = lake.image(checked(image_id))
        levels = None if stored is None else stored.levels
        if stored is not None:
            data, kind = stored.data, stored.format.upper()
        else:
            waiting = service.waiting_image(image_id)
            if waiting is None:
                raise _no_image(image_id)
            data, kind = waiting, read_header(waiting, decode.MAX_MEGAPIXELS).format
        if view and not _shown_by_browsers(kind, data):
            with service.images.taken():
                return _picture(uploads.jpeg(data, levels=levels), "image/jpeg", f"{image_id}-v", request)
        media = _BROWSER_TYPES.get(kind) or _OTHER_TYPES.get(kind, "application/octet-stream")
        return _picture(data, media, image_id, request)

    @router.post("/v1/queries", status_code=201, openapi_extra=schemas.request(schemas.IMAGE))
    async def add_query(request: Request) -> dict[str, str]:
        """Keep an image (the raw body) to search by; returns its `query_id`."""
        kind = bodies.media_type(request.scope)
        if not kind.startswith("image/"):
            raise Problem(
                415, "media_type", f"send the image itself with an image/* type, not {kind or 'no type'!r:.80}"
            )
        body = await bodies.read(request.scope, request.receive, bodies.IMAGE_BYTES, service.admission, events=0)
        with service.images.taken():
            jpeg = await run_in_threadpool(uploads.jpeg, body)
        return {"query_id": await run_in_threadpool(queries.put, jpeg)}

    @router.get("/v1/queries/{query_id}", response_class=Response, responses=_PICTURE)
    def query(query_id: ImageId, request: Request) -> Response:
        """A query image that was uploaded earlier, as JPEG."""
        data = queries.get(checked(query_id))
        if data is None:
            raise Problem(404, "unknown_query", f"no query image {query_id}; upload it again")
        return _picture(data, "image/jpeg", f"{query_id}-q", request)

    return router


def checked(image_id: str) -> str:
    """The id. Raises Problem if it is malformed."""
    if not _ID.fullmatch(image_id):
        raise Problem(422, "bad_id", f"an image id is 64 hexadecimal digits in lower case, not {image_id[:80]!r}")
    return image_id


def _no_image(image_id: str) -> Problem:
    return Problem(404, "unknown_image", f"no image {image_id}")


def _shown_by_browsers(kind: str, data: bytes) -> bool:
    """Whether every browser shows the format correctly. CMYK JPEGs and 16-bit PNGs have wrong colours in browsers."""
    if kind == "PNG":
        return data[24:25] != b"\x10"  # bit depth in IHDR
    return kind in _BROWSER_TYPES


def _picture(data: bytes, media: str, tag: str, request: Request) -> Response:
    headers = {**_ONLY_A_PICTURE, "Cache-Control": FOR_EVER, "ETag": f'"{tag}"'}
    if f'"{tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media, headers=headers)
