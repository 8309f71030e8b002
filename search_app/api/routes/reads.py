"""Routes that tell: an answer, an image's record, the lake's state, health and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response

from lake import ids
from lake.analytics import summary
from search_app.api import metrics as prometheus
from search_app.api.problems import Problem
from search_app.api.routes.pictures import checked
from search_app.backend.arrivals import Arrivals
from search_app.backend.records import answer, record, waiting_answer

if TYPE_CHECKING:
    from search_app.api.service import Service


def routes(service: Service, metrics: prometheus.Metrics) -> APIRouter:
    router = APIRouter()
    lake = service.lake
    news = Arrivals(lake, service.spool)

    @router.get("/v1/predictions/{prediction_id}")
    def prediction(prediction_id: str) -> dict[str, Any]:
        """One answer, at once after its acknowledgement. `state` is waiting (in the spool) or stored (in the lake)."""
        own = ids.as_uuid(prediction_id)
        if own is None:
            raise Problem(422, "bad_id", f"a prediction id is a UUID, not {prediction_id[:80]!r}")
        # The spool first: between the two looks the event can only move from it to the lake.
        event = service.spool.event("prediction", own) if service.spool is not None else None
        if event is not None:
            return waiting_answer(event, service.promoted) | {"state": "waiting"}
        found = answer(lake, own)
        if found is None:
            raise Problem(404, "unknown_prediction", f"no answer {own} is stored")
        return found | {"state": "stored"}

    @router.get("/v1/records/{image_id}")
    def image_record(image_id: str) -> dict[str, Any]:
        """Everything known about one image: predictions, labels, reviews, slices."""
        found = record(lake, checked(image_id))
        if found is None:
            raise Problem(404, "unknown_image", f"no image {image_id}")
        return found

    @router.get("/v1/status")
    def status() -> dict[str, Any]:
        """Counts, models and embedding progress of the lake; what waits in the spool."""
        facts = dict(summary.status(lake))
        if service.spool is not None:
            facts["spool"] = service.spool.depth().as_dict()
        return facts

    @router.get("/v1/arrivals")
    def arrivals() -> dict[str, Any]:
        """Answers of the last minute, what waits in the spool or for a vector, and the newest images."""
        return news.look() | {"unembedded": metrics.unembedded}

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz() -> dict[str, Any]:
        """The lake answers, and events are taken in; not while the server is stopping."""
        if service.stopping:
            raise Problem(503, "stopping", "the server is stopping", 5)
        return {"status": "ok", "version": lake.version("predictions")}

    @router.get("/metrics", response_class=Response)
    def exposition() -> Response:
        """Prometheus metrics."""
        return Response(metrics.text(), media_type=prometheus.MEDIA_TYPE)

    return router
