"""Routes that read: a prediction, an image's record, the lake's status, health and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Response

from lake import ids
from lake.analytics import summary
from search_app.api import prometheus
from search_app.api.problems import Problem
from search_app.api.routes.pictures import checked
from search_app.api.schemas import TEXT, ImageId, PredictionId
from search_app.backend.arrivals import Arrivals
from search_app.backend.records import record, stored_prediction, waiting_prediction

if TYPE_CHECKING:
    from search_app.api.service import Service


# Threads of their own for what monitors ask: they respond however much other work waits.
PROBES = 2


def routes(service: Service, metrics: prometheus.Metrics) -> APIRouter:
    router = APIRouter()
    lake = service.lake
    arriving = Arrivals(lake, service.spool)
    probes = CapacityLimiter(PROBES)

    @router.get("/v1/predictions/{prediction_id}")
    def prediction(prediction_id: PredictionId) -> dict[str, Any]:
        """One prediction, from its acknowledgement on. `state` is waiting (in the spool) or stored (in the lake)."""
        own = ids.as_uuid(prediction_id)
        if own is None:
            raise Problem(422, "bad_id", f"a prediction id is a UUID, not {prediction_id[:80]!r}")
        # The spool first: between the two reads the event can only move from the spool to the lake.
        event = service.spool.event("prediction", own) if service.spool is not None else None
        if event is not None:
            return waiting_prediction(event, service.promoted) | {"state": "waiting"}
        stored = stored_prediction(lake, own)
        if stored is None:
            raise Problem(404, "unknown_prediction", f"no prediction {own} is stored")
        return stored | {"state": "stored"}

    @router.get("/v1/records/{image_id}")
    def image_record(image_id: ImageId) -> dict[str, Any]:
        """Everything known about one image: predictions, labels, reviews, slices."""
        facts = record(lake, checked(image_id))
        if facts is None:
            raise Problem(404, "unknown_image", f"no image {image_id}")
        return facts

    @router.get("/v1/status")
    def status() -> dict[str, Any]:
        """Counts, models and embedding progress of the lake, and the events that wait in the spool."""
        facts = dict(summary.status(lake))
        if service.spool is not None:
            facts["spool"] = service.spool.depth().as_dict()
        return facts

    @router.get("/v1/arrivals")
    def arrivals() -> dict[str, Any]:
        """Predictions of the last minute, events in the spool, images without a vector, the newest images."""
        return arriving.look() | {"unembedded": metrics.unembedded}

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process responds."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """The lake can be read and events are accepted; 503 while the server is stopping."""
        if service.stopping:
            raise Problem(503, "stopping", "the server is stopping", 5)
        return {"status": "ok", "version": await to_thread.run_sync(lake.version, "samples", limiter=probes)}

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"description": "Prometheus' exposition format", "content": {"text/plain": {"schema": TEXT}}}},
    )
    async def exposition() -> Response:
        """Prometheus metrics."""
        text = await to_thread.run_sync(metrics.text, limiter=probes)
        return Response(text, media_type=prometheus.MEDIA_TYPE)

    return router
