"""The versions of slices: which there are, by name, number and tag; their roles, and their end.

A row of `slices` is the commit: it is claimed before the members are written, marked as deleted, and shown when they
are there. So no two creations share a version, a slice that can be seen is whole, and a name with its version is never
given out again.
"""

from __future__ import annotations

import builtins
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from lake.errors import BadInput
from lake.slices import definition as definitions
from lake.slices.naming import check_name, check_tag, unknown
from lake.storage import leader_lock, schema, store
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import Lake

# How long a deletion waits for a backup to end.
DELETE_SECONDS = 60.0


@dataclass(frozen=True)
class Slice:
    """One version of a slice.

    `definition` says in words what `spec` says in JSON (null: made before there were specs). `size`: how many images
    it had when it was made, those erased since among them. `role`: train, evaluation, regression or None. `live`: its
    members are found anew whenever they are asked for; `size` is then what it was when it was made.
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

    @property
    def identity_only(self) -> bool:
        """Whether images of this training slice had no vector and were compared by identity only by the leak guard."""
        return self.spec is not None and bool(definitions.load(self.spec).get("identity_only"))


_FIELDS = builtins.list(Slice.__dataclass_fields__)


def list(lake: Lake, *, deleted: bool = False) -> Sequence[Slice]:  # `lake.slices.list` reads as what it is
    """Every version of every slice, by name, the newest version first; with `deleted` those that were deleted, too."""
    rows = lake.scan("slices", _FIELDS, None if deleted else "deleted_at IS NULL").to_pylist()
    made = [Slice(**(row | {"live": bool(row["live"])})) for row in rows]
    # A claim that never became a slice was never there to be deleted.
    made = [s for s in made if s.deleted_at != s.created_at]
    return sorted(made, key=lambda s: (s.name, -s.version))


def get(lake: Lake, name: str) -> Slice:
    """The slice NAME at its newest version, NAME@VERSION or NAME@TAG.

    Raises BadInput when there is none, with the nearest names, and when that version was deleted.
    """
    base, at, which = name.partition("@")
    every = list(lake, deleted=True)
    there = [s for s in every if s.deleted_at is None]
    named = [s for s in there if s.name == base]
    if not any(s.name == base for s in every):
        raise unknown("slice", name, (s.name for s in there))
    if not at and named:
        return named[0]
    version = int(which) if which.isascii() and which.isdecimal() and len(which) < 10 else None
    if at and version is None:
        known = {tag: number for (slice, tag), number in tags(lake).items() if slice == base}
        if which not in known:
            raise unknown("slice", name, [base, *(f"{base}@{one}" for one in [*known, *(s.version for s in named)])])
        version = known[which]
    for made in every:
        if made.name == base and version in (None, made.version):
            if made.deleted_at is None:
                return made
            left = f"; there is {named[0].id}" if named else ""
            raise BadInput(f"no slice {name!r}: {made.id} was deleted on {made.deleted_at:%Y-%m-%d}{left}")
    raise unknown("slice", name, [*{s.name for s in there}, *(s.id for s in named)])


def newest(lake: Lake, roles: Sequence[str] | None = None) -> Sequence[Slice]:
    """Each slice's newest version, by name; only those with one of `roles` when given."""
    first: dict[str, Slice] = {}
    for made in list(lake):
        first.setdefault(made.name, made)
    return [made for made in first.values() if roles is None or made.role in roles]


def claim(lake: Lake, made: Slice) -> Slice:
    """The slice with a version of its own that no other creation has or had; to be finished by `show`."""
    while True:
        taken = lake.scan("slices", ["version"], f"name = {literal(made.name)}")["version"].to_pylist()
        # Members of a creation that was interrupted by an older lakeloop count, too.
        taken += lake.scan("slice_members", ["version"], f"name = {literal(made.name)}")["version"].unique().to_pylist()
        fields = vars(made) | {"version": max(taken, default=0) + 1, "deleted_at": made.created_at}
        claimed = Slice(**fields)
        if lake.insert("slices", _rows([claimed])):
            return claimed


def show(lake: Lake, claimed: Slice) -> Slice:
    """A claimed slice whose members are written: it can be seen from here on."""
    return _replace(lake, claimed, deleted_at=None)


def set_role(lake: Lake, made: Slice, role: str | None, *, guarded: bool = False, identity_only: bool = False) -> Slice:
    """The version with another role; None takes it away.

    Raises BadInput for an unknown role, and for `train` unless the leak guard has compared it: `guarded`.
    `identity_only`: as `Slice.identity_only`.
    """
    check_role(role, made.live)
    check_guarded(role, guarded, "assign")
    if identity_only == made.identity_only:
        return _replace(lake, made, role=role)
    spec = definitions.stored(made.spec, made.kind, made.definition)
    spec.pop("identity_only", None)
    flag = {"identity_only": True} if identity_only else {}
    return _replace(lake, made, role=role, spec=json.dumps(spec | flag, ensure_ascii=False))


def delete(lake: Lake, made: Slice) -> None:
    """Deletes a version and its tags. Its images and labels stay.

    Raises BadInput when a live slice is made of it, LakeBusy while the lake is being backed up or maintained for long.
    """

    for other in list(lake):
        if other.live and other.id != made.id and other.spec is not None:
            for name in definitions.references(definitions.load(other.spec)):
                if name == made.id or (get(lake, name).id == made.id):
                    raise BadInput(f"{other.id} is live and made of {made.id}: delete or freeze that one first")
    # A backup between the two steps would have a slice without its members.
    with leader_lock.leader(lake, DELETE_SECONDS):
        _replace(lake, made, deleted_at=store.now())
        for (name, tag), version in tags(lake).items():
            if (name, version) == (made.name, made.version):
                untag(lake, name, tag)
        lake.delete("slice_members", f"id = {literal(made.id)}")


def tags(lake: Lake) -> dict[tuple[str, str], int]:
    """(slice, tag) -> the version it stands for."""
    rows = lake.scan("slice_tags", ["name", "tag", "version"], "version IS NOT NULL").to_pylist()
    return {(row["name"], row["tag"]): row["version"] for row in sorted(rows, key=lambda row: row["tag"])}


def tag(lake: Lake, made: Slice, tag: str) -> None:
    """Has NAME@TAG mean this version from now on, whatever it meant before."""
    check_tag(tag)
    _set_tag(lake, made.name, tag, made.version)


def untag(lake: Lake, name: str, tag: str) -> None:
    """Takes a tag away. Raises BadInput when the slice has no such tag."""
    known = [one for slice, one in tags(lake) if slice == name]
    if tag not in known:
        raise unknown("tag", tag, known, f"slice {name}")
    _set_tag(lake, name, tag, None)


def check_role(role: str | None, live: bool) -> None:
    """Raises BadInput for an unknown role, and for one that such a slice cannot have."""
    if role is not None and role not in definitions.ROLES:
        raise BadInput(f"role {role!r} is none of {', '.join(definitions.ROLES)}")
    if role == "train" and live:
        raise BadInput("a live slice changes under a training run: freeze it first, or make it without --live")


def check_guarded(role: str | None, guarded: bool, function: str) -> None:
    """Raises BadInput for a training slice that the leak guard has not compared; it names the guard's `function`."""
    if role == "train" and not guarded:
        raise BadInput(
            "a training slice must not share images with evaluation and regression slices: make it with "
            f"embeddings.duplicates.leak_guard.{function}, which compares them (or: lakeloop slice create --role train)"
        )


def check_free(lake: Lake, name: str) -> None:
    """Raises BadInput for a bad name, and when a slice has it or had it."""
    check_name(name)
    if any(s.name == name for s in list(lake, deleted=True)):
        raise BadInput(
            f"there is a slice {name!r} already; choose another name, or make its next version without --new"
        )


def _set_tag(lake: Lake, name: str, tag: str, version: int | None) -> None:
    row = {"id": f"{name}@{tag}", "name": name, "tag": tag, "version": version, "tagged_at": store.now()}
    lake.update("slice_tags", pa.Table.from_pylist([row], schema=schema.SLICE_TAGS.arrow()))


def _replace(lake: Lake, made: Slice, **changes: object) -> Slice:
    changed = Slice(**(vars(made) | changes))
    lake.update("slices", _rows([changed]))
    return changed


def _rows(made: Sequence[Slice]) -> pa.Table:
    return pa.Table.from_pylist([vars(s) | {"id": s.id} for s in made], schema=schema.SLICES.arrow())
