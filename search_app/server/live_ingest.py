"""How a server takes events in: its spool, what it admits, and the processes that move events on.

Started and ended with the server. What is in the spool when it ends is safe there, and drained by whoever opens the
lake next.
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
    from search_app.api.metrics import Metrics

# The drainer drains for four seconds more after it is asked to end.
DRAINER_SECONDS = 6.0
EMBEDDER_SECONDS = 3.0


@dataclass(frozen=True)
class IngestSettings:
    """What a server is told about taking events in. `embed` is the order of `lakeloop embed --watch`, or None."""

    spool: Path
    limits: IngestLimits = field(default_factory=IngestLimits)
    sampling: Sampling = field(default_factory=Sampling)
    drain: bool = True
    embed: Order | None = None


class LiveIngest:
    """A spool that is open, and what stands behind it."""

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
            self._children.append((Child("drainer", command, metrics.drainer_said), DRAINER_SECONDS))
        if settings.embed:
            from embeddings.backfill import watch_process

            command = watch_process.arguments(self.uri, order=settings.embed)
            self._children.append((Child("embedder", command, metrics.embedder_said), EMBEDDER_SECONDS))
        for child, _ in self._children:
            child.start()

    async def stop(self) -> None:
        """Makes what was accepted safe, lets the children finish, ends them."""
        # Requests are answered by now: what the drainer is asked to finish does not grow any more.
        await asyncio.to_thread(self.spool.close)
        await asyncio.gather(*(asyncio.to_thread(child.stop, seconds) for child, seconds in self._children))
