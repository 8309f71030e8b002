"""The numbers of GET /metrics for Prometheus: requests of every route, spool, drainer, embedding lag.

Each server has a registry of its own, so that two in one process do not mix.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lake.spool.spool import Spool

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_OTHER = "other"
# The client closed the connection before the response: nginx's number for it.
HUNG_UP = 499
# In the ASGI scope: the reasons for which the request, or items of it, were refused.
REFUSED = "lakeloop_refused"
# In the ASGI scope: how many confidences and scores of the request were clamped.
CLAMPED = "lakeloop_clamped"


class Metrics:
    """The numbers of one server."""

    def __init__(self, spool: Spool | None) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"lakeloop_{name}", meaning, labels, registry=self.registry)

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"lakeloop_{name}", meaning, registry=self.registry)

        def seconds(name: str, meaning: str, labels: Sequence[str] = ()) -> Histogram:
            return Histogram(f"lakeloop_{name}_seconds", meaning, labels, registry=self.registry, buckets=_SECONDS)

        self.requests = counter("requests", "finished requests", ["method", "route", "status"])
        self.durations = seconds("request", "from the head of a request to its response", ["method", "route"])
        self.rejected = counter("rejected", "refused requests and batch items", ["reason"])
        self.clamped = counter("clamped", "confidences and scores a hair outside of 0 to 1, set to 0 or 1")
        self.commits = seconds("spool_commit", "one group commit, its syncs included")
        self.committed = counter("spool_commit_events", "events in group commits")
        self.drained = counter("drained_events", "events moved to the lake")
        self.drain_seconds = counter("drain_seconds", "time spent draining")
        self.drain_errors = counter("drain_errors", "drains that failed and are tried again")
        self.contradictions = counter("contradictions", "ids that two spools used differently")
        self.unreadable = counter("images_unreadable", "acknowledged images that did not decode")
        self.parked = gauge("spool_parked_events", "events that could not be drained: see lakeloop spool parked list")
        self.depth = gauge("spool_events", "events that wait to be drained")
        self.bytes = gauge("spool_bytes", "bytes the spool holds on disk")
        self.age = gauge("spool_oldest_seconds", "how long the oldest event waits")
        self.waiting = gauge("embedding_waiting_images", "images that wait for a vector")
        self.lag = gauge("embedding_lag_seconds", "how long the oldest of them waits")
        self.embedded = counter("embedded_images", "images given a vector")
        self.spool = spool
        self.unembedded: int | None = None  # as `waiting`; None if this server runs no embedder
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        if spool is not None:
            spool.on_commit(self._committed)

    def text(self) -> bytes:
        """The exposition format."""
        if self.spool is not None:
            depth = self.spool.depth()
            self.depth.set(depth.events)
            self.bytes.set(depth.bytes)
            self.age.set(depth.age())
            self.parked.set(depth.parked)
        return bytes(generate_latest(self.registry))

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                self.requests.labels(method, route, str(status)),
                self.durations.labels(method, route),
            )
        children[0].inc()
        children[1].observe(seconds)

    def read_drainer(self, facts: dict[str, Any]) -> None:
        """Updates the numbers from one line of the drainer's output."""
        if "error" in facts:
            self.drain_errors.inc()
            return
        self.drained.inc(facts["events"])
        self.drain_seconds.inc(facts["seconds"])
        self.contradictions.inc(facts["contradictions"])
        self.unreadable.inc(sum(facts["unreadable"].values()))

    def read_embedder(self, facts: dict[str, Any]) -> None:
        """Updates the numbers from one line of `lakeloop embed --watch --json`."""
        self.unembedded = facts["waiting"]
        self.waiting.set(facts["waiting"])
        self.lag.set(facts["oldest_seconds"])
        self.embedded.inc(facts["embedded"])

    def _committed(self, events: int, seconds: float) -> None:
        self.commits.observe(seconds)
        self.committed.inc(events)


class MeasuredApp:
    """ASGI middleware that counts and times requests. Routes are named by their pattern, never by an id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = HUNG_UP

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            status = 500
            raise
        finally:
            route = scope.get("route")
            path = getattr(route, "path", None) or scope.get("lakeloop_route") or _OTHER
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else _OTHER
            self.metrics.count_request(method, path, status, time.perf_counter() - started)
            for reason in scope.get(REFUSED, ()):
                self.metrics.rejected.labels(reason).inc()
            self.metrics.clamped.inc(scope.get(CLAMPED, 0))
