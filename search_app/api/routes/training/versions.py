"""/v1/models: models and their versions, releases and cards; registers, promotes, rolls back, shadows and retires."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from lake.errors import BadInput, LakeBusy
from lake.sql.tables import plain
from lake.version import VERSION
from search_app.api import schemas, writes
from search_app.api.paging import NOT_CHANGED, Cursor, Limit, newest_first, page, tagged
from search_app.api.problems import JSON, Problem, not_found
from search_app.api.schemas import ModelName
from training.inference import canary_measurements
from training.registry import canary, promotion, releases, runs, versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from search_app.api.service import Service
    from search_app.api.writes import Audit, Writes
    from training.registry.versions import Version

PATH = "/v1/models"
MARKDOWN = "text/markdown"
Text = Annotated[str, Field(min_length=1, max_length=2_000)]
# What a card is rendered from.
_CARD_TABLES = ("runs", "metrics", "gates", "releases", "slices", "embedders")
_VERSION = {
    "id": "cells@3", "model": "cells", "version": 3, "run": "528228c7", "status": "canary", "gate": "7d2879ed",
    "reason": "better at night", "registered_at": "2026-11-30T20:03:00Z", "changed_at": "2026-11-30T20:04:00Z",
    "share": 0.05, "limits": {"disagreement": 0.3, "latency": 2.0, "errors": 0.01, "minimum": 30},
}  # fmt: skip
_MODEL = {"model": "cells", "promoted": "cells@2", "canary": "cells@3", "shadows": [], "versions": 3}
_RATE = {"value": 0.02, "low": 0.0, "high": 0.11, "n": 61}
_MEASURED = {"images": 122, "errors": _RATE, "disagreement": _RATE, "latency_ratio": 1.04}
_RELEASE = {
    "event_id": "3f1c...", "version": 3, "run": "528228c7", "action": "canary", "gate": "7d2879ed",
    "reason": "better at night", "timestamp": "2026-11-30T20:04:00Z", "share": 0.05, "limits": {"minimum": 30},
}  # fmt: skip


class Registration(BaseModel):
    """A finished run that becomes the next version of its model."""

    model_config = ConfigDict(extra="forbid")

    run: Text
    reason: Text | None = None


class CanaryLimits(BaseModel):
    """When a canary is rolled back; docs/predict.md explains them."""

    model_config = ConfigDict(extra="forbid")

    disagreement: float = Field(default=canary.Limits.disagreement, gt=0, lt=1)
    latency: float = Field(default=canary.Limits.latency, ge=1, le=1_000)
    errors: float = Field(default=canary.Limits.errors, gt=0, lt=1)
    minimum: int = Field(default=canary.Limits.minimum, ge=canary.SMALLEST_MINIMUM, le=canary.LARGEST_MINIMUM)


class Promotion(BaseModel):
    """How to promote: whole or, with `share`, as a canary."""

    model_config = ConfigDict(extra="forbid")

    gate: Text | None = Field(default=None, description="the verdict that you expect to be the newest")
    reason: Text | None = None
    force: bool = Field(default=False, description="in spite of the gate; needs a reason")
    share: float | None = Field(default=None, gt=0, lt=1, description="share of the images; null: all")
    limits: CanaryLimits | None = Field(default=None, description="only with a share")


class Change(BaseModel):
    """Why a version is rolled back, shadowed or retired."""

    model_config = ConfigDict(extra="forbid")

    reason: Text | None = None


def routes(service: Service, writer: Writes) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses=schemas.page_of(_MODEL))
    def list_models(limit: Limit = 100, cursor: Cursor = None) -> dict[str, Any]:
        """Models with registered versions, by name."""
        grouped = [[*group] for _, group in groupby(versions.list(lake), lambda version: version.model)]
        part, following = page(grouped, lambda own: (own[0].model,), cursor, limit)
        return {"items": [_model(own) for own in part], "next": following}

    @router.get(PATH + "/{model}", responses=schemas.documented(_MODEL | {"newest": _VERSION, "measured": [_MEASURED]}))
    def show(model: ModelName) -> dict[str, Any]:
        """A model, with what each server has measured of its canary; or one version as NAME@V, with its run's facts."""
        own = versions.list(lake, model)
        if own:
            running = next((version for version in own if version.status == "canary"), None)
            measured = [] if running is None else canary_measurements.read(lake, running)
            return _model(own) | {"newest": _facts(own[-1]), "measured": measured}
        version = _version(model)
        run = runs.get(lake, version.run)
        slices = [{"id": row["id"], "use": row["use"]} for row in run.data.get("slices", [])]
        return _facts(version) | {"task": run.task, "kind": run.kind, "parent": run.parent, "slices": slices}

    @router.get(PATH + "/{model}/versions", responses=schemas.page_of(_VERSION))
    def list_versions(model: ModelName, limit: Limit = 100, cursor: Cursor = None) -> dict[str, Any]:
        """The versions of a model, the newest first."""
        part, following = page(_known(model)[::-1], lambda version: (-version.version,), cursor, limit)
        return {"items": [_facts(version) for version in part], "next": following}

    @router.get(PATH + "/{model}/releases", responses=schemas.page_of(_RELEASE))
    def list_releases(model: ModelName, limit: Limit = 100, cursor: Cursor = None) -> dict[str, Any]:
        """What happened to the versions of a model, the newest first."""
        _known(model)
        events = releases.history(lake, model)[::-1]  # no two events of a model have the same time
        part, following = page(events, lambda event: newest_first(event.timestamp, event.event_id), cursor, limit)
        items = [{name: _plain(event, name) for name in _RELEASE} for event in part]
        return {"items": items, "next": following}

    @router.get(
        PATH + "/{model}/card",
        response_class=Response,
        responses={
            **NOT_CHANGED,
            200: {
                "description": "the card",
                "content": {
                    MARKDOWN: {"schema": schemas.TEXT},
                    JSON: {
                        "schema": {},
                        "example": {"name": "cells@3", "run": "528228c7", "text": "---\nlicense: ..."},
                    },
                },
            },
        },
    )
    def card(model: ModelName, request: Request) -> Response:
        """The model card of NAME@V, of a run, or of NAME's promoted, else newest, run: Markdown, or JSON if `Accept`
        asks for it. The ETag changes with the record that the card is rendered from.
        """
        from training.card import card as cards
        from training.card import facts as card_facts
        from training.models import trained_model

        with not_found("unknown_model"):
            run = trained_model.find(lake, model)
        as_json = JSON in request.headers.get("accept", "")
        table_versions = [lake.version(name) for name in _CARD_TABLES]
        tag = hashlib.sha256(json.dumps([VERSION, run.id, as_json, table_versions]).encode()).hexdigest()[:32]

        def render() -> bytes:
            facts = card_facts.gather(lake, run.id, predictions=False)
            text = cards.text_of(facts)
            if not as_json:
                return text.encode()
            values = {
                slice_: {name: vars(value) for name, value in own.items()} for slice_, own in facts.values.items()
            }
            return schemas.as_json(plain({"name": facts.title, "run": run.id, "values": values, "text": text}))

        return tagged(request, tag, render, JSON if as_json else MARKDOWN)

    @router.post(
        PATH,
        response_class=Response,
        status_code=201,
        openapi_extra=writes.body(Registration, {"run": "528228c7", "reason": "with the labels of the second turn"}),
        responses={201: {"description": "the version", "content": schemas.example(_VERSION)}},
    )
    async def register(request: Request) -> Response:
        """Makes a finished run the next version of its model. A run that is a version stays it."""

        def write(new: Registration, audit: Audit) -> dict[str, Any]:
            run = runs.get(lake, new.run)
            return _changed("register", lambda: promotion.register(lake, run.id, new.reason), new.reason, audit)

        return await writer.run(request, Registration, write, 201)

    @router.post(
        PATH + "/{model}:promote",
        response_class=Response,
        openapi_extra=writes.body(Promotion, {"share": 0.05}, {"force": True, "reason": "the line stands still"}),
        responses=_CHANGED,
    )
    async def promote(model: ModelName, request: Request) -> Response:
        """Puts a version NAME@V, or a run, into production: whole or, with `share`, as a canary for a share of the
        images. 409 if the gate does not allow it.
        """

        def write(how: Promotion, audit: Audit) -> dict[str, Any]:
            with not_found("unknown_model"):
                versions.find(lake, model)
            if how.force and how.reason is None:
                raise BadInput("a promotion against the gate needs a reason")
            if how.limits is not None and how.share is None:
                raise BadInput("limits are those of a canary: give a share, too")
            limits = None if how.limits is None else canary.limits_of(how.limits.model_dump())
            options = how.model_dump(include={"gate", "reason", "force", "share"})
            return _changed(
                "promote",
                lambda: promotion.promote(lake, model, **options, limits=limits),
                how.reason,
                audit,
                force=how.force,
                share=how.share,
            )

        return await writer.run(request, Promotion, write)

    @router.post(
        PATH + "/{model}:rollback",
        response_class=Response,
        openapi_extra=writes.body(Change, {"reason": "blind at dusk"}),
        responses=_CHANGED,
    )
    async def rollback(model: ModelName, request: Request) -> Response:
        """Takes the newest step into production back: the canary or, without one, the promoted version. Returns the
        version that is in production now.
        """

        def write(why: Change, audit: Audit) -> dict[str, Any]:
            _known(model)
            return _changed("rollback", lambda: promotion.rollback(lake, model, why.reason), why.reason, audit)

        return await writer.run(request, Change, write)

    @router.post(
        PATH + "/{model}:shadow",
        response_class=Response,
        openapi_extra=writes.body(Change, {"reason": "to compare"}),
        responses=_CHANGED,
    )
    async def shadow(model: ModelName, request: Request) -> Response:
        """Lets a version NAME@V, or a run, predict in the shadow of the promoted one."""

        def write(why: Change, audit: Audit) -> dict[str, Any]:
            with not_found("unknown_model"):
                versions.find(lake, model)
            return _changed("shadow", lambda: promotion.shadow(lake, model, why.reason), why.reason, audit)

        return await writer.run(request, Change, write)

    @router.post(
        PATH + "/{model}:retire",
        response_class=Response,
        openapi_extra=writes.body(Change, {"reason": "too slow"}),
        responses=_CHANGED,
    )
    async def retire(model: ModelName, request: Request) -> Response:
        """Takes a version NAME@V out of use. Registering its run brings it back."""

        def write(why: Change, audit: Audit) -> dict[str, Any]:
            version = _version(model)
            return _changed("retire", lambda: promotion.retire(lake, version.id, why.reason), why.reason, audit)

        return await writer.run(request, Change, write)

    def _known(model: str) -> Sequence[Version]:
        own = versions.list(lake, model)
        if not own:
            with not_found("unknown_model"):
                versions.find(lake, model)  # says which names are near
            raise Problem(404, "unknown_model", f"{model!r} is a version or a run; give the name of a model")
        return own

    def _version(name: str) -> Version:
        with not_found("unknown_model"):
            return versions.get(lake, name)

    return router


_CHANGED: dict[int | str, dict[str, Any]] = {
    **schemas.documented(_VERSION),
    409: {"description": "the registry does not allow it, or another process was faster"},
}


def _changed(
    action: str, change: Callable[[], Version], reason: str | None, audit: Audit, **detail: Any
) -> dict[str, Any]:
    """Makes the change and records it. What the registry refuses is a 409: the request is right, its state is not."""
    try:
        version = change()
    except LakeBusy as error:
        raise Problem(409, "changed", str(error)) from error
    except BadInput as error:
        raise Problem(409, "not_allowed", str(error)) from error
    audit(f"models {action}", version.id, {"run": version.run, "gate": version.gate, "reason": reason, **detail})
    return _facts(version)


def _model(own: Sequence[Version]) -> dict[str, Any]:
    by_status: dict[str, list[str]] = {}
    for version in own:
        by_status.setdefault(version.status, []).append(version.id)
    alone = {status: next(iter(by_status.get(status, [])), None) for status in ("promoted", "canary")}
    return {"model": own[0].model, **alone, "shadows": by_status.get("shadow", []), "versions": len(own)}


def _facts(version: Version) -> dict[str, Any]:
    return {name: _plain(version, name) for name in _VERSION}


def _plain(record: Any, name: str) -> Any:
    value = getattr(record, name)
    return json.loads(value) if name == "limits" and value is not None else plain(value)
