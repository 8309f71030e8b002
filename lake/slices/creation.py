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
from lake.slices import ground_truth, versions
from lake.slices import members as resolving
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
    """A slice that is not saved yet: its name, its definition and the images it has now.

    `drop_leaks`, `identity_only`: how the leak guard is to treat it. `guarded`: the leak guard has compared it with
    evaluation and regression slices; a training slice is saved only then.
    """

    name: str
    definition: Definition
    resolved: SliceMembers
    role: str | None = None
    live: bool = False
    drop_leaks: bool = False
    identity_only: bool = False
    guarded: bool = False

    @property
    def members(self) -> list[str]:
        return self.resolved.members

    def without(self, names: Collection[str]) -> SliceDraft:
        """The same draft without these images."""
        contents = self.resolved.contents
        rest = contents.filter(pc.invert(pc.is_in(contents["image_id"], pa.array(sorted(names), pa.string()))))
        return replace(self, resolved=replace(self.resolved, contents=rest))


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
    """The slice that `create` would save; nothing is written. Also for training slices. Raises as `create` does."""
    check_name(name)
    versions.check_role(role, live)
    if new:
        versions.check_free(lake, name)
    parts: dict[str, Any] = {
        "where": where, "ids": ids, "cluster": cluster, "search": search, "like": like, "union": union,
        "intersect": intersect,
    }  # fmt: skip
    flags = dict.fromkeys(definitions.GUARD_FLAGS, False)
    if spec is not None:
        if any(value is not None for value in parts.values()):
            raise BadInput("pass a spec or its parts, not both")
        parts = dict(spec)
        flags = {name: bool(parts.pop(name, False)) for name in flags}
    parts["minus"] = [*(parts.get("minus") or ()), *([minus] if isinstance(minus, str) else minus)]
    definition = definitions.check(parts)
    if live and "ids" in definition:
        raise BadInput("a slice of ids cannot be live: a list of ids does not change")
    definition = _with_embedder(lake, definition)
    resolved = resolving.find(lake, definition)
    if not resolved.contents.num_rows:
        raise BadInput(f"no image passes {definitions.words(definition)!r}; the slice would be empty")
    return SliceDraft(name, definition, resolved, role, live, **flags)


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


def save(lake: Lake, draft_to_save: SliceDraft) -> Slice:
    """Saves a draft with the images it has, even if the lake changed since.

    Raises BadInput if it is empty, and for a training slice that the leak guard has not compared.
    """
    versions.check_guarded(draft_to_save.role, draft_to_save.guarded, "create")
    contents = draft_to_save.resolved.contents
    if not contents.num_rows:
        raise BadInput(f"nothing is left of {definitions.words(draft_to_save.definition)!r}; the slice would be empty")
    kind = definitions.kind_of(draft_to_save.definition)
    words = f"{contents.num_rows:,} ids" if kind == "ids" and not draft_to_save.definition.get("minus") else None
    claimed = versions.claim(
        lake,
        Slice(
            draft_to_save.name,
            0,
            definitions.KIND_COLUMN[kind],
            words or definitions.words(draft_to_save.definition),
            contents.num_rows,
            draft_to_save.resolved.predictions_version,
            store.now(),
            definitions.dump(draft_to_save.definition, draft_to_save.drop_leaks, draft_to_save.identity_only),
            draft_to_save.role,
            draft_to_save.live,
        ),
    )
    if not draft_to_save.live:
        count = contents.num_rows
        rows = {
            "id": pa.array([claimed.id] * count, pa.string()),
            "name": pa.array([claimed.name] * count, pa.string()),
            "version": pa.array([claimed.version] * count, pa.int32()),
            "image_id": contents["image_id"],
            "label_events": contents["label_events"],
        }
        lake.insert("slice_members", pa.table(rows, schema=schema.SLICE_MEMBERS.arrow()))
    return versions.show(lake, claimed)


def freeze(lake: Lake, live: Slice, role: str | None = None) -> SliceDraft:
    """The draft of a live slice's next version, with the images it has now; `role` defaults to the live slice's."""
    if not live.live:
        raise BadInput(f"{live.id} is frozen already")
    return draft(lake, live.name, spec=resolving.stored_definition(live), role=role or live.role)


def balance(lake: Lake, contents: pa.Table) -> list[dict[str, Any]]:
    """How many images each class has: label (None: no complete label), images; most frequent first.

    By the labels in `label_events`; if those are null, by today's labels.
    """
    events = contents["label_events"]
    if events.null_count:
        names = contents["image_id"].to_pylist()
        rows = connections.query(
            lake,
            "SELECT image_id, label FROM labels_current WHERE task = 'classification' AND label IS NOT NULL"
            " AND incomplete IS NOT TRUE AND image_id IN (SELECT unnest(?))",
            [names],
        )
    else:
        wanted = pc.list_flatten(events).to_pylist()
        complete = "task = 'classification' and (incomplete is null or not incomplete)"
        rows = lake.look_up("labels", ["image_id", "label"], "event_id", wanted, complete)
    label_of = dict(zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    counts = Counter(label_of.get(name) for name in contents["image_id"].to_pylist())
    return [{"label": k, "images": n} for k, n in sorted(counts.items(), key=lambda entry: (-entry[1], str(entry[0])))]


def incomplete(lake: Lake, contents: pa.Table) -> dict[str, int]:
    """By task, how many images have a label of which a part could not be read: neither complete nor background."""
    events = ground_truth.current_events(lake, contents)["label_events"]
    rows = lake.look_up("labels", ["task"], "event_id", pc.list_flatten(events).to_pylist(), "incomplete")
    return dict(sorted(Counter(rows["task"].to_pylist()).items()))


def _with_embedder(lake: Lake, definition: Definition) -> Definition:
    """The definition with the lake's first embedder written out, where it names none."""
    if "like" in definition and definition["like"]["embedder"] is None:
        records = lake.embedders()
        if not records:
            raise BadInput("the lake has no embedder; run: lakeloop embed --embedder efficientnet-lite0")
        definition = definition | {"like": definition["like"] | {"embedder": records[0].name}}
    return definition
