"""The HTTP API under /v1: pictures by URL, one image's record, query images, status.

A route translates between HTTP and the lake; status codes live nowhere else. Errors are
application/problem+json. Routes that read the lake are plain functions, so they run in the thread pool and
never hold up the event loop. It knows nothing of Streamlit, and writes nothing but query images.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from lake import summary
from lake.errors import BadInput, LakeloopError, UnreadableImage
from search_app import query_images
from search_app.records import record
from search_app.uploads import Uploads

if TYPE_CHECKING:
    from lake.store import Lake

UPLOAD_LIMIT = 32 * 2**20
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
    "Content-Security-Policy": "default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_api(lake: Lake) -> FastAPI:
    """The API over one open lake. Nothing is global: two apps over two lakes can live in one process."""
    uploads = Uploads()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        uploads.close()

    api = FastAPI(title="lakeloop", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json", lifespan=lifespan)
    queries = query_images.beside(lake.uri)
    _answer_errors_as_problems(api)

    @api.get("/v1/thumbnails/{image_id}")
    def thumbnail(image_id: str, request: Request) -> Response:
        """The small JPEG of an image, cacheable for ever: an id is the hash of what it names."""
        data = lake.thumbnail(_checked(image_id))
        if data is None:
            raise HTTPException(404, f"no image {image_id}")
        return _picture(data, "image/jpeg", f"{image_id}-t", request)

    @api.get("/v1/images/{image_id}")
    def image(image_id: str, request: Request, view: bool = False) -> Response:
        """The stored bytes. With `?view=1`, formats no browser shows come as JPEG."""
        stored = lake.image(_checked(image_id))
        if stored is None:
            raise HTTPException(404, f"no image {image_id}")
        kind = stored.format.upper()
        if view and not _shown_by_browsers(kind, stored.data):
            return _picture(uploads.jpeg(stored.data), "image/jpeg", f"{image_id}-v", request)
        media = _BROWSER_TYPES.get(kind) or _OTHER_TYPES.get(kind, "application/octet-stream")
        return _picture(stored.data, media, image_id, request)

    @api.get("/v1/records/{image_id}")
    def image_record(image_id: str) -> dict[str, Any]:
        """Everything known about one image: predictions, labels, slices."""
        found = record(lake, _checked(image_id))
        if found is None:
            raise HTTPException(404, f"no image {image_id}")
        return found

    @api.post("/v1/queries", status_code=201)
    async def add_query(request: Request) -> dict[str, str]:
        """Keep an image (the raw body) to search by; answers its `query_id`."""
        body = await _image_body(request)
        jpeg = await run_in_threadpool(uploads.jpeg, body)
        return {"query_id": await run_in_threadpool(queries.put, jpeg)}

    @api.get("/v1/queries/{query_id}")
    def query(query_id: str, request: Request) -> Response:
        """A query image that was uploaded earlier, as JPEG."""
        data = queries.get(_checked(query_id))
        if data is None:
            raise HTTPException(404, f"no query image {query_id}; upload it again")
        return _picture(data, "image/jpeg", f"{query_id}-q", request)

    @api.get("/v1/status")
    def status() -> dict[str, Any]:
        """Counts, models and embedding progress of the lake."""
        return dict(summary.status(lake))

    @api.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @api.get("/readyz")
    def readyz() -> dict[str, Any]:
        """The lake answers."""
        return {"status": "ok", "version": lake.version("predictions")}

    return api


def problem(status: int, detail: str) -> JSONResponse:
    """An RFC 9457 answer: `detail` says what was wrong and the way out."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


def _answer_errors_as_problems(api: FastAPI) -> None:
    @api.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: StarletteHTTPException) -> Response:
        answer = problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")

    @api.exception_handler(LakeloopError)
    async def lake_error(request: Request, error: LakeloopError) -> Response:
        match error:
            case UnreadableImage() | BadInput():
                return problem(422, str(error))
            case _:
                return problem(503, str(error))


def _checked(image_id: str) -> str:
    if not _ID.fullmatch(image_id):
        raise HTTPException(422, f"an image id is 64 hexadecimal digits in lower case, not {image_id[:80]!r}")
    return image_id


async def _image_body(request: Request) -> bytes:
    """The raw body, refused by type and by size before anything looks inside it."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if not kind.startswith("image/"):
        raise HTTPException(415, f"send the image itself as the body with an image/* type, not {kind or 'no type'!r}")
    too_large = HTTPException(413, f"a query image may be {UPLOAD_LIMIT // 2**20} MB at most")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > UPLOAD_LIMIT:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > UPLOAD_LIMIT:
            raise too_large
    if not body:
        raise HTTPException(422, "the body is empty; send the image itself")
    return bytes(body)


def _shown_by_browsers(kind: str, data: bytes) -> bool:
    """Whether every browser shows it as it is. JPEGs in CMYK and 16-bit PNGs are shown with wrong colours."""
    if kind == "PNG":
        return data[24:25] != b"\x10"  # bit depth in IHDR
    return kind in _BROWSER_TYPES


def _picture(data: bytes, media: str, tag: str, request: Request) -> Response:
    headers = {**_ONLY_A_PICTURE, "Cache-Control": FOR_EVER, "ETag": f'"{tag}"'}
    if f'"{tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media, headers=headers)
