"""The HTTP API as one ASGI app over one open lake: routes, errors, metrics, and the OpenAPI document.

Nothing is global: one process can run two of them over two lakes. It knows nothing of Streamlit, ports or keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from fastapi import FastAPI

from lake.sql import connections
from lake.version import VERSION
from search_app.api import bodies
from search_app.api.openapi import describe
from search_app.api.problems import add_error_handlers
from search_app.api.prometheus import MeasuredApp, Metrics
from search_app.api.routes import (
    batch,
    embedders,
    events,
    exports,
    jobs,
    maps,
    models,
    pictures,
    predictions,
    reads,
    search,
)
from search_app.api.routes import sql as sql_routes
from search_app.api.routes.curation import clusters, isolate, labels, metrics, pull, slices
from search_app.api.routes.training import evaluations, runs, starting, versions
from search_app.api.service import Service
from search_app.api.sql_execution import Sql
from search_app.api.writes import Writes
from search_app.backend import query_images
from search_app.backend.model_server import ModelServer
from search_app.jobs.supervisor import watch as watch_jobs
from search_app.security.uploads import Uploads

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from lake.open_lake import OpenLake
    from search_app.server.live_ingest import LiveIngest


# A filter of others may be evaluated for so long in this process; queries run in others.
FILTER_SECONDS = 60.0


class Api:
    """The API. Without `ingest` it only reads. It starts and stops with the ASGI lifespan, or with `lifespan`."""

    def __init__(self, lake: OpenLake, intake: LiveIngest | None = None, fetch: events.Fetch | None = None) -> None:
        connections.limits(lake).seconds = FILTER_SECONDS
        spool = intake.spool if intake else None
        self.service = Service(lake, spool, intake.limits if intake else None)
        self.metrics = Metrics(spool)
        self._intake = intake
        self._uploads = Uploads()
        self._arrow = batch.ArrowReader()
        self._model_server = ModelServer(lake)
        self.sql = Sql(self.service)
        self.writes = Writes(self.service, self.sql.log)
        self._api = self._routes(fetch)
        self._app = MeasuredApp(predictions.Predictions(self._api, self.service), self.metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        finally:
            bodies.release(scope)

    @asynccontextmanager
    async def lifespan(self, _: object = None) -> AsyncIterator[None]:
        watching = asyncio.gather(self.service.watch(), watch_jobs(self.service.lake))
        if self._intake is not None:
            self._intake.start(self.metrics)
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            if self._intake is not None:
                await self._intake.stop()
            self._uploads.close()
            self._arrow.close()
            await asyncio.to_thread(self._model_server.close)
            await asyncio.to_thread(self.sql.close)

    def _routes(self, fetch: events.Fetch | None) -> FastAPI:
        api = FastAPI(
            title="lakeloop",
            version=VERSION,
            docs_url=None,
            redoc_url=None,
            openapi_url="/v1/openapi.json",
            lifespan=self.lifespan,
        )
        add_error_handlers(api)
        service = self.service
        api.include_router(events.routes(service, self._arrow, fetch))
        api.include_router(search.routes(service, self._uploads))
        api.include_router(pictures.routes(service, self._uploads, query_images.beside(service.lake.uri)))
        api.include_router(reads.routes(service, self.metrics))
        api.include_router(maps.routes(service))
        api.include_router(exports.routes(service))
        api.include_router(sql_routes.routes(self.sql))
        api.include_router(models.routes(service, self._model_server))
        api.include_router(embedders.routes(service, self.writes))
        api.include_router(jobs.routes(service, self.writes))
        api.include_router(runs.routes(service))
        api.include_router(starting.routes(service, self.writes))
        api.include_router(evaluations.routes(service))
        api.include_router(versions.routes(service, self.writes))
        api.include_router(pull.routes(service))
        for curation in (slices, labels, clusters, isolate):
            api.include_router(curation.routes(service, self.writes))
        api.include_router(metrics.routes(service))
        describe(api, {predictions.PATH: {"post": predictions.OPERATION}})
        return api
