"""Versions of models: the run and status of each, and which version is in production.

A version's status is that of its newest event, except that the version in production is the last one that was promoted
and neither rolled back nor retired since. The view `models` says the same in SQL.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING

from lake.errors import BadInput
from lake.slices.naming import unknown
from training.registry import releases, runs
from training.registry.releases import ReleaseEvent

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.registry.runs import Run

_STATUS = {"canary": "canary", "shadowed": "shadow", "retired": "retired"}


@dataclass(frozen=True)
class Version:
    """One version of a model. `status`: registered, canary, promoted, shadow or retired. `gate`: the verdict that its
    newest promotion rests on. `reason`, `changed_at`, `share` and `limits`: those of its newest event.
    """

    model: str
    version: int
    run: str
    status: str
    gate: str | None
    reason: str | None
    registered_at: datetime
    changed_at: datetime
    share: float | None = None
    limits: str | None = None

    @property
    def id(self) -> str:
        """NAME@V."""
        return f"{self.model}@{self.version}"


def list(lake: Lake, model: str | None = None) -> builtins.list[Version]:
    """All versions, or those of one model (none if it is unknown), by model and number."""
    events = sorted(releases.history(lake, model), key=lambda event: event.model)
    return [version for _, group in groupby(events, lambda event: event.model) for version in of_events([*group])]


def get(lake: Lake, name: str) -> Version:
    """The version NAME@V, or the version of a run, by the run's id or a unique beginning of it.

    Raises BadInput, with the nearest names, if there is no such version.
    """
    match = find(lake, name)
    if isinstance(match, Version):
        return match
    raise BadInput(f"run {match.id} is no version of model {match.model} yet: lakeloop models register {match.id}")


def find(lake: Lake, name: str) -> Version | Run:
    """As `get`, but a run that is no version yet is returned as a run. Raises BadInput."""
    known = list(lake)
    for version in known:
        if name in (version.id, version.run):
            return version
    model, at, _ = name.partition("@")
    ids_of_model = [version.id for version in known if version.model == model]
    if at:
        ids = ids_of_model or [version.id for version in known]
        raise unknown("version", name, ids, f"model {model}" if ids_of_model else "the lake")
    if ids_of_model:
        raise BadInput(f"name a version of {name!r}; its newest is {ids_of_model[-1]}")
    run_ids = lake.scan("runs", ["id"])["id"].to_pylist()
    if not name or not any(run_id.startswith(name) for run_id in run_ids):
        raise unknown("version or run", name, [version.id for version in known] + run_ids)
    run = runs.get(lake, name)
    return next((version for version in known if version.run == run.id), run)


def promoted(lake: Lake, model: str) -> Version | None:
    """The version in production; None if none is promoted."""
    return next((version for version in list(lake, model) if version.status == "promoted"), None)


def promotion_stack(lake: Lake, model: str) -> builtins.list[Version]:
    """The versions that were promoted and neither rolled back nor retired since. The last one is in production; a
    rollback goes to the one before it.
    """
    events = releases.history(lake, model)
    by_number = {version.version: version for version in of_events(events)}
    return [by_number[number] for number in promoted_numbers(events)]


def canary(lake: Lake, model: str) -> Version | None:
    """The version that predicts a share of the images in place of the promoted one; None if there is none."""
    return next((version for version in list(lake, model) if version.status == "canary"), None)


def shadows(lake: Lake, model: str) -> builtins.list[Version]:
    """The versions that run in shadow mode, by number."""
    return [version for version in list(lake, model) if version.status == "shadow"]


def of_events(events: Sequence[ReleaseEvent]) -> builtins.list[Version]:
    """The versions of one model, by number, from its events in order."""
    stack, versions = promoted_numbers(events), []
    for number in sorted({event.version for event in events}):
        own = [event for event in events if event.version == number]
        versions.append(
            Version(
                own[0].model,
                number,
                own[0].run,
                "promoted" if stack[-1:] == [number] else _STATUS.get(own[-1].action, "registered"),
                next((event.gate for event in reversed(own) if event.action in ("promoted", "canary")), None),
                own[-1].reason,
                own[0].timestamp,
                own[-1].timestamp,
                own[-1].share,
                own[-1].limits,
            )
        )
    return versions


def promoted_numbers(events: Sequence[ReleaseEvent]) -> builtins.list[int]:
    """The numbers of one model's `promotion_stack`, from its events in order."""
    stack: builtins.list[int] = []
    for event in events:
        if event.action in ("promoted", "rolled_back", "retired"):
            stack = [number for number in stack if number != event.version]
        if event.action == "promoted":
            stack.append(event.version)
    return stack
