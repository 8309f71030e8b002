"""Versions of slices: by name, number and tag; roles and deletion.

A row of `slices` is the commit: it is inserted as deleted before the members are written, and becomes visible after
them. So no two creations share a version, a visible slice is complete, and a version number is never used again.
"""

from __future__ import annotations

import builtins
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.errors import BadInput
from lake.slices import definition as definitions
from lake.slices.naming import check_name, check_tag, unknown
from lake.storage import leader_lock, schema, store
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import Lake

# How long a deletion waits for a backup to finish.
DELETE_SECONDS = 60.0


@dataclass(frozen=True)
class Slice:
    """One version of a slice.

    `spec`: its definition as JSON (None: made before there were specs); `definition`: the same in words. `size`: how
    many images it had when it was created, with those erased since. `role`: train, evaluation, regression or None.
    `live`: its members are found at every use; `size` is then that of its creation.
    """

    name: str
    version: int
    kind: str
    definition: str
    size: int
    predictions_version: int
    created_at: dt.datetime
    spec: str | None = None
    role: str | None = None
    live: bool = False
    deleted_at: dt.datetime | None = None

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    def as_dict(self) -> dict[str, Any]:
        """All fields, with `id` and `identity_only`; JSON values except the times."""
        return {"id": self.id, **vars(self), "identity_only": self.identity_only}

    @property
    def identity_only(self) -> bool:
        """Whether images of this training slice had no vector and were compared by identity only by the leak guard."""
        return self.spec is not None and bool(definitions.load(self.spec).get("identity_only"))


_FIELDS = builtins.list(Slice.__dataclass_fields__)


def list(lake: Lake, *, deleted: bool = False) -> Sequence[Slice]:  # `lake.slices.list` reads as what it is
    """Every version of every slice, by name, newest version first; with `deleted`, deleted versions, too."""
    rows = lake.scan("slices", _FIELDS, None if deleted else "deleted_at IS NULL").to_pylist()
    slices = [Slice(**(row | {"live": bool(row["live"])})) for row in rows]
    # A version that was claimed but never shown is no slice.
    slices = [s for s in slices if s.deleted_at != s.created_at]
    return sorted(slices, key=lambda s: (s.name, -s.version))


def get(lake: Lake, name: str) -> Slice:
    """The slice NAME at its newest version, NAME@VERSION or NAME@TAG.

    Raises BadInput if there is none, with the nearest names, or if that version was deleted.
    """
    base, at, suffix = name.partition("@")
    slices = list(lake, deleted=True)
    present = [s for s in slices if s.deleted_at is None]
    versions = [s for s in present if s.name == base]
    if not any(s.name == base for s in slices):
        raise unknown("slice", name, (s.name for s in present))
    if not at and versions:
        return versions[0]
    version = int(suffix) if suffix.isascii() and suffix.isdecimal() and len(suffix) < 10 else None
    if at and version is None:
        tag_versions = {tag: number for (slice, tag), number in tags(lake).items() if slice == base}
        if suffix not in tag_versions:
            raise unknown(
                "slice",
                name,
                [base, *(f"{base}@{number}" for number in [*tag_versions, *(s.version for s in versions)])],
            )
        version = tag_versions[suffix]
    for slice_ in slices:
        if slice_.name == base and version in (None, slice_.version):
            if slice_.deleted_at is None:
                return slice_
            hint = f"; there is {versions[0].id}" if versions else ""
            raise BadInput(f"no slice {name!r}: {slice_.id} was deleted on {slice_.deleted_at:%Y-%m-%d}{hint}")
    raise unknown("slice", name, [*{s.name for s in present}, *(s.id for s in versions)])


def newest(lake: Lake, roles: Sequence[str] | None = None) -> Sequence[Slice]:
    """Each slice's newest version, by name; with `roles`, only those with one of these roles."""
    newest_of: dict[str, Slice] = {}
    for slice_ in list(lake):
        newest_of.setdefault(slice_.name, slice_)
    return [slice_ for slice_ in newest_of.values() if roles is None or slice_.role in roles]


def claim(lake: Lake, slice_: Slice) -> Slice:
    """The slice with a version number that was never used; `show` makes it visible."""
    while True:
        taken = lake.scan("slices", ["version"], f"name = {literal(slice_.name)}")["version"].to_pylist()
        # An older lakeloop that was interrupted left members without a row of `slices`.
        taken += (
            lake.scan("slice_members", ["version"], f"name = {literal(slice_.name)}")["version"].unique().to_pylist()
        )
        fields = vars(slice_) | {"version": max(taken, default=0) + 1, "deleted_at": slice_.created_at}
        claimed = Slice(**fields)
        if lake.insert("slices", _rows([claimed])):
            return claimed


def show(lake: Lake, claimed: Slice) -> Slice:
    """Makes a claimed slice visible, once its members are written."""
    return _replace(lake, claimed, deleted_at=None)


def set_role(
    lake: Lake, slice_: Slice, role: str | None, *, guarded: bool = False, identity_only: bool = False
) -> Slice:
    """Gives the version another role; None removes it.

    Raises BadInput for an unknown role, and for `train` unless the leak guard has compared it: `guarded`.
    `identity_only`: as `Slice.identity_only`.
    """
    check_role(role, slice_.live)
    check_guarded(role, guarded, "assign")
    if identity_only == slice_.identity_only:
        return _replace(lake, slice_, role=role)
    spec = definitions.stored(slice_.spec, slice_.kind, slice_.definition)
    spec.pop("identity_only", None)
    flag = {"identity_only": True} if identity_only else {}
    return _replace(lake, slice_, role=role, spec=json.dumps(spec | flag, ensure_ascii=False))


def delete(lake: Lake, slice_: Slice) -> None:
    """Deletes a version and its tags. Its images and labels stay.

    Raises BadInput if a live slice, a run or a gate's verdict depends on it, LakeBusy if a backup or maintenance takes
    too long.
    """
    _refuse_used(lake, slice_)
    for other in list(lake):
        if other.live and other.id != slice_.id and other.spec is not None:
            for name in definitions.references(definitions.load(other.spec)):
                if name == slice_.id or (get(lake, name).id == slice_.id):
                    raise BadInput(f"{other.id} is live and refers to {slice_.id}: delete or freeze that one first")
    # A backup between the two steps would have the slice without its members.
    with leader_lock.leader(lake, DELETE_SECONDS):
        _replace(lake, slice_, deleted_at=store.now())
        for (name, tag), version in tags(lake).items():
            if (name, version) == (slice_.name, slice_.version):
                untag(lake, name, tag)
        lake.delete("slice_members", f"id = {literal(slice_.id)}")


def _refuse_used(lake: Lake, slice_: Slice) -> None:
    """Raises BadInput if a run was trained, or a verdict given, on this version: both name it as NAME@VERSION."""
    quoted = json.dumps(slice_.id)
    for row in lake.scan("runs", ["id", "data"], "data IS NOT NULL AND status <> 'failed'").to_pylist():
        if quoted in row["data"]:
            raise BadInput(f"run {row['id']} depends on {slice_.id}, which says what it learnt from: it stays")
    for row in lake.scan("gates", ["id", "candidate", "slices"]).to_pylist():
        if quoted in row["slices"]:
            raise BadInput(f"the gate of run {row['candidate']} was judged on {slice_.id}: it stays")


def tags(lake: Lake) -> dict[tuple[str, str], int]:
    """(slice, tag) -> version."""
    rows = lake.scan("slice_tags", ["name", "tag", "version"], "version IS NOT NULL").to_pylist()
    return {(row["name"], row["tag"]): row["version"] for row in sorted(rows, key=lambda row: row["tag"])}


def tags_by_id(lake: Lake) -> dict[str, Sequence[str]]:
    """NAME@VERSION -> its tags, sorted, for the versions that have any."""
    by_id: dict[str, builtins.list[str]] = {}
    for (name, tag), version in tags(lake).items():
        by_id.setdefault(f"{name}@{version}", []).append(tag)
    return {**by_id}


def tag(lake: Lake, slice_: Slice, tag: str) -> None:
    """Sets NAME@TAG to this version, whatever it was before."""
    check_tag(tag)
    _set_tag(lake, slice_.name, tag, slice_.version)


def untag(lake: Lake, name: str, tag: str) -> None:
    """Removes a tag. Raises BadInput if the slice has no such tag."""
    known = [slice_tag for slice, slice_tag in tags(lake) if slice == name]
    if tag not in known:
        raise unknown("tag", tag, known, f"slice {name}")
    _set_tag(lake, name, tag, None)


def check_role(role: str | None, live: bool) -> None:
    """Raises BadInput for an unknown role, and for a live slice with the role train."""
    if role is not None and role not in definitions.ROLES:
        raise BadInput(f"role is {role!r}; it must be one of {', '.join(definitions.ROLES)}")
    if role == "train" and live:
        raise BadInput("a live slice cannot have the role train, whose images change: freeze it first, or omit --live")


def check_guarded(role: str | None, guarded: bool, function: str) -> None:
    """Raises BadInput for a training slice that the leak guard has not compared; it names the guard's `function`."""
    if role == "train" and not guarded:
        raise BadInput(
            "a training slice must not share images with evaluation and regression slices: make it with "
            f"embeddings.duplicates.leak_guard.{function}, which compares them (or: lakeloop slice create --role train)"
        )


def check_free(lake: Lake, name: str) -> None:
    """Raises BadInput if the name is not valid, or if a slice has or had it."""
    check_name(name)
    if any(s.name == name for s in list(lake, deleted=True)):
        raise BadInput(
            f"the slice {name!r} exists already; choose another name, or create its next version without --new"
        )


def _set_tag(lake: Lake, name: str, tag: str, version: int | None) -> None:
    row = {"id": f"{name}@{tag}", "name": name, "tag": tag, "version": version, "tagged_at": store.now()}
    lake.update("slice_tags", pa.Table.from_pylist([row], schema=schema.SLICE_TAGS.arrow()))


def _replace(lake: Lake, slice_: Slice, **changes: object) -> Slice:
    changed = Slice(**(vars(slice_) | changes))
    lake.update("slices", _rows([changed]))
    return changed


def _rows(slices: Sequence[Slice]) -> pa.Table:
    return pa.Table.from_pylist([vars(s) | {"id": s.id} for s in slices], schema=schema.SLICES.arrow())
