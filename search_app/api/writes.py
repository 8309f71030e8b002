"""Writes over HTTP: the body as a model, the Idempotency-Key, the caller's row in the audit log, the JSON response.

A route is one function from the body to what the response has:

    @router.post("/v1/slices", status_code=201, openapi_extra=writes.body(NewSlice, example), ...)
    async def create(request: Request) -> Response:
        def write(new: NewSlice, audit: Audit) -> dict[str, Any]: ...
        return await service_writes.run(request, NewSlice, write, 201)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict

from lake.access import audit
from lake.sql.tables import plain
from search_app.api import bodies, schemas
from search_app.api.problems import JSON, Problem
from search_app.backend.receipts import Receipt, Receipts

if TYPE_CHECKING:
    from search_app.api.service import Service
    from search_app.security.audit_log import AuditLog

Model = TypeVar("Model", bound=BaseModel)

BODY_BYTES = 16 << 20


class Audit(Protocol):
    """Records what was done, to what, by this request's caller."""

    def __call__(self, action: str, target: str | None, detail: dict[str, Any] | None = None) -> None: ...


class Body(BaseModel):
    """The base of bodies: an unknown field is refused, and so is a value of another type, such as 0 for false."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NoBody(Body):
    """For writes that need no body: none, or an empty object."""


class Writes:
    """Runs the writes of a server on threads, each at most once for an Idempotency-Key."""

    def __init__(self, service: Service, log: AuditLog) -> None:
        self._service = service
        self._log = log
        self._receipts = Receipts(service.lake)
        self._in_flight: dict[str, bytes] = {}

    async def run(
        self, request: Request, kind: type[Model], write: Callable[[Model, Audit], Any], status: int = 200
    ) -> Response:
        """The response with what `write` returns for the body, as JSON; `write` runs on a thread.

        With an Idempotency-Key, the same request within seven days gets the first response again. Raises Problem: 422
        for another request under the key or a wrong body, 409 while the first is in flight, 413 and 415 for the body.
        """
        key = bodies.idempotency_key(request.scope)
        body = await bodies.read_query(request.scope, request.receive, BODY_BYTES, self._service.admission)
        if body:
            media = bodies.media_type(request.scope)
            if media != JSON:
                raise Problem(415, "media_type", f"send {JSON}, not {media or 'no type'!r:.80}")
        parsed = await bodies.aside(len(body), bodies.parsed_as, kind, body or b"{}")
        audit_row = self._auditor(request)

        def done() -> Receipt:
            document = json.dumps(plain(write(parsed, audit_row)), ensure_ascii=False, allow_nan=False)
            return Receipt(digest, status, document.encode("utf-8", "replace"))

        address = f"{request.method} {request.url.path}?{request.url.query}"
        digest = await bodies.aside(len(body), bodies.digest, address.encode(), body)
        receipt = await (run_in_threadpool(done) if key is None else self._once(key, digest, done))
        return Response(receipt.body, receipt.status, media_type=JSON, headers={"Cache-Control": "no-store"})

    async def _once(self, key: str, digest: bytes, done: Callable[[], Receipt]) -> Receipt:
        def find_or_write() -> Receipt:
            receipt = self._receipts.find(key)
            if receipt is None:
                receipt = done()
                self._receipts.keep(key, receipt)
            return receipt

        running = self._in_flight.get(key)
        if running == digest:
            raise Problem(409, "in_flight", "a request with this Idempotency-Key is being worked on; try again", 1)
        if running is None:
            self._in_flight[key] = digest
            try:
                receipt = await run_in_threadpool(find_or_write)
            finally:
                del self._in_flight[key]
            if receipt.digest == digest:
                return receipt
        raise Problem(422, "other_request", "this Idempotency-Key was used for another request")

    def _auditor(self, request: Request) -> Audit:
        key_id = bodies.key_id(request.scope)

        def record(action: str, target: str | None, detail: dict[str, Any] | None = None) -> None:
            self._log.put(audit.entry(action, target, key_id=key_id, detail=plain(detail)))

        return record


def body(kind: type[BaseModel], *examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that `run` serves: the schema of its body, examples, the Idempotency-Key."""
    schema = kind.model_json_schema()
    content: dict[str, Any] = {"schema": schema}
    if examples:
        content["examples"] = {f"example {number}": {"value": value} for number, value in enumerate(examples, 1)}
    extra = schemas.request({JSON: content}, storing=True)
    extra["requestBody"]["required"] = bool(schema.get("required"))
    return extra
