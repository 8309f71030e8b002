"""POST /v1/search: the images most like an example, as JSON or Arrow."""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from lake import tables
from lake.errors import BadInput
from search_app.api.batch import ARROW

if TYPE_CHECKING:
    from search_app.api.service import Service
    from search_app.uploads import Uploads

Ids = Annotated[list[str], Field(max_length=1_000)]


class Query(BaseModel):
    """Exactly one kind of example: `ids` (image or prediction ids), an image, or a text."""

    model_config = ConfigDict(extra="forbid")

    ids: Ids = Field(default=[], description="image or prediction ids to be like; their vectors are averaged")
    unlike: Ids = Field(default=[], description="ids to be unlike; only beside `ids`")
    image_base64: str | None = Field(default=None, description="an image file to be like")
    text: str | None = Field(default=None, max_length=10_000, description="with an embedder that can (CLIP)")
    k: int = Field(default=20, ge=1, le=10_000, description="number of results")
    where: str | None = Field(default=None, max_length=20_000, description="SQL filter on predictions")
    embedder: str | None = Field(default=None, max_length=200, description="default: the lake's first")
    columns: Annotated[list[str], Field(max_length=100)] = Field(default=[], description="more columns of predictions")


def routes(service: Service, uploads: Uploads) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/search")
    def find(query: Query, request: Request) -> Any:
        """The k images most like the example, best first. `Accept` chooses JSON or an Arrow stream."""
        from embeddings import embedder as embedders
        from embeddings.search import search
        from search_app import networks

        example: dict[str, Any] = {"ids": query.ids, "unlike": query.unlike, "text": query.text}
        if query.image_base64 is not None:
            example["image"] = uploads.jpeg(_decoded(query.image_base64))
        if query.image_base64 is not None or query.text is not None:
            name = embedders.record_of(service.lake, query.embedder).name
            example["model"] = networks.loaded(service.lake, name)
        found = search(
            service.lake, **example, embedder=query.embedder, k=query.k, where=query.where, columns=query.columns
        )
        if ARROW in request.headers.get("accept", ""):
            return Response(_stream(found), media_type=ARROW)
        return {"results": tables.rows(found)}

    return router


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadInput(f"image_base64 is not Base64: {error}") from error


def _stream(table: Any) -> bytes:
    import pyarrow as pa

    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()
