"""Routes that accept events, apart from the hot path: batches of predictions, images, feedback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from lake import ids
from lake.images import decode
from lake.images.image_header import read_header
from lake.spool import events
from search_app.api import bodies, schemas
from search_app.api.problems import JSON, Problem
from search_app.api.prometheus import CLAMPED, REFUSED
from search_app.api.routes import batch

if TYPE_CHECKING:
    from starlette.types import Scope

    from lake.spool.journal import Outcome
    from search_app.api.service import Service

Fetch = Callable[[str], Awaitable[bytes]]


class ImageUploaded(BaseModel):
    image_id: str
    status: Literal["stored", "known"]


class StoredFeedback(BaseModel):
    event_id: str
    status: Literal["stored", "known"]


_URL = {"type": "object", "required": ["url"], "properties": {"url": schemas.TEXT}}


def stored(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {
        201: {"model": model, "description": "stored, and safe on disk"},
        200: {"model": model, "description": "known already"},
    }


def routes(service: Service, arrow: batch.ArrowReader, fetch: Fetch | None) -> APIRouter:
    """The router. `fetch` gets an image by URL; None if that is not allowed."""
    router = APIRouter()

    @router.post(
        batch.PATH,
        response_class=Response,
        openapi_extra=schemas.request(
            {batch.NDJSON: {"schema": schemas.TEXT}, batch.ARROW: {"schema": schemas.BINARY}}, storing=True
        ),
        responses={200: {"model": batch.BatchResponse, "description": "the status of each item"}},
    )
    async def add_predictions(request: Request) -> Response:
        """Many predictions at once, as NDJSON or an Arrow stream; each has a status of its own."""
        scope = request.scope
        kind = bodies.media_type(scope)
        if kind not in (batch.NDJSON, batch.ARROW):
            raise Problem(415, "media_type", f"send {batch.NDJSON} or {batch.ARROW}, not {kind or 'no type'!r:.80}")
        key = bodies.idempotency_key(scope)
        body = await bodies.read(scope, request.receive, bodies.BATCH_BYTES, service.admission, events=0)
        items: batch.JsonItems | list[batch.Item]
        if kind == batch.NDJSON:
            items = await run_in_threadpool(batch.JsonItems, body)
        else:
            items = await run_in_threadpool(arrow.items, body)
        if not len(items):
            raise Problem(422, "empty", "the batch has no events")
        problem = service.admission.over_rate(len(items))
        if problem is not None:
            raise problem
        names, checked = await run_in_threadpool(batch.checked, items, service, bodies.key_id(scope))
        await batch.refuse_unknown_images(checked, service)
        await run_in_threadpool(batch.refuse_masks_of_other_sizes, checked, service)
        scope[REFUSED] = [event.reason for event in checked if isinstance(event, Problem)]
        scope[CLAMPED] = sum(event.clamped for event in checked if not isinstance(event, Problem))
        accepted = [event for event in checked if not isinstance(event, Problem)]
        facts = {"items": batch.facts(names, checked)}
        digest = await _digest(key, scope, body)
        return _json(*batch.response(*await service.store(accepted, facts, key, digest)))

    @router.get(batch.PATH, include_in_schema=False)
    def not_a_prediction() -> Response:
        """Without this route the word "batch" would be taken for a prediction_id."""
        refused = Problem(405, "method_not_allowed", f"{batch.PATH} takes POST").response()
        refused.headers["Allow"] = "POST"
        return refused

    @router.post(
        "/v1/images",
        response_class=Response,
        status_code=201,
        openapi_extra=schemas.request({**schemas.IMAGE, **schemas.json_body(_URL)}, storing=True),
        responses=stored(ImageUploaded),
    )
    async def add_image(request: Request) -> Response:
        """Store an image by itself, to be named by later events. The raw body, or {"url"} where that is allowed."""
        scope = request.scope
        kind = bodies.media_type(scope)
        key = bodies.idempotency_key(scope)
        source = None
        if kind.startswith("image/"):
            body = data = await bodies.read(scope, request.receive, bodies.IMAGE_BYTES, service.admission)
        elif kind == "application/json":
            body = await bodies.read(scope, request.receive, bodies.EVENT_BYTES, service.admission)
            source = bodies.json_object(body, "the body").get("url")
            if fetch is None:
                raise Problem(403, "url_import_off", "this server does not fetch URLs: send the image as the body")
            if not isinstance(source, str):
                raise Problem(422, "no_url", "url is missing")
            data = await fetch(source)
        else:
            raise Problem(
                415, "media_type", f"send the image itself with an image/* type, not {kind or 'no type'!r:.80}"
            )
        read_header(data, decode.MAX_MEGAPIXELS)
        image_id = await bodies.aside(len(data), ids.image_id, data)
        event = events.image(image_id, data, source, bodies.key_id(scope))
        new = [event] if await service.unknown_images([image_id]) else []
        digest = await _digest(key, scope, body)
        facts, outcomes = await service.store(new, {"image_id": image_id}, key, digest)
        return _single(facts, outcomes[0] if outcomes else "known")

    @router.post(
        "/v1/feedback",
        response_class=Response,
        status_code=201,
        openapi_extra=schemas.request(schemas.json_body(schemas.FEEDBACK), storing=True),
        responses={**stored(StoredFeedback), 404: {}},
    )
    async def add_feedback(request: Request) -> Response:
        """A verdict on a prediction, from a customer. It becomes a review, never a label."""
        scope = request.scope
        kind = bodies.media_type(scope)
        if kind != "application/json":
            raise Problem(415, "media_type", f"send application/json, not {kind or 'no type'!r:.80}")
        key = bodies.idempotency_key(scope)
        body = await bodies.read(scope, request.receive, bodies.EVENT_BYTES, service.admission)
        fields = bodies.json_object(body, "the feedback")
        prediction_id = events.prediction_id(fields)
        image_id = await asyncio.to_thread(service.image_of, prediction_id)
        if image_id is None:
            raise Problem(404, "unknown_prediction", f"no prediction {prediction_id} is stored")
        event = events.feedback(fields, {prediction_id: image_id}, bodies.key_id(scope))

        digest = await _digest(key, scope, body)
        facts, outcomes = await service.store([event], {"event_id": event.event_id}, key, digest)
        if outcomes[0] == "contradiction":
            raise Problem(422, "contradiction", f"another verdict is stored under the id {facts['event_id']}")
        return _single(facts, outcomes[0])

    return router


async def _digest(key: str | None, scope: Scope, body: bytes) -> bytes:
    """Distinguishes the request from another under the same Idempotency-Key; empty without a key."""
    if key is None:
        return b""
    parts = (scope["path"].encode(), bodies.media_type(scope).encode(), body)
    return await bodies.aside(len(body), bodies.digest, *parts)


def _single(facts: dict[str, Any], outcome: Outcome) -> Response:
    return _json(201 if outcome == "stored" else 200, json.dumps({**facts, "status": outcome}).encode())


def _json(status: int, body: bytes) -> Response:
    return Response(body, status, media_type=JSON)
