"""POST /v1/search: the images most similar to an example, as JSON or Arrow."""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lake.errors import BadInput
from lake.sql import tables
from search_app.api import bodies, schemas
from search_app.api.problems import Problem
from search_app.api.routes.batch import ARROW

if TYPE_CHECKING:
    import pyarrow as pa

    from search_app.api.service import Service
    from search_app.security.uploads import Uploads

Ids = Annotated[list[str], Field(max_length=1_000)]


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("this is true or false, not a number")
    return value


class SearchRequest(BaseModel):
    """Pass exactly one kind of example: `ids` (image or prediction ids), an image, or a text."""

    model_config = ConfigDict(extra="forbid")

    ids: Ids = Field(default=[], description="image or prediction ids to be like; their vectors are averaged")
    unlike: Ids = Field(default=[], description="ids to be unlike; only beside `ids`")
    image_base64: str | None = Field(default=None, description="an image file to be like")
    text: str | None = Field(default=None, max_length=10_000, description="with an embedder that can (CLIP)")
    k: Annotated[int, BeforeValidator(_number)] = Field(default=20, ge=1, le=10_000, description="number of results")
    where: str | None = Field(default=None, max_length=20_000, description="SQL filter on samples")
    embedder: str | None = Field(default=None, max_length=200, description="default: the lake's first")
    columns: Annotated[list[str], Field(max_length=100)] = Field(default=[], description="more columns of samples")


class SearchResults(BaseModel):
    """The images, the most similar first, with the requested columns."""

    results: list[dict[str, Any]]


def routes(service: Service, uploads: Uploads) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/search",
        response_class=Response,
        openapi_extra=schemas.request(schemas.json_body(SearchRequest.model_json_schema())),
        responses={
            200: {
                "model": SearchResults,
                "description": "the images, the most similar first",
                "content": {ARROW: {"schema": schemas.BINARY}},
            }
        },
    )
    async def find(request: Request) -> Response:
        """The k images most similar to the example, best first. `Accept` chooses JSON or an Arrow stream."""
        kind = bodies.media_type(request.scope)
        if kind != "application/json":
            raise Problem(415, "media_type", f"send application/json, not {kind or 'no type'!r:.80}")
        body = await bodies.read_query(request.scope, request.receive, bodies.SEARCH_BYTES, service.admission)
        results = await run_in_threadpool(run_search, bodies.parsed_as(SearchRequest, body))
        if ARROW in request.headers.get("accept", ""):
            return Response(await run_in_threadpool(_stream, results), media_type=ARROW)
        return Response(await run_in_threadpool(_document, results), media_type="application/json")

    def run_search(query: SearchRequest) -> pa.Table:
        from embeddings.embedders import embedder as embedders
        from embeddings.search.search import search
        from search_app.backend import model_cache
        from search_app.security import filter_bounds

        if query.where is not None:
            filter_bounds.check(service.lake, query.where)
        example: dict[str, Any] = {"ids": query.ids, "unlike": query.unlike, "text": query.text}
        if query.image_base64 is not None:
            with service.images.taken():
                example["image"] = uploads.jpeg(_decoded(query.image_base64))
        if query.image_base64 is not None or query.text is not None:
            name = embedders.record_of(service.lake, query.embedder).name
            example["model"] = model_cache.loaded(service.lake, name)
        return search(
            service.lake, **example, embedder=query.embedder, k=query.k, where=query.where, columns=query.columns
        )

    return router


def _document(table: pa.Table) -> bytes:
    return json.dumps({"results": tables.rows(table)}, ensure_ascii=False, allow_nan=False).encode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadInput(f"image_base64 is not Base64: {error}") from error


def _stream(table: pa.Table) -> bytes:
    import pyarrow as pa

    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()
