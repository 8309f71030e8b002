"""Starts training, tuning, evaluation and the gate as jobs: POST /v1/runs, /v1/runs:tune, /v1/evaluations, /v1/gates.

Each is the job of that kind which POST /v1/jobs starts, too; its arguments are the body itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict

from lake.jobs.job import Starter
from search_app.api import bodies, schemas
from search_app.api.problems import JSON
from search_app.jobs import kinds, starting

if TYPE_CHECKING:
    from search_app.api.service import Service
    from search_app.api.writes import Audit, Writes

# path -> kind of job, what it does, an example of its arguments.
STARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "/v1/runs": (
        "train",
        "Starts a training on slices, or resumes a stopped run. The result of the job has its `run`.",
        {"train": ["first"], "recipe": {"kind": "probe"}, "name": "cells"},
    ),
    "/v1/runs:tune": (
        "tune",
        "Starts a search for a better recipe. The result of the job has the best trials.",
        {"train": ["first"], "tried": ["rate=1e-4..1e-2"], "trials": 20, "name": "cells"},
    ),
    "/v1/evaluations": (
        "evaluate",
        "Starts an evaluation of a run on every evaluation and regression slice. The result has its `evaluation`.",
        {"run": "528228c7"},
    ),
    "/v1/gates": (
        "gate",
        "Starts the gate: may the candidate replace the baseline? The result has `gate`, `outcome` and `blocks`.",
        {"candidate": "528228c7", "evaluate": True, "policy": {"margin": 0.02}},
    ),
}
_JOB = {"id": "8f14e45fceea", "kind": "train", "state": "waiting", "attempt": 1, "progress": None, "result": None}


class Arguments(BaseModel):
    """Arguments of a job, which its kind checks."""

    model_config = ConfigDict(extra="allow")


def routes(service: Service, writer: Writes) -> APIRouter:
    router = APIRouter()
    for path, (kind, summary, example) in STARTS.items():
        _add(router, service, writer, path, kind, summary, example)
    return router


def _add(
    router: APIRouter,
    service: Service,
    writer: Writes,
    path: str,
    name: str,
    summary: str,
    example: dict[str, Any],
) -> None:
    kind = kinds.get(name)
    declared = {name: argument for name, argument in kind.arguments.items() if not argument.local}
    schema = {
        "type": "object",
        "properties": {name: argument.schema() for name, argument in declared.items()},
        "required": [name for name, argument in declared.items() if argument.required],
        "additionalProperties": False,
    }
    content = {JSON: {"schema": schema, "examples": {"example 1": {"value": example}}}}

    async def start(request: Request) -> Response:
        by = Starter(key_id=bodies.key_id(request.scope))
        key = bodies.idempotency_key(request.scope)

        def write(given: Arguments, audit: Audit) -> dict[str, Any]:
            job = starting.start(service.lake, kind.name, given.model_dump(), by, request=key)
            audit("job start", job.id, {"kind": kind.name})
            return job.facts()

        return await writer.run(request, Arguments, write, 202)

    router.add_api_route(
        path,
        start,
        methods=["POST"],
        status_code=202,
        name=f"start {name}",
        description=summary,
        response_class=Response,
        openapi_extra=schemas.request(content, storing=True),
        responses={202: {"description": "the job: watch it at /v1/jobs/{id}", "content": schemas.example(_JOB)}},
    )
