"""Creates slices: a draft first, so that you can look at it; then it is saved, whole or not at all.

A training slice is refused here, since nothing here knows near-duplicates: `embeddings/duplicates/leak_guard.py` makes
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from lake.errors import BadInput
from lake.slices import definition as definitions
from lake.slices import members as resolving
from lake.slices import versions
from lake.slices.definition import Definition
from lake.slices.members import SliceMembers
from lake.slices.naming import check_name
from lake.slices.versions import Slice
from lake.sql import connections
from lake.storage import schema, store

if TYPE_CHECKING:
    from lake.storage.store import Lake


@dataclass(frozen=True)
class SliceDraft:
    """A slice that is not saved: what it would be called, its definition, and what it has now.

    `drop_leaks`, `identity_only`: how the leak guard is to treat it. `guarded`: the leak guard has compared it with
    evaluation and regression slices; a training slice is saved only then.
    """

    name: str
    definition: Definition
    found: SliceMembers
    role: str | None = None
    live: bool = False
    drop_leaks: bool = False
    identity_only: bool = False
    guarded: bool = False

    @property
    def members(self) -> list[str]:
        return self.found.members

    def without(self, names: Collection[str]) -> SliceDraft:
        """The same, less some images."""
        table = self.found.contents
        kept = table.filter(pc.invert(pc.is_in(table["image_id"], pa.array(sorted(names), pa.string()))))
        return replace(self, found=replace(self.found, contents=kept))


def draft(
    lake: Lake,
    name: str,
    *,
    where: str | None = None,
    ids: Sequence[str] | None = None,
    cluster: str | Sequence[str] | None = None,
    search: str | None = None,
    like: Mapping[str, Any] | None = None,
    union: Sequence[str | Definition] | None = None,
    intersect: Sequence[str | Definition] | None = None,
    minus: Sequence[str] = (),
    spec: Mapping[str, Any] | None = None,
    role: str | None = None,
    live: bool = False,
    new: bool = False,
) -> SliceDraft:
    """What `create` would save. Nothing is written. Raises as `create` does."""
    check_name(name)
    versions.check_role(role, live)
    if new:
        versions.check_free(lake, name)
    given: dict[str, Any] = {
        "where": where, "ids": ids, "cluster": cluster, "search": search, "like": like, "union": union,
        "intersect": intersect,
    }  # fmt: skip
    flags = dict.fromkeys(definitions.GUARD_FLAGS, False)
    if spec is not None:
        if any(value is not None for value in given.values()):
            raise BadInput("give a spec or its parts, not both")
        given = dict(spec)
        flags = {name: bool(given.pop(name, False)) for name in flags}
    given["minus"] = [*(given.get("minus") or ()), *([minus] if isinstance(minus, str) else minus)]
    definition = definitions.check(given)
    if live and "ids" in definition:
        raise BadInput("a list of ids does not change: a slice of ids cannot be live")
    definition = _named(lake, definition)
    found = resolving.find(lake, definition)
    if not found.contents.num_rows:
        raise BadInput(f"no image passes {definitions.words(definition)!r}; the slice would be empty")
    return SliceDraft(name, definition, found, role, live, **flags)


def create(lake: Lake, name: str, **definition: Any) -> Slice:
    """Saves the images of a definition as a slice, or as the next version of the slice of that name.

    Give exactly one of: `where`, a SQL filter on predictions; `ids` of images or predictions; `cluster`, a node TREE/
    PATH or several; `search`, the name or id of an active search; `like`, {"ids", "radius", "embedder"}, the images
    within a cosine distance of the mean of some; `union` or `intersect`, slices by name or definitions. Or `spec`: a
    definition as `spec()` gives it. `minus`: slices to take away. `role`: evaluation or regression; a training slice
    is made by `embeddings.duplicates.leak_guard.create`. `live`: store no members. `new`: the name must be free.
    Raises BadInput for a bad name, definition or role, for what the lake does not have, and for an empty result;
    nothing is changed then.
    """
    return save(lake, draft(lake, name, **definition))


def save(lake: Lake, made: SliceDraft) -> Slice:
    """Writes a draft: the members it has, not those it would have now.

    Raises BadInput if it is empty, and for a training slice that the leak guard has not compared.
    """
    versions.check_guarded(made.role, made.guarded, "create")
    table = made.found.contents
    if not table.num_rows:
        raise BadInput(f"nothing is left of {definitions.words(made.definition)!r}; the slice would be empty")
    kind = definitions.kind_of(made.definition)
    words = f"{table.num_rows:,} ids" if kind == "ids" and not made.definition.get("minus") else None
    claimed = versions.claim(
        lake,
        Slice(
            made.name,
            0,
            definitions.NAMED[kind],
            words or definitions.words(made.definition),
            table.num_rows,
            made.found.predictions_version,
            store.now(),
            definitions.dump(made.definition, made.drop_leaks, made.identity_only),
            made.role,
            made.live,
        ),
    )
    if not made.live:
        count = table.num_rows
        rows = {
            "id": pa.array([claimed.id] * count, pa.string()),
            "name": pa.array([claimed.name] * count, pa.string()),
            "version": pa.array([claimed.version] * count, pa.int32()),
            "image_id": table["image_id"],
            "label_events": table["label_events"],
        }
        lake.insert("slice_members", pa.table(rows, schema=schema.SLICE_MEMBERS.arrow()))
    return versions.show(lake, claimed)


def freeze(lake: Lake, live: Slice, role: str | None = None) -> SliceDraft:
    """The draft of a live slice's next version, with what it has now; its role unless another is given."""
    if not live.live:
        raise BadInput(f"{live.id} is frozen already")
    return draft(lake, live.name, spec=resolving.stored_definition(live), role=role or live.role)


def balance(lake: Lake, contents: pa.Table) -> list[dict[str, Any]]:
    """How many images of each class: label (None: not labelled), images; the commonest first.

    By the labels in `label_events`; where those are null, by today's.
    """
    events = contents["label_events"]
    if events.null_count:
        names = contents["image_id"].to_pylist()
        rows = connections.query(
            lake,
            "SELECT image_id, label FROM labels_current WHERE task = 'classification' AND label IS NOT NULL"
            " AND image_id IN (SELECT unnest(?))",
            [names],
        )
    else:
        wanted = pc.list_flatten(events).to_pylist()
        rows = lake.look_up("labels", ["image_id", "label"], "event_id", wanted, "task = 'classification'")
    said = dict(zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    counts = Counter(said.get(name) for name in contents["image_id"].to_pylist())
    return [{"label": k, "images": n} for k, n in sorted(counts.items(), key=lambda one: (-one[1], str(one[0])))]


def _named(lake: Lake, definition: Definition) -> Definition:
    """The definition with what "the first" and a search's name mean today written out."""
    if "like" in definition and definition["like"]["embedder"] is None:
        records = lake.embedders()
        if not records:
            raise BadInput("the lake has no embedder; run: lakeloop embed --embedder efficientnet-lite0")
        definition = definition | {"like": definition["like"] | {"embedder": records[0].name}}
    return definition
