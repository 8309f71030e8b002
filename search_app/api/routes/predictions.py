"""POST /v1/predictions: one prediction of a model with its image, safe on disk before the response.

The hot path: plain ASGI in front of the framework, because this route takes nearly all requests of a live system.
It checks size, magic bytes, header dimensions and the event itself; it decodes no pixels.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from lake import ids
from lake.images import decode
from lake.images.image_header import read_header, upright_sizes
from lake.spool import events
from search_app.api import bodies, schemas
from search_app.api.problems import JSON, MEDIA_TYPE, ClientGone, Problem, problem_of, send_response
from search_app.api.prometheus import CLAMPED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from lake.spool.events import Event
    from lake.spool.journal import Outcome
    from search_app.api.service import Service

_log = logging.getLogger(__name__)

PATH = "/v1/predictions"
HEADER = "Lakeloop-Event"
HEADER_BYTES = 8 << 10

_STATUS = {"stored": 201, "known": 200}
_RESPONSE = {
    "type": "object",
    "required": ["prediction_id", "image_id", "status"],
    "properties": {
        "prediction_id": schemas.TEXT,
        "image_id": schemas.TEXT,
        "status": {"enum": ["stored", "known"]},
        "clamped": {
            "type": "integer",
            "description": "confidences and scores less than 0.0001 outside of 0 to 1, stored as 0 or 1; absent: none",
        },
    },
}
# The framework does not serve this route, so its entry in the OpenAPI document is written here.
OPERATION: dict[str, Any] = {
    "summary": "Add Prediction",
    "description": "One prediction with its image, safe on disk before the response.",
    "operationId": "add_prediction",
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "required": False,
            "content": schemas.json_body(schemas.EVENT),
            "description": f"the event as ASCII JSON, if the body is an image; at most {HEADER_BYTES:,} bytes",
        },
        schemas.IDEMPOTENCY_KEY,
    ],
    "requestBody": {
        "required": True,
        "content": {**schemas.IMAGE, **schemas.json_body(schemas.EVENT_NAMING_ITS_IMAGE)},
    },
    "responses": {
        "201": {"description": "stored, and safe on disk", "content": schemas.json_body(_RESPONSE)},
        "200": {"description": "known already", "content": schemas.json_body(_RESPONSE)},
        "431": {},
    },
}


class Predictions:
    """ASGI app that handles POST /v1/predictions itself and passes everything else on."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        scope["lakeloop_route"] = PATH
        if scope["method"] != "POST":
            wrong = Problem(405, "method_not_allowed", f"{PATH} takes POST")
            await send_response(send, wrong.status, wrong.body(), MEDIA_TYPE, {"Allow": "POST"})
            return
        try:
            status, body = await self._accept(scope, receive)
        except ClientGone:
            return
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                _log.exception("a prediction could not be accepted")
                problem = Problem(500, "fault", "an internal error of the server; it was logged")
            scope[REFUSED] = [problem.reason]
            await problem.send(send)
            return
        await send_response(send, status, body)

    async def _accept(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        """Reads and checks the request, stores its event, builds the response."""
        kind = bodies.media_type(scope)
        key = bodies.idempotency_key(scope)
        if kind == JSON:
            event, request = await self._event_naming_its_image(scope, receive)
        elif kind.startswith("image/"):
            event, request = await self._event_with_image(scope, receive)
        else:
            raise Problem(
                415, "media_type",
                f"send the image as the body with an image/* type and the event in the header {HEADER}, or the event "
                f"as application/json, not {kind or 'no type'!r:.80}",
            )  # fmt: skip
        digest = b"" if key is None else bodies.digest(PATH.encode(), kind.encode(), request)
        facts = facts_of(event)
        scope[CLAMPED] = event.clamped
        return response(*await self.service.store([event], facts, key, digest))

    async def _event_naming_its_image(self, scope: Scope, receive: Receive) -> tuple[Event, bytes]:
        """The event of a JSON body, and the bytes that distinguish the request from another."""
        service = self.service
        body = await bodies.read(scope, receive, bodies.EVENT_BYTES, service.admission)
        fields = await bodies.aside(len(body), bodies.json_object, body, "the event")
        image_id = named_image(fields)
        if await service.unknown_images([image_id]):
            raise unknown_image(image_id)
        key_id = bodies.key_id(scope)
        event = await bodies.aside(len(body), events.prediction, fields, service.promoted, image_id, None, key_id)
        if event.mask_sizes:
            sizes = await asyncio.to_thread(service.image_sizes, [image_id])
            events.check_masks(event, sizes.get(image_id))
        return event, body

    async def _event_with_image(self, scope: Scope, receive: Receive) -> tuple[Event, bytes]:
        """The event of a header and an image body, and the bytes that distinguish the request from another."""
        text = bodies.header(scope, b"lakeloop-event")
        if text is None:
            raise Problem(422, "no_event", f"the event is missing: send it as JSON in the header {HEADER}")
        if len(text) > HEADER_BYTES:
            raise Problem(
                431, "event_too_large",
                f"the header {HEADER} has {len(text):,} bytes, {HEADER_BYTES:,} are the most: send the image to "
                f"/v1/images first, then the event as application/json naming its image_id",
            )  # fmt: skip
        fields = bodies.json_object(text, f"the header {HEADER}")
        body = await bodies.read(scope, receive, bodies.IMAGE_BYTES, self.service.admission)
        event = await bodies.aside(len(body), with_image, fields, body, self.service, bodies.key_id(scope))
        return event, text + event.image_id.encode()


def named_image(fields: dict[str, Any]) -> str:
    """The event's image_id. Raises Problem if it has none or a malformed one."""
    image_id = fields.get("image_id")
    if not isinstance(image_id, str) or not ids.is_image_id(image_id):
        raise Problem(422, "no_image", f"image_id is {image_id!r:.80}, not 64 hexadecimal digits in lower case")
    return image_id


def with_image(fields: dict[str, Any], data: bytes, service: Service, key_id: str | None) -> Event:
    """The event of a prediction that came with its image. Raises Problem, BadInput, UnreadableImage."""
    if len(data) > bodies.IMAGE_BYTES:
        raise bodies.too_large(bodies.IMAGE_BYTES, "an image")
    read_header(data, decode.MAX_MEGAPIXELS)
    image_id = ids.image_id(data)
    if fields.get("image_id") not in (None, image_id):
        raise Problem(422, "other_image", "image_id is not the SHA-256 of the image that was sent")
    event = events.prediction(fields, service.promoted, image_id, data, key_id)
    if event.mask_sizes:
        events.check_masks(event, upright_sizes(data))
    return event


def facts_of(event: Event) -> dict[str, Any]:
    """What the response says of an event beside its status."""
    clamped = {"clamped": event.clamped} if event.clamped else {}
    return {"prediction_id": event.event_id, "image_id": event.image_id, **clamped}


def response(facts: dict[str, Any], outcomes: Sequence[Outcome]) -> tuple[int, bytes]:
    """Status and body for one stored event. Raises Problem for another event under a used id."""
    if outcomes[0] == "contradiction":
        raise contradiction(facts["prediction_id"])
    return _STATUS[outcomes[0]], json.dumps({**facts, "status": outcomes[0]}).encode()


def contradiction(event_id: str) -> Problem:
    return Problem(422, "contradiction", f"another event is stored under the id {event_id}")


def unknown_image(image_id: str) -> Problem:
    return Problem(422, "unknown_image", f"no image {image_id} is stored: send it to /v1/images first")
