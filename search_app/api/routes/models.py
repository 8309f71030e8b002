"""POST /v1/models/{model}:predict: a registered model's answer to an image. Nothing is stored: the client logs it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from lake import ids
from lake.errors import BadInput
from lake.images import decode
from lake.images.image_header import read_header
from search_app.api import bodies
from search_app.api.problems import JSON, Problem
from search_app.api.routes.pictures import checked
from search_app.backend.model_server import Busy

if TYPE_CHECKING:
    from search_app.api.service import Service
    from search_app.backend.model_server import ModelServer
    from training.inference.served_model import Source

PATH = "/v1/models/{model}:predict"
MOST_VERSION = 2**31 - 1
# An answer as the table predictions has it, null or empty where the task has no such thing.
_PARTS = ("label", "confidence", "scores", "boxes", "masks")


def routes(service: Service, answerers: ModelServer) -> APIRouter:
    router = APIRouter()

    @router.post(PATH, response_class=Response)
    async def predict(
        model: str, request: Request, version: Annotated[int | None, Query(ge=1, le=MOST_VERSION)] = None
    ) -> Response:
        """What the promoted version of a model, or the version asked for, says of an image. It is not logged."""
        scope = request.scope
        kind = bodies.media_type(scope)
        if not kind.startswith("image/") and kind != JSON:
            detail = f'send the image itself with an image/* type, or {{"image_id": ...}} as {JSON}'
            raise Problem(415, "media_type", f"{detail}, not {kind or 'no type'!r:.80}")
        who = await run_in_threadpool(_source, answerers, _named(model, version))
        most = bodies.EVENT_BYTES if kind == JSON else bodies.IMAGE_BYTES
        body = await bodies.read_question(scope, request.receive, most, service.admission)
        started = time.perf_counter()
        if kind == JSON:
            image_id = _image_id(bodies.json_object(body, "the body"))
            data = await run_in_threadpool(_stored, service, image_id)
        else:
            data = body
            image_id = await bodies.aside(len(data), ids.image_id, data)
        read_header(data, decode.MAX_MEGAPIXELS_HTTP)  # what it tells need not wait in line
        try:
            answer = await asyncio.wrap_future(answerers.submit(who.run, image_id, data))
        except Busy as error:
            raise Problem(429, "busy", str(error), 1) from error
        said: dict[str, Any] = {
            "prediction_id": str(uuid.uuid4()),
            "image_id": image_id,
            "model": who.model,
            "model_version": str(who.version),
            "run": who.run,
            "task": who.task,
            **{name: value for name, value in answer.row().items() if name in _PARTS},
            "latency_ms": round(1_000 * (time.perf_counter() - started), 3),
        }
        return Response(json.dumps(said, ensure_ascii=False, allow_nan=False), media_type=JSON)

    return router


def _named(model: str, version: int | None) -> str:
    if version is None:
        return model
    if "@" in model:
        raise Problem(422, "invalid", f"the version is given twice: {model[:120]!r} and version={version}")
    return f"{model}@{version}"


def _source(answerers: ModelServer, name: str) -> Source:
    try:
        return answerers.source(name)
    except BadInput as error:
        raise Problem(404, "unknown_model", str(error)) from error


def _image_id(given: dict[str, Any]) -> str:
    name = given.get("image_id")
    if not isinstance(name, str) or len(given) > 1:
        raise Problem(422, "invalid", 'the body is to be {"image_id": ...} and nothing else, or the image itself')
    return checked(name)


def _stored(service: Service, image_id: str) -> bytes:
    found = service.lake.image(image_id)
    data = found.data if found is not None else service.waiting_image(image_id)
    if data is None:
        raise Problem(404, "unknown_image", f"no image {image_id}")
    return data
