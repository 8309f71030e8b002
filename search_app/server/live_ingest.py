"""How a server accepts events: its spool, its limits, and the child processes that move events on.

It starts and ends with the server. Events still in the spool at the end are safe there; the next process that opens
the lake drains them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lake.spool.drain import Sampling
from lake.spool.spool import Spool
from lake.upkeep import drainer
from search_app.api.admission import IngestLimits
from search_app.server.child_processes import Child

if TYPE_CHECKING:
    from embeddings.backfill.embedding_order import Order
    from search_app.api.prometheus import Metrics

# The drainer drains for four seconds more after it is asked to end.
DRAINER_SECONDS = 6.0
EMBEDDER_SECONDS = 3.0


@dataclass(frozen=True)
class IngestSettings:
    """The server's settings for accepting events. `embed` is the order of `lakeloop embed --watch`, or None."""

    spool: Path
    limits: IngestLimits = field(default_factory=IngestLimits)
    sampling: Sampling = field(default_factory=Sampling)
    drain: bool = True
    embed: Order | None = None


class LiveIngest:
    """The open spool and the child processes that drain and embed."""

    def __init__(self, uri: str, settings: IngestSettings) -> None:
        self.uri = uri
        self.settings = settings
        self.limits = settings.limits
        self.spool = Spool(settings.spool)
        self.spool.hold()
        self._children: list[tuple[Child, float]] = []

    def start(self, metrics: Metrics) -> None:
        settings = self.settings
        if settings.drain:
            command = drainer.arguments(self.uri, settings.spool, settings.sampling)
            self._children.append((Child("drainer", command, metrics.read_drainer), DRAINER_SECONDS))
        if settings.embed:
            from embeddings.backfill import watch_process

            command = watch_process.arguments(self.uri, order=settings.embed)
            self._children.append((Child("embedder", command, metrics.read_embedder), EMBEDDER_SECONDS))
        for child, _ in self._children:
            child.start()

    async def stop(self) -> None:
        """Stores what was accepted, lets the children finish, ends them."""
        # All requests are finished by now, so the drainer's remaining work does not grow any more.
        await asyncio.to_thread(self.spool.close)
        await asyncio.gather(*(asyncio.to_thread(child.stop, seconds) for child, seconds in self._children))
