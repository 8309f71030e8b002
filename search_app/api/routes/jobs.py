"""/v1/jobs: starts, lists and shows long work, streams its progress, cancels it and starts it again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from lake.access import keys
from lake.errors import BadInput
from lake.jobs import current, record
from lake.jobs.job import Job, Starter
from search_app.api import bodies, schemas, writes
from search_app.api.paging import Cursor, Key, Limit, newest_first, page
from search_app.api.problems import Problem, not_found
from search_app.jobs import kinds, starting, supervisor

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from search_app.api.service import Service
    from search_app.api.writes import Audit, Writes

PATH = "/v1/jobs"
STREAM = "text/event-stream"
# Of one event of the stream.
_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["job"]},
        "data": {"type": "string", "description": "the job, as JSON, as GET /v1/jobs/{job} returns it"},
    },
    "required": ["event", "data"],
}
# A stream looks this often; a listener that hears nothing for a while may think that the server is gone.
LOOK_SECONDS = 0.5
SILENCE_SECONDS = 15.0
MOST_LISTENERS = 64
JobId = Annotated[str, Path(max_length=100, description="a job's id, or a unique beginning of it",
                            json_schema_extra={"pattern": "^[0-9a-f]{1,12}$"})]  # fmt: skip
Remote = Literal["embed", "cluster", "map", "discover", "duplicates", "export", "train", "tune", "evaluate", "gate", "maintain"]  # fmt: skip  # noqa: E501
_EXAMPLE = {
    "id": "2a50a43bd026", "kind": "embed", "arguments": {"order": "oldest"}, "state": "running", "attempt": 1,
    "may_continue": False,
    "created_at": "2026-11-30T20:00:00+00:00", "changed_at": "2026-11-30T20:00:02+00:00", "user": None,
    "key_id": "k3v1d0q8x2m7", "host": "gpu-1", "message": None, "error": None, "result": None,
    "progress": {"done": 1200, "total": 4000, "unit": "images", "share": 0.3, "stage": "", "facts": {}},
    "seconds": 60.0, "seconds_left": 140.0, "cancelled_by": None,
}  # fmt: skip


def _by_kind(schema: dict[str, Any]) -> None:
    """Describes the arguments of each kind."""
    schema["oneOf"] = []
    for kind in kinds.KINDS.values():
        if not kind.remote:
            continue
        remote = {name: argument for name, argument in kind.arguments.items() if not argument.local}
        arguments = {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: argument.schema() for name, argument in remote.items()},
            "required": [name for name, argument in remote.items() if argument.required],
        }
        properties = {"kind": {"const": kind.name}, "arguments": arguments}
        schema["oneOf"].append({"title": kind.title, "description": f"needs the scope {kind.scope}",
                                "properties": properties})  # fmt: skip


class NewJob(BaseModel):
    """Long work to start. Its arguments are checked now, as the command of the same name checks them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_by_kind)

    kind: Remote
    arguments: dict[str, Any] = Field(default={}, description="as the kind takes them; files of the server are refused")


def routes(service: Service, writer: Writes) -> APIRouter:
    router = APIRouter()
    lake = service.lake
    listeners = asyncio.Semaphore(MOST_LISTENERS)

    @router.get(PATH, responses=schemas.page_of(_EXAMPLE))
    def list_jobs(
        limit: Limit = 100,
        cursor: Cursor = None,
        state: Literal["waiting", "running", "done", "failed", "cancelled"] | None = None,
        kind: Annotated[str | None, Query(max_length=100, description="only jobs of this kind")] = None,
    ) -> dict[str, Any]:
        """Jobs, newest first."""
        places = current.places(lake, states=[state] if state else [], kinds=[kind] if kind else [])
        part, following = page(places, _place, cursor, limit)
        return {"items": [job.facts() for job in current.at_places(lake, part)], "next": following}

    @router.post(
        PATH,
        status_code=201,
        response_class=Response,
        openapi_extra=writes.body(NewJob, {"kind": "export", "arguments": {"slice": "rainy@2", "format": "coco"}}),
        responses={201: {"description": "the job, waiting", "content": schemas.example(_EXAMPLE)}},
    )
    async def start(request: Request) -> Response:
        """Starts a job. A worker process takes it when its turn comes; `GET /v1/jobs/{job}/events` follows it."""
        by, repeated = Starter(key_id=bodies.key_id(request.scope)), bodies.idempotency_key(request.scope)

        def write(new: NewJob, audit: Audit) -> dict[str, Any]:
            kind = kinds.get(new.kind)
            _allow(by, kind.scope, f"start {kind.name}")
            job = starting.start(lake, kind.name, new.arguments, by, request=repeated)
            audit("job start", job.id, {"kind": kind.name})
            return job.facts()

        return await writer.run(request, NewJob, write, 201)

    @router.get(PATH + "/{job}", responses=schemas.documented(_EXAMPLE))
    def show(job: JobId) -> dict[str, Any]:
        """One job, with its progress and an estimate of the seconds left."""
        return _get(job).facts()

    @router.get(
        PATH + "/{job}/events",
        response_class=StreamingResponse,
        responses={
            200: {"description": "a job at each change", "content": {STREAM: {"schema": _EVENT}}},
            429: {"description": "too many listeners"},
        },
    )
    async def events(job: JobId) -> StreamingResponse:
        """The job as Server-Sent Events: once now, then at each change of its state or progress, until it has ended."""
        found = await run_in_threadpool(_get, job)
        if listeners.locked():
            raise Problem(429, "too_many_listeners", f"{MOST_LISTENERS} streams are open; ask for the job instead", 5)
        await listeners.acquire()  # at once: what others open meanwhile is counted
        return _Listened(_stream(found), listeners)

    @router.post(
        PATH + "/{job}/cancel",
        response_class=Response,
        openapi_extra=writes.body(writes.NoBody),
        responses=schemas.documented(_EXAMPLE),
    )
    async def cancel(job: JobId, request: Request) -> Response:
        """Cancels a job: at once if it waits; a running one ends within seconds, and `cancelled_by` says who asked."""

        def write(_: writes.NoBody, audit: Audit) -> dict[str, Any]:
            return _change(job, "cancel", request, audit)

        return await writer.run(request, writes.NoBody, write)

    @router.post(
        PATH + "/{job}/retry",
        response_class=Response,
        openapi_extra=writes.body(writes.NoBody),
        responses=schemas.documented(_EXAMPLE | {"state": "waiting", "attempt": 2, "progress": None}),
    )
    async def retry(job: JobId, request: Request) -> Response:
        """Starts a failed or cancelled job again. It continues what the last attempt left, where its kind can."""

        def write(_: writes.NoBody, audit: Audit) -> dict[str, Any]:
            return _change(job, "retry", request, audit)

        return await writer.run(request, writes.NoBody, write)

    def _change(name: str, verb: Literal["cancel", "retry"], request: Request, audit: Audit) -> dict[str, Any]:
        job, by = _get(name), Starter(key_id=bodies.key_id(request.scope))
        _allow(by, kinds.scope(job.kind), f"{verb} {job.kind}")
        try:
            changed = record.cancel(lake, job.id, by) if verb == "cancel" else record.retry(lake, job.id, by)
        except BadInput as error:
            raise Problem(409, "wrong_state", str(error)) from error
        audit(f"job {verb}", job.id, {"kind": job.kind})
        if verb == "retry":
            supervisor.ensure(lake)
        return changed.facts()

    async def _stream(job: Job) -> AsyncIterator[bytes]:
        sent, silent = "", 0.0
        while True:
            facts = job.facts()
            text = json.dumps(facts, ensure_ascii=False)
            moving = ("seconds", "seconds_left")
            content = json.dumps({name: value for name, value in facts.items() if name not in moving})
            if content != sent:
                yield f"event: job\ndata: {text}\n\n".encode()
                sent, silent = content, 0.0
            elif silent >= SILENCE_SECONDS:
                yield b": still here\n\n"
                silent = 0.0
            if (job.finished and not job.may_continue) or service.stopping:
                return
            await asyncio.sleep(LOOK_SECONDS)
            silent += LOOK_SECONDS
            with suppress(OSError):  # a busy disk; the next look may succeed
                job = await run_in_threadpool(current.get, lake, job.id)

    def _get(name: str) -> Job:
        with not_found("unknown_job"):
            return current.get(lake, name)

    def _allow(by: Starter, scope: str, action: str) -> None:
        """The route let every key with `edit` in; what concerns models and the whole lake needs admin."""
        if by.key_id is not None:
            key = keys.snapshot(lake).get(by.key_id)
            if key is None or not key.allows(scope):
                raise Problem(403, "missing_scope", f"a key needs the scope {scope} to {action}")

    return router


class _Listened(StreamingResponse):
    """A stream that gives its listener's place back at its end, also if the client is gone before it begins."""

    def __init__(self, parts: AsyncIterator[bytes], places: asyncio.Semaphore) -> None:
        super().__init__(parts, media_type=STREAM, headers={"Cache-Control": "no-store"})
        self._places = places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._places.release()


def _place(place: current.Place) -> Key:
    return newest_first(place.created_at, place.id)
