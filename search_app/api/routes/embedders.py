"""/v1/embedders: what makes the lake's vectors, and from which cosine two images count as near-duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from embeddings.duplicates import threshold
from embeddings.embedders import embedder as embedders
from search_app.api import schemas, writes
from search_app.api.problems import not_found

if TYPE_CHECKING:
    from lake.storage.store import EmbedderRecord
    from search_app.api.service import Service
    from search_app.api.writes import Audit, Writes

PATH = "/v1/embedders"
EmbedderName = Annotated[str, Path(max_length=200, description="an embedder of the lake")]
_EXAMPLE = {
    "name": "efficientnet-lite0", "dim": 1280, "weights_sha256": "5d41402a...", "licence": "Apache-2.0",
    "embeds_text": False, "duplicates_from": 0.999,
}  # fmt: skip


class Threshold(BaseModel):
    """The cosine from which two images are proposed as near-duplicates."""

    model_config = ConfigDict(extra="forbid")

    threshold: float = Field(ge=-1, le=1)


def routes(service: Service, writer: Writes) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses=schemas.documented({"embedders": [_EXAMPLE]}))
    def list_embedders() -> dict[str, Any]:
        """The lake's embedders; the first is used where none is named. `dim` is null until the first image."""
        return {"embedders": [_facts(record) for record in lake.embedders()]}

    @router.put(
        PATH + "/{embedder}/threshold",
        response_class=Response,
        openapi_extra=writes.body(Threshold, {"threshold": 0.999}),
        responses=schemas.documented(_EXAMPLE),
    )
    async def keep(embedder: EmbedderName, request: Request) -> Response:
        """Saves the lake's own threshold of near-duplicates, as `lakeloop duplicates --threshold T --keep` does."""

        def write(new: Threshold, audit: Audit) -> dict[str, Any]:
            with not_found("unknown_embedder"):
                record = embedders.record_of(lake, embedder)
            threshold.save_threshold(lake, new.threshold, embedder=record.name)
            audit("keep duplicates", record.name, {"threshold": new.threshold})
            return _facts(record)

        return await writer.run(request, Threshold, write)

    def _facts(record: EmbedderRecord) -> dict[str, Any]:
        names = [name for name in _EXAMPLE if name != "duplicates_from"]
        return {name: getattr(record, name) for name in names} | {
            "duplicates_from": threshold.threshold_of(lake, record)
        }

    return router
