"""/v1/evaluations and /v1/gates: what runs achieved on slices, and whether one may replace another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from lake.sql.tables import plain
from search_app.api import schemas
from search_app.api.paging import NOT_CHANGED, Cursor, Key, Limit, newest_first, page, tagged
from search_app.api.problems import not_found
from search_app.api.schemas import RecordId
from training.evaluation import records

if TYPE_CHECKING:
    from search_app.api.service import Service
    from training.evaluation.records import EvaluationRecord, VerdictRecord

PATH, GATES = "/v1/evaluations", "/v1/gates"
RunQuery = Annotated[str | None, Query(max_length=100, description="a run's id")]
_EVALUATION = {
    "id": "9f31c0aa", "run": "528228c7", "at": "2026-11-30T20:01:00Z",
    "slices": {"night@2": {"accuracy": {"value": 0.91, "low": 0.88, "high": 0.94, "n": 400}}},
}  # fmt: skip
_GATE = {
    "id": "7d2879ed", "candidate": "528228c7", "baseline": "5f061dec", "outcome": "passed", "blocks": False,
    "at": "2026-11-30T20:02:00Z",
}  # fmt: skip
_VERDICT = _GATE | {
    "policy": {"margin": 0.02}, "slices": [{"slice": "night@2", "outcome": "passed", "blocks": False}],
}  # fmt: skip


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses=schemas.page_of(_EVALUATION))
    def list_evaluations(limit: Limit = 100, cursor: Cursor = None, run: RunQuery = None) -> dict[str, Any]:
        """Evaluations of runs, newest first: each metric on each slice with its 95 % interval."""
        part, following = page(sorted(records.evaluations(lake, run), key=_place), _place, cursor, limit)
        return {"items": [plain(vars(record)) for record in part], "next": following}

    @router.get(PATH + "/{record_id}", responses=NOT_CHANGED | schemas.documented(_EVALUATION))
    def evaluation(record_id: RecordId, request: Request) -> Response:
        """One evaluation. It never changes."""
        with not_found("unknown_evaluation"):
            record = records.evaluation(lake, record_id)
        return tagged(request, f"evaluation-{record.id}", lambda: schemas.as_json(plain(vars(record))))

    @router.get(GATES, responses=schemas.page_of(_GATE))
    def list_gates(
        limit: Limit = 100, cursor: Cursor = None, candidate: RunQuery = None, baseline: RunQuery = None
    ) -> dict[str, Any]:
        """Gate verdicts, newest first, without their slices."""
        found = records.verdicts(lake, candidate=candidate, baseline=baseline)
        part, following = page(sorted(found, key=_place), _place, cursor, limit)
        return {"items": [{name: plain(getattr(record, name)) for name in _GATE} for record in part], "next": following}

    @router.get(GATES + "/{record_id}", responses=NOT_CHANGED | schemas.documented(_VERDICT))
    def gate(record_id: RecordId, request: Request) -> Response:
        """One verdict with its policy and the evidence of every slice. It never changes."""
        with not_found("unknown_gate"):
            record = records.verdict(lake, record_id)
        return tagged(request, f"gate-{record.id}", lambda: schemas.as_json(plain(vars(record))))

    return router


def _place(record: EvaluationRecord | VerdictRecord) -> Key:
    return newest_first(record.at, record.id)
