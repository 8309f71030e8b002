"""The log of what happened to models' versions, and the state that follows from it.

A row of `releases` is never changed. A version's status is its newest row's, except that of all versions promoted and
since neither taken back nor retired the last is the one in production. The view `models` says the same in SQL. Two
processes that saw the same rows write a row of the same id: one of them does. What may happen when is `registry.py`'s.
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

ACTIONS = ("registered", "promoted", "rolled_back", "shadowed", "retired")
_STATUS = {"shadowed": "shadow", "retired": "retired"}
_NAMESPACE = uuid.UUID("6c1d9a52-0b5e-5d0a-9a7e-52f0c6d1b3a4")
ATTEMPTS = 12


@dataclass(frozen=True)
class Version:
    """A version of a model with its current state.

    `status` is registered, promoted, shadow or retired. `gate` is the verdict of its newest promotion. `reason` belongs
    to its newest entry, made at `changed_at`.
    """

    model: str
    version: int
    run: str
    status: str
    gate: str | None
    reason: str | None
    registered_at: datetime
    changed_at: datetime

    @property
    def id(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True)
class Entry:
    """One row of `releases`. `action`: one of ACTIONS; rolled_back names the version that was taken back."""

    event_id: str
    model: str
    version: int
    run: str
    action: str
    gate: str | None
    reason: str | None
    timestamp: datetime


def history(lake: Lake, model: str | None = None) -> list[Entry]:
    """Everything that happened to a model's versions (to all models'), in order."""
    filter = None if model is None else f"model = {literal(model)}"
    rows = lake.scan("releases", [c.name for c in schema.RELEASES.columns], filter).to_pylist()
    return sorted((Entry(**row) for row in rows), key=lambda one: (one.timestamp, one.event_id))


def versions(entries: Sequence[Entry]) -> list[Version]:
    """The versions of one model, by number, from its entries in order."""
    there, found = standing(entries), []
    for number in sorted({one.version for one in entries}):
        mine = [one for one in entries if one.version == number]
        found.append(
            Version(
                mine[0].model,
                number,
                mine[0].run,
                "promoted" if there[-1:] == [number] else _STATUS.get(mine[-1].action, "registered"),
                next((one.gate for one in reversed(mine) if one.action == "promoted"), None),
                mine[-1].reason,
                mine[0].timestamp,
                mine[-1].timestamp,
            )
        )
    return found


def standing(entries: Sequence[Entry]) -> list[int]:
    """The versions of one model that were promoted and neither taken back nor retired; in production is the last."""
    there = list[int]()
    for one in entries:
        if one.action in ("promoted", "rolled_back", "retired"):
            there = [number for number in there if number != one.version]
        if one.action == "promoted":
            there.append(one.version)
    return there


def following(
    entries: Sequence[Entry],
    action: str,
    *,
    model: str,
    version: int,
    run: str,
    gate: str | None = None,
    reason: str | None = None,
) -> Entry:
    """The entry that comes after all of a model's."""
    event_id = str(uuid.uuid5(_NAMESPACE, f"{model}:{len(entries)}"))
    # Clocks differ between machines and go back; entries are read by time.
    at = max([store.now(), *(one.timestamp + timedelta(microseconds=1) for one in entries[-1:])])
    return Entry(event_id, model, version, run, action, gate, reason, at)


def write(lake: Lake, model: str, decide: Callable[[list[Entry]], Entry | None]) -> list[Entry]:
    """Writes the entry that `decide` makes of a model's entries (None: nothing), asking it again when another process
    was faster; the model's entries then. Raises LakeBusy when others keep being faster.
    """
    for _ in range(ATTEMPTS):
        entries = history(lake, model)
        made = decide(entries)
        if made is None:
            return entries
        if lake.insert("releases", pa.Table.from_pylist([vars(made)], schema=schema.RELEASES.arrow())):
            return [*entries, made]
    raise LakeBusy(f"model {model} kept changing under {ATTEMPTS} attempts; try again")
