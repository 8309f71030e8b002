"""The log of releases: what happened to each version of each model, in rows that are never changed.

Two processes that read the same rows write a row with the same id, and only one of them succeeds. `versions.py` derives
the state of a version from the log; `promotion.py` decides what may be written.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa

from lake.errors import LakeBusy
from lake.storage import schema, store
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import Lake

ACTIONS = ("registered", "canary", "promoted", "rolled_back", "shadowed", "retired")
_NAMESPACE = uuid.UUID("6c1d9a52-0b5e-5d0a-9a7e-52f0c6d1b3a4")
ATTEMPTS = 12


@dataclass(frozen=True)
class ReleaseEvent:
    """One row of `releases`. `action`: one of ACTIONS; rolled_back names the version taken out of production.
    `share` and `limits`: see `canary.py`; None unless the action is canary.
    """

    event_id: str
    model: str
    version: int
    run: str
    action: str
    gate: str | None
    reason: str | None
    timestamp: datetime
    share: float | None = None
    limits: str | None = None


def history(lake: Lake, model: str | None = None) -> list[ReleaseEvent]:
    """The events of a model, or of all models, oldest first."""
    filter = None if model is None else f"model = {literal(model)}"
    rows = lake.scan("releases", [c.name for c in schema.RELEASES.columns], filter).to_pylist()
    return sorted((ReleaseEvent(**row) for row in rows), key=lambda event: (event.timestamp, event.event_id))


def next_event(
    events: Sequence[ReleaseEvent],
    action: str,
    *,
    model: str,
    version: int,
    run: str,
    gate: str | None = None,
    reason: str | None = None,
    share: float | None = None,
    limits: str | None = None,
) -> ReleaseEvent:
    """The event that follows all `events` of a model. It is later than the last of them."""
    event_id = str(uuid.uuid5(_NAMESPACE, f"{model}:{len(events)}"))
    # Clocks differ between machines and go back, but events are ordered by time.
    timestamp = max([store.now(), *(event.timestamp + timedelta(microseconds=1) for event in events[-1:])])
    return ReleaseEvent(event_id, model, version, run, action, gate, reason, timestamp, share, limits)


def append(lake: Lake, model: str, decide: Callable[[list[ReleaseEvent]], ReleaseEvent | None]) -> list[ReleaseEvent]:
    """Writes the event that `decide` returns for a model's events; None writes nothing. Returns the events afterwards.

    Calls `decide` again if another process wrote first. Raises LakeBusy after ATTEMPTS such collisions.
    """
    for _ in range(ATTEMPTS):
        events = history(lake, model)
        event = decide(events)
        if event is None:
            return events
        if lake.insert("releases", pa.Table.from_pylist([vars(event)], schema=schema.RELEASES.arrow())):
            return [*events, event]
    raise LakeBusy(f"model {model} kept changing during {ATTEMPTS} attempts; try again")
