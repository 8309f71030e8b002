"""/v1/runs: lists and shows training runs and their metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query

from lake.sql.tables import plain
from search_app.api import schemas
from search_app.api.paging import Cursor, Key, Limit, newest_first, page
from search_app.api.problems import not_found
from search_app.api.schemas import RunId
from training.registry import runs

if TYPE_CHECKING:
    from search_app.api.service import Service
    from training.registry.runs import Run

PATH = "/v1/runs"
Model = Annotated[str | None, Query(max_length=100, description="only runs of this model")]
_EXAMPLE = {
    "id": "528228c7", "model": "cells", "task": "classification", "kind": "probe", "status": "done", "parent": None,
    "search": None, "classes": ["cracked", "fine"], "seed": 0, "started_at": "2026-11-30T20:00:00Z",
    "ended_at": "2026-11-30T20:00:04Z", "error": None,
}  # fmt: skip
_METRIC = {
    "run": "528228c7", "evaluation": None, "metric": "balanced_accuracy", "slice": None, "split": "validation",
    "step": 40, "epoch": 2.0, "value": 0.94, "low": 0.91, "high": 0.96, "n": 400, "at": "2026-11-30T20:00:03Z",
}  # fmt: skip


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses=schemas.page_of(_EXAMPLE))
    def list_runs(
        limit: Limit = 100,
        cursor: Cursor = None,
        model: Model = None,
        status: Literal["running", "done", "stopped", "failed"] | None = None,
    ) -> dict[str, Any]:
        """Training runs, newest first."""
        selected = [run for run in runs.list(lake, model=model) if status in (None, run.status)]
        part, following = page(sorted(selected, key=_place), _place, cursor, limit)
        return {"items": [_facts(run) for run in part], "next": following}

    @router.get(PATH + "/{run}", responses=schemas.documented(_EXAMPLE | {"recipe": {}, "data": {}, "environment": {}}))
    def show(run: RunId) -> dict[str, Any]:
        """One run, with its recipe, its data (slices by NAME@VERSION, splits, result), files and environment."""
        record = _get(run)
        more = {"recipe": record.settings, "data": record.data, "artifacts": record.artifacts}
        facts: dict[str, Any] = plain(_facts(record) | more | {"environment": record.environment})
        return facts

    @router.get(PATH + "/{run}/metrics", responses=schemas.page_of(_METRIC))
    def metrics(
        run: RunId,
        limit: Limit = 1_000,
        cursor: Cursor = None,
        metric: Annotated[str | None, Query(max_length=100, description="only this metric")] = None,
    ) -> dict[str, Any]:
        """Metrics of a run: those of training by step, then those of its evaluations by slice."""
        rows = [row for row in runs.metrics(lake, _get(run).id) if metric in (None, row["metric"])]
        part, following = page(sorted(rows, key=_metric_key), _metric_key, cursor, limit)
        return {"items": plain(list(part)), "next": following}

    def _get(name: str) -> Run:
        with not_found("unknown_run"):
            return runs.get(lake, name)

    return router


def _facts(run: Run) -> dict[str, Any]:
    return {name: plain(getattr(run, name)) for name in _EXAMPLE}


def _place(run: Run) -> Key:
    return newest_first(run.started_at, run.id)


def _metric_key(row: dict[str, Any]) -> Key:
    step = -1 if row["step"] is None else row["step"]
    return row["evaluation"] or "", step, row["slice"] or "", row["split"] or "", row["metric"]
