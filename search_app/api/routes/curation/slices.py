"""/v1/slices: lists, creates, shows, compares and deletes slices; their members, versions, roles and tags."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from lake import slices
from lake.errors import BadInput
from lake.slices import definition as definitions
from lake.sql.tables import plain
from search_app.api import schemas, writes
from search_app.api.paging import NOT_CHANGED, Cursor, Limit, page, tagged
from search_app.api.problems import JSON, not_found
from search_app.api.schemas import SliceName, SliceTag
from search_app.api.writes import Body
from search_app.security import filter_bounds

if TYPE_CHECKING:
    from embeddings.duplicates.leak_guard import Leaks
    from search_app.api.service import Service
    from search_app.api.writes import Audit, NoBody, Writes

PATH = "/v1/slices"
MOST_IDS = 100_000
MOST_MEMBERS = 10_000
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
Name = Annotated[str, Field(min_length=1, max_length=250)]
Role = Literal["train", "evaluation", "regression"]
Part = str | dict[str, Any]
_HEX = "2a0986669d4b1c0b7f3e5a9c8d7e6f504132241506f7e8d9cabbac9d8e7f6051"


class NewSlice(Body):
    """A slice to create. Pass exactly one of where, ids, cluster, search, like, union, intersect and spec."""

    name: Name
    where: Text | None = Field(default=None, description="SQL filter on samples")
    ids: list[Name] | None = Field(default=None, max_length=MOST_IDS, description="ids of images or predictions")
    cluster: list[Name] | None = Field(default=None, max_length=1_000, description="cluster nodes TREE/PATH")
    search: Name | None = Field(default=None, description="an active search, by id or name: the images it found")
    like: dict[str, Any] | None = Field(
        default=None, description='{"ids", "radius", "embedder"}: images within a cosine distance of the mean of some'
    )
    union: list[Part] | None = Field(default=None, max_length=100, description="slices by name, or definitions")
    intersect: list[Part] | None = Field(default=None, max_length=100, description="slices by name, or definitions")
    spec: dict[str, Any] | None = Field(default=None, description="a definition as `spec` of a slice shows it")
    minus: list[Name] = Field(default=[], max_length=100, description="without the images of these slices")
    role: Role | None = None
    live: bool = Field(default=False, description="store only the definition")
    drop_leaks: bool = Field(
        default=False, description="for training: leave out images that evaluation or regression slices have"
    )
    identity_only: bool = Field(
        default=False, description="for training: compare images without vectors by identity only"
    )
    new: bool = Field(default=False, description="fail if the name is taken")


class Freeze(Body):
    """How to freeze a live slice. `role`: by default that of the live slice."""

    role: Role | None = None
    drop_leaks: bool = False
    identity_only: bool = False


class NewRole(Body):
    """The role of a version; null removes it."""

    role: Role | None
    identity_only: bool = False


def routes(service: Service, writer: Writes) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses=schemas.page_of(_EXAMPLE))
    def list_slices(limit: Limit = 100, cursor: Cursor = None, newest: bool = False) -> dict[str, Any]:
        """Versions of slices, by name, newest first; with `newest=1` only the newest version of each."""
        versions = slices.newest(lake) if newest else slices.list(lake)
        part, following = page(versions, lambda s: (s.name, -s.version), cursor, limit)
        tags = slices.tags_by_id(lake)
        return {"items": [_facts(s, tags.get(s.id, ())) for s in part], "next": following}

    @router.post(
        PATH,
        response_class=Response,
        status_code=201,
        openapi_extra=writes.body(
            NewSlice,
            {"name": "night", "where": "metadata ->> 'hour' < '6'", "role": "evaluation"},
            {"name": "night-train", "intersect": ["night", {"where": "label = 'car'"}], "role": "train"},
        ),
        responses={201: {"description": "the new version", "content": schemas.example(_EXAMPLE | {"dropped": 0})}},
    )
    async def create(request: Request) -> Response:
        """Saves the images of a definition as a slice, or as the next version of the slice of that name.

        A training slice shares no image or near-duplicate with evaluation and regression slices: it is refused, or
        loses them with `drop_leaks`.
        """

        def write(new: NewSlice, audit: Audit) -> dict[str, Any]:
            options = new.model_dump(exclude={"drop_leaks", "identity_only"}, exclude_none=True)
            kinds = {kind: options[kind] for kind in (*slices.KINDS, "minus") if kind in options}
            spec = {k: v for k, v in (new.spec or {}).items() if k not in definitions.GUARD_FLAGS}
            filter_bounds.check_definition(lake, spec or kinds)
            return _saved(slices.draft(lake, **options), new.drop_leaks, new.identity_only, audit)

        return await writer.run(request, NewSlice, write, 201)

    @router.get(PATH + "/{slice_name}", responses=schemas.documented(_EXAMPLE | {"images": 1, "spec": {}}))
    def show(slice_name: SliceName) -> dict[str, Any]:
        """One version: its definition, classes, tags and counts. A live slice is evaluated now."""
        slice_ = _get(slice_name)
        contents = slices.contents(lake, slice_)
        facts = _facts(slice_, slices.tags_by_id(lake).get(slice_.id, ()))
        more: dict[str, Any] = {
            "images": contents.num_rows,
            "erased": slices.erased_count(lake, slice_),
            "classes": slices.balance(lake, contents),
            "incomplete": slices.incomplete(lake, contents),
            "labels_frozen": not slice_.live and not contents["label_events"].null_count,
            "spec": definitions.stored(slice_.spec, slice_.kind, slice_.definition),
        }
        facts |= plain(more)
        return facts

    @router.delete(
        PATH + "/{slice_name}", response_class=Response, openapi_extra=writes.body(writes.NoBody), responses=_DONE
    )
    async def delete(slice_name: SliceName, request: Request) -> Response:
        """Deletes a version, given as NAME@VERSION, with its tags. Its images and labels stay in the lake."""

        def write(_: NoBody, audit: Audit) -> dict[str, Any]:
            slice_ = _get(slice_name)
            if "@" not in slice_name:
                raise BadInput(f"give the version of {slice_name!r}: {slice_.id} is its newest")
            slices.delete(lake, slice_)
            audit("slice delete", slice_.id, {"size": slice_.size, "definition": slice_.definition})
            return _facts(slice_)

        return await writer.run(request, writes.NoBody, write)

    @router.get(PATH + "/{slice_name}/versions", responses=schemas.page_of({**_EXAMPLE, "added": 3, "removed": 1}))
    def versions(slice_name: SliceName, limit: Limit = 100, cursor: Cursor = None) -> dict[str, Any]:
        """Every version of a slice, oldest first, with deleted ones: what each added, removed and labelled anew."""
        with not_found("unknown_slice"):
            steps = slices.history(lake, slice_name.partition("@")[0])
        part, following = page(steps, lambda step: (step.slice.version,), cursor, limit)
        changes = ("added", "removed", "labels_changed", "erased")
        items = [_facts(s.slice, s.tags) | {name: getattr(s, name) for name in changes} for s in part]
        return {"items": items, "next": following}

    @router.get(PATH + "/{slice_name}/members", response_class=Response, responses=schemas.page_of(_HEX) | NOT_CHANGED)
    def members(
        slice_name: SliceName,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MOST_MEMBERS)] = 1_000,
        cursor: Cursor = None,
    ) -> Response:
        """image_ids of a version, sorted, without erased images. A frozen version's pages have an ETag."""
        slice_ = _get(slice_name)

        def make() -> dict[str, Any]:
            part, following = page(slices.members(lake, slice_).to_pylist(), lambda name: (name,), cursor, limit)
            return {"items": part, "next": following}

        if slice_.live:
            return Response(schemas.as_json(make()), media_type=JSON, headers={"Cache-Control": "no-store"})
        facts = (slice_.id, slice_.created_at, lake.version("forgotten"), cursor, limit)
        tag = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        return tagged(request, tag, lambda: schemas.as_json(make()))

    @router.get(PATH + "/{slice_name}/diff", responses=schemas.page_of({"image_id": _HEX, "change": "added"}))
    def diff(
        slice_name: SliceName,
        base: Annotated[str, Query(alias="from", min_length=1, max_length=250, description="the older slice")],
        limit: Annotated[int, Query(ge=1, le=MOST_MEMBERS)] = 1_000,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        """The exact difference of a slice from another: images added, removed, or with other labels, and counts."""
        before, after = _get(base), _get(slice_name)
        difference = slices.diff(lake, before, after)
        kinds = {
            "added": difference.added, "removed": difference.removed, "labels_changed": difference.labels_changed or []
        }  # fmt: skip
        rows = sorted((image_id, change) for change, ids in kinds.items() for image_id in ids)
        part, following = page(rows, lambda row: row, cursor, limit)
        counts = {change: len(ids) for change, ids in kinds.items()}
        counts |= {"kept": difference.kept, "erased": difference.erased}
        return {
            "from": before.id,
            "to": after.id,
            "counts": counts,
            "labels_known": difference.labels_changed is not None,
            "items": [{"image_id": image_id, "change": change} for image_id, change in part],
            "next": following,
        }

    @router.post(
        PATH + "/{slice_name}/freeze",
        response_class=Response,
        status_code=201,
        openapi_extra=writes.body(Freeze, {"role": "train", "drop_leaks": True}),
        responses={201: {"description": "the frozen version", "content": schemas.example(_EXAMPLE | {"dropped": 0})}},
    )
    async def freeze(slice_name: SliceName, request: Request) -> Response:
        """Saves the images that a live slice has now as its next version."""

        def write(how: Freeze, audit: Audit) -> dict[str, Any]:
            draft = slices.freeze(lake, _get(slice_name), how.role)
            return _saved(draft, how.drop_leaks, how.identity_only, audit)

        return await writer.run(request, Freeze, write, 201)

    @router.put(
        PATH + "/{slice_name}/role",
        response_class=Response,
        openapi_extra=writes.body(NewRole, {"role": "evaluation"}),
        responses=_DONE,
    )
    async def set_role(slice_name: SliceName, request: Request) -> Response:
        """Sets the role of a version. The role train is refused while it shares images with evaluation slices."""

        def write(new: NewRole, audit: Audit) -> dict[str, Any]:
            from embeddings.duplicates import leak_guard

            slice_ = _get(slice_name)
            with service.long_work.taken():
                slice_, leaks = leak_guard.assign(lake, slice_, new.role, identity_only=new.identity_only)
            audit("slice role", slice_.id, {"role": new.role})
            return _facts(slice_) | {"leaks": leaks.as_dict()}

        return await writer.run(request, NewRole, write)

    @router.put(
        PATH + "/{slice_name}/tags/{tag}",
        response_class=Response,
        openapi_extra=writes.body(writes.NoBody),
        responses=_DONE,
    )
    async def set_tag(slice_name: SliceName, tag: SliceTag, request: Request) -> Response:
        """Makes NAME@TAG this version, whatever it was before."""

        def write(_: NoBody, audit: Audit) -> dict[str, Any]:
            slice_ = _get(slice_name)
            slices.tag(lake, slice_, tag)
            audit("slice tag", f"{slice_.name}@{tag}", {"version": slice_.version})
            return _facts(slice_, slices.tags_by_id(lake).get(slice_.id, ()))

        return await writer.run(request, writes.NoBody, write)

    @router.delete(
        PATH + "/{slice_name}/tags/{tag}",
        response_class=Response,
        openapi_extra=writes.body(writes.NoBody),
        responses=_DONE,
    )
    async def remove_tag(slice_name: SliceName, tag: SliceTag, request: Request) -> Response:
        """Removes a tag of the slice, whichever version has it."""

        def write(_: NoBody, audit: Audit) -> dict[str, Any]:
            name = slice_name.partition("@")[0]
            with not_found("unknown_tag"):
                slices.untag(lake, name, tag)
            audit("slice untag", f"{name}@{tag}", {})
            return {"name": name, "tag": tag, "removed": True}

        return await writer.run(request, writes.NoBody, write)

    def _saved(draft: slices.SliceDraft, drop_leaks: bool, identity_only: bool, audit: Audit) -> dict[str, Any]:
        from embeddings.duplicates import leak_guard

        with service.long_work.taken():
            guarded, leaks = leak_guard.guarded(lake, draft, drop_leaks, identity_only)
        saved = slices.save(lake, guarded)
        audit("slice create", saved.id, {"kind": saved.kind, "definition": saved.definition})
        return _facts(saved) | _leak_facts(leaks, saved.role) | {"erased": draft.resolved.erased}

    def _get(name: str) -> slices.Slice:
        with not_found("unknown_slice"):
            return slices.get(lake, name)

    return router


def _facts(slice_: slices.Slice, tags: Any = ()) -> dict[str, Any]:
    facts: dict[str, Any] = plain(slice_.as_dict() | {"tags": list(tags)})
    del facts["spec"]  # JSON text; `show` has it as an object
    return facts


def _leak_facts(leaks: Leaks, role: str | None) -> dict[str, Any]:
    return {"leaks": leaks.as_dict(), "dropped": len(leaks.images) if role == "train" else 0}


_EXAMPLE = {
    "id": "night@3",
    "name": "night",
    "version": 3,
    "kind": "where",
    "definition": "metadata ->> 'hour' < '6'",
    "size": 1_204,
    "predictions_version": 91,
    "created_at": "2026-09-14T08:12:44.120000Z",
    "role": "evaluation",
    "live": False,
    "deleted_at": None,
    "identity_only": False,
    "tags": ["gold"],
}
_DONE = schemas.documented(_EXAMPLE)
