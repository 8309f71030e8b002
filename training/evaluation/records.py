"""Reads evaluations and gate verdicts as they were recorded."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.slices.naming import unknown
from lake.storage import schema
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import Lake

_EVALUATED = ["evaluation", "run", "slice", "metric", "value", "low", "high", "n", "at"]


@dataclass
class EvaluationRecord:
    """One evaluation of a run. `slices`: NAME@VERSION -> metric -> value, ends of its 95 % interval, and n images."""

    id: str
    run: str
    at: dt.datetime
    slices: dict[str, dict[str, dict[str, float | int | None]]] = field(default_factory=dict)


@dataclass(frozen=True)
class VerdictRecord:
    """A row of `gates`. `slices`: the fields of each `gate.SliceVerdict`, and its sentence."""

    id: str
    candidate: str
    baseline: str
    outcome: str
    blocks: bool
    policy: dict[str, Any]
    slices: list[dict[str, Any]]
    at: dt.datetime


def evaluations(lake: Lake, run: str | None = None) -> Sequence[EvaluationRecord]:
    """All evaluations, or those of the run with this id, newest first."""
    own = "" if run is None else f" and run = {literal(run)}"
    return _evaluations(lake, f"evaluation is not null{own}")


def evaluation(lake: Lake, name: str) -> EvaluationRecord:
    """The evaluation with this id. Raises BadInput with the nearest ids."""
    match = _evaluations(lake, f"evaluation = {literal(name)}")
    if match:
        return match[0]
    known = lake.scan("metrics", ["evaluation"], "evaluation is not null")["evaluation"].to_pylist()
    raise unknown("evaluation", name, known)


def verdicts(lake: Lake, *, candidate: str | None = None, baseline: str | None = None) -> Sequence[VerdictRecord]:
    """All verdicts, or those on a candidate or against a baseline, by run id, newest first."""
    wanted = {"candidate": candidate, "baseline": baseline}
    conditions = [f"{column} = {literal(run)}" for column, run in wanted.items() if run is not None]
    return _verdicts(lake, " and ".join(conditions) or None)


def verdict(lake: Lake, name: str) -> VerdictRecord:
    """The verdict with this id. Raises BadInput with the nearest ids."""
    match = _verdicts(lake, f"id = {literal(name)}")
    if match:
        return match[0]
    raise unknown("gate", name, lake.scan("gates", ["id"])["id"].to_pylist())


def _evaluations(lake: Lake, filter: str) -> list[EvaluationRecord]:
    records: dict[str, EvaluationRecord] = {}
    rows = lake.scan("metrics", _EVALUATED, filter).to_pylist()
    for row in sorted(rows, key=lambda row: (row["slice"] or "", row["metric"])):
        record = records.setdefault(row["evaluation"], EvaluationRecord(row["evaluation"], row["run"], row["at"]))
        values = {name: row[name] for name in ("value", "low", "high", "n")}
        record.slices.setdefault(row["slice"], {})[row["metric"]] = values
    return sorted(records.values(), key=lambda record: (record.at, record.id), reverse=True)


def _verdicts(lake: Lake, filter: str | None) -> list[VerdictRecord]:
    rows = lake.scan("gates", [column.name for column in schema.GATES.columns], filter).to_pylist()
    records = [
        VerdictRecord(**row | {"slices": json.loads(row["slices"]), "policy": json.loads(row["policy"])})
        for row in rows
    ]
    return sorted(records, key=lambda record: (record.at, record.id), reverse=True)
