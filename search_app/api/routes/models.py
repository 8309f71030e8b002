"""POST /v1/models/{model}:predict: a registered model's prediction for an image; it is not stored."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from lake import ids
from lake.errors import BadInput
from lake.images import decode
from lake.images.image_header import read_header
from lake.prediction_logs import prediction_rows
from search_app.api import bodies, schemas
from search_app.api.problems import JSON, Problem
from search_app.api.routes.pictures import checked
from search_app.api.schemas import ModelName
from search_app.backend.model_server import Busy

if TYPE_CHECKING:
    from search_app.api.service import Service
    from search_app.backend.canaries import Source
    from search_app.backend.model_server import ModelServer

PATH = "/v1/models/{model}:predict"
MOST_VERSION = 2**31 - 1
_IMAGE_REFERENCE = {
    "type": "object",
    "required": ["image_id"],
    "properties": {"image_id": schemas.IMAGE_ID},
    "additionalProperties": False,
}


class PredictionResponse(BaseModel):
    """One prediction. Its output fields are those of the table samples; null or empty if the task has none."""

    prediction_id: uuid.UUID = Field(description="new; log the prediction under it")
    image_id: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the bytes")
    model: str
    model_version: str
    run: str = Field(description="the training run that made the version")
    task: Literal["classification", "detection", "segmentation"]
    label: str | None = None
    confidence: float | None = Field(default=None, description="0 to 1")
    scores: list[dict[str, Any]] = Field(default=[], description="label and score, the highest first")
    boxes: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    latency_ms: float = Field(description="from the complete request to the prediction, milliseconds")


def routes(service: Service, model_server: ModelServer) -> APIRouter:
    router = APIRouter()

    @router.post(
        PATH,
        response_class=Response,
        openapi_extra=schemas.request({**schemas.IMAGE, **schemas.json_body(_IMAGE_REFERENCE)}),
        responses={200: {"model": PredictionResponse, "description": "the prediction, which is not stored"}},
    )
    async def predict(
        model: ModelName, request: Request, version: Annotated[int | None, Query(ge=1, le=MOST_VERSION)] = None
    ) -> Response:
        """The prediction of a model's promoted version, or of `version`, for an image. It is not logged.

        While the model has a canary, that one predicts a share of the images, chosen by a hash of the image.
        """
        scope = request.scope
        kind = bodies.media_type(scope)
        if not kind.startswith("image/") and kind != JSON:
            detail = f'send the image itself with an image/* type, or {{"image_id": ...}} as {JSON}'
            raise Problem(415, "media_type", f"{detail}, not {kind or 'no type'!r:.80}")
        source = await run_in_threadpool(_source, model_server, _full_name(model, version))
        most = bodies.EVENT_BYTES if kind == JSON else bodies.IMAGE_BYTES
        body = await bodies.read_query(scope, request.receive, most, service.admission)
        started = time.perf_counter()
        if kind == JSON:
            image_id = _image_id(bodies.json_object(body, "the body"))
            data = await run_in_threadpool(_stored, service, image_id)
        else:
            data = body
            image_id = await bodies.aside(len(data), ids.image_id, data)
        read_header(data, decode.MAX_MEGAPIXELS)  # refuses bad images before they wait in the queue
        try:
            version_used, trial = source.choose(image_id)
            run, prediction = await asyncio.wrap_future(model_server.submit(version_used.run, image_id, data, trial))
        except Busy as error:
            raise Problem(429, "busy", str(error), 1) from error
        if run != version_used.run:  # the canary failed
            version_used = source.version
        document: dict[str, Any] = {
            "prediction_id": str(uuid.uuid4()),
            "image_id": image_id,
            "model": version_used.model,
            "model_version": str(version_used.version),
            "run": version_used.run,
            "task": version_used.task,
            **{name: value for name, value in prediction.row().items() if name in prediction_rows.OUTPUT},
            "latency_ms": round(1_000 * (time.perf_counter() - started), 3),
        }
        return Response(json.dumps(document, ensure_ascii=False, allow_nan=False), media_type=JSON)

    return router


def _full_name(model: str, version: int | None) -> str:
    if version is None:
        return model
    if "@" in model:
        raise Problem(422, "invalid", f"the version is given twice: {model[:120]!r} and version={version}")
    return f"{model}@{version}"


def _source(model_server: ModelServer, name: str) -> Source:
    try:
        return model_server.source(name)
    except BadInput as error:
        raise Problem(404, "unknown_model", str(error)) from error


def _image_id(fields: dict[str, Any]) -> str:
    image_id = fields.get("image_id")
    if not isinstance(image_id, str) or len(fields) > 1:
        raise Problem(422, "invalid", 'the body must be {"image_id": ...} and nothing else, or the image itself')
    return checked(image_id)


def _stored(service: Service, image_id: str) -> bytes:
    image = service.lake.image(image_id)
    data = image.data if image is not None else service.waiting_image(image_id)
    if data is None:
        raise Problem(404, "unknown_image", f"no image {image_id}")
    return data
