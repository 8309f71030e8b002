"""/v1/metrics: accuracy by dimensions, calibration, confusion, sizes of objects, two models; and /v1/discover."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field

from lake.analytics import dimensions, metrics
from lake.sql.tables import plain
from search_app.api import bodies, schemas
from search_app.api.problems import JSON, Problem
from search_app.api.writes import Body
from search_app.security import filter_bounds

if TYPE_CHECKING:
    from search_app.api.service import Service

PATH = "/v1/metrics"
# 50,000 took 6 to 8.5 s on two cores (docs/benchmarks.md); a request should not take longer. A job takes any number.
MOST_DISCOVERED = 20_000
MOST_LISTED = 1_000
BODY_BYTES = 1 << 20
Where = Annotated[str | None, Query(min_length=1, max_length=5_000, description="only predictions that pass")]
InSlice = Annotated[str | None, Query(alias="slice", min_length=1, max_length=250, description="only its images")]
Name = Annotated[str, Field(min_length=1, max_length=250)]
Models = Annotated[list[Name] | None, Query(max_length=20, description="NAME or 'NAME VERSION'; repeat for more")]
_RATE = {"value": 0.91, "low": 0.88, "high": 0.93, "n": 412}
_CELL = {"camera": "3", "judged": 412, "right": 375, "accuracy": _RATE, "confidence": 0.87, "where": "camera = 3"}


class Discover(Body):
    """What to search for groups with more errors than chance explains."""

    where: str | None = Field(default=None, min_length=1, max_length=20_000, description="only predictions that pass")
    slice: str | None = Field(default=None, min_length=1, max_length=250, description="only its images")
    by: Literal["both", "metadata", "cluster"] = "both"
    errors: Literal["judged", "confidence"] = Field(
        default="judged", description="what counts as an error; confidence: for predictions without labels"
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses=schemas.documented({"by": ["camera"], "cells": [_CELL], "all": _CELL, "left_out": 0}))
    def by(
        by: Annotated[list[Name] | None, Query(max_length=2, description="one or two dimensions")] = None,
        where: Where = None,
        slice_name: InSlice = None,
        model: Models = None,
    ) -> dict[str, Any]:
        """Accuracy and error rate with 95 % intervals, by one or two dimensions (see /v1/metrics/dimensions)."""
        return _json(metrics.by(lake, by or [], _scope(where, slice_name, model)).as_dict())

    @router.get(PATH + "/dimensions", responses=schemas.documented({"dimensions": ["day", "camera"]}))
    def list_dimensions() -> dict[str, Any]:
        """The names that `by` takes."""
        return {"dimensions": dimensions.names(lake)}

    @router.get(PATH + "/calibration", responses=schemas.documented({"equal_width": {"ece": 0.04, "bins": []}}))
    def calibration(where: Where = None, slice_name: InSlice = None, model: Models = None) -> dict[str, Any]:
        """Reliability curves and expected calibration error (ECE), in bins of equal width and of equal count."""
        from lake.analytics.calibration import calibration

        return _json(asdict(calibration(lake, _scope(where, slice_name, model))))

    @router.get(
        PATH + "/confusion",
        responses=schemas.documented({"cells": [{"true": "car", "predicted": "van", "predictions": 31}]}),
    )
    def confusion(where: Where = None, slice_name: InSlice = None, model: Models = None) -> dict[str, Any]:
        """Numbers of predictions by true and predicted label, of labelled images, the largest first."""
        return _json({"cells": metrics.confusion_cells(lake, _scope(where, slice_name, model))})

    @router.get(
        PATH + "/sizes", responses=schemas.documented({"boxes": [{"size": "small", "boxes": 412}], "masks": []})
    )
    def sizes(where: Where = None, slice_name: InSlice = None, model: Models = None) -> dict[str, Any]:
        """Predicted boxes and masks by size of object as in COCO, with precision and recall."""
        from lake.analytics import detection

        scope = _scope(where, slice_name, model)
        kinds = {"boxes": detection.boxes(lake, scope), "masks": detection.masks(lake, scope)}
        return _json({kind: [asdict(size) for size in by_size] for kind, by_size in kinds.items()})

    @router.get(PATH + "/compare", responses=schemas.documented({"old": "m 1", "new": "m 2", "only_old": 3, "p": 0.04}))
    def compare(
        old: Annotated[str, Query(min_length=1, max_length=250)],
        new: Annotated[str, Query(min_length=1, max_length=250)],
        where: Where = None,
        slice_name: InSlice = None,
    ) -> dict[str, Any]:
        """Two models on the same images: counts, McNemar's test, and the first thousand images of each change."""
        facts = asdict(metrics.compare(lake, old, new, _scope(where, slice_name, None)))
        return _json(facts | {kind: facts[kind][:MOST_LISTED] for kind in ("broken", "repaired")})

    @router.post(
        "/v1/discover",
        response_class=Response,
        openapi_extra=schemas.request(schemas.json_body(Discover.model_json_schema())),
        responses=schemas.documented({"findings": [{"title": "camera 7", "error": _RATE, "p": 0.002}]}),
    )
    async def discover(request: Request) -> Response:
        """Groups of predictions that fail more often than chance explains, among at most 20,000 predictions.

        For more predictions, start a job of the kind discover.
        """
        kind = bodies.media_type(request.scope)
        if kind != JSON:
            raise Problem(415, "media_type", f"send {JSON}, not {kind or 'no type'!r:.80}")
        body = await bodies.read_query(request.scope, request.receive, BODY_BYTES, service.admission)
        facts = await run_in_threadpool(run_discovery, bodies.parsed_as(Discover, body))
        return Response(schemas.as_json(facts), media_type=JSON)

    def run_discovery(request: Discover) -> dict[str, Any]:
        from embeddings.discovery import findings
        from embeddings.discovery.discovery import discover

        where = _scope(request.where, request.slice, None)
        count = metrics.by(lake, [], where).whole.predictions
        if count > MOST_DISCOVERED:
            detail = f"{count:,} predictions are in this scope; a request may search {MOST_DISCOVERED:,}"
            raise Problem(422, "too_many", f"{detail}. Narrow it, or start a job: POST /v1/jobs of the kind discover")
        with service.long_work.taken():
            result = discover(lake, where, by=request.by, errors=request.errors, seed=request.seed)
        return _json(findings.facts(result))

    def _scope(where: str | None, slice_name: str | None, models: list[str] | None) -> str | None:
        if where is not None:
            filter_bounds.check(lake, where)
        return metrics.scope(lake, where, slice_name, models or ())

    return router


def _json(value: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = plain(value)
    return facts
