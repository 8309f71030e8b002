"""Finds the images of a definition and their labels, from one version of every table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lake import ids as identity
from lake.errors import BadInput, LakeBusy
from lake.slices import definition as definitions
from lake.slices import versions
from lake.slices.definition import Definition
from lake.slices.naming import unknown
from lake.slices.versions import Slice
from lake.sql import connections
from lake.sql import where as filters
from lake.storage.vectors import vector_of

if TYPE_CHECKING:
    import duckdb

    from lake.storage.store import Lake

# Each attempt takes milliseconds; only a lake with constant commits needs more than one.
ATTEMPTS = 50
_TABLES = "samples labels slice_members cluster_members marks searches forgotten"
_LABELS = """
    SELECT m.image_id, coalesce(list(l.event_id ORDER BY l.event_id) FILTER (WHERE l.event_id IS NOT NULL), [])
           AS label_events
    FROM _members m LEFT JOIN labels_current l USING (image_id) GROUP BY m.image_id ORDER BY m.image_id"""


@dataclass(frozen=True)
class SliceMembers:
    """`contents`: image_id, sorted, and label_events, of the images of a definition. `predictions_version`: the version
    that was read. `erased`: how many of its ids were erased.
    """

    contents: pa.Table
    predictions_version: int
    erased: int = 0

    @property
    def members(self) -> list[str]:
        names: list[str] = self.contents["image_id"].to_pylist()
        return names


def find(lake: Lake, definition: Definition) -> SliceMembers:
    """The images of a checked definition now, and their current labels. Raises BadInput for unknown names and ids."""
    _check_filters(lake, definition)
    with _snapshot(lake, definition) as snapshot:
        names = snapshot.resolve(definition)
        erased = names & snapshot.erased(names)
        contents = _labels(snapshot.connection, sorted(names - erased))
        return SliceMembers(contents, snapshot.version, len(erased))


def contents(lake: Lake, slice_: Slice) -> pa.Table:
    """image_id, sorted, and label_events of a slice's images, without erased ones.

    label_events: the labels it was frozen with; today's for a live slice; null if it was made before labels were
    frozen: its labels are today's.
    """
    if slice_.live:
        return find(lake, stored_definition(slice_)).contents
    rows = lake.look_up("slice_members", ["image_id", "label_events"], "id", [slice_.id]).sort_by("image_id")
    erased_ids = erased(lake, rows["image_id"].to_pylist())
    if erased_ids:
        import pyarrow.compute as pc

        rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(sorted(erased_ids), pa.string()))))
    return rows.combine_chunks()


def members(lake: Lake, slice_: Slice) -> pa.ChunkedArray:
    """Its image_ids, sorted, without erased ones."""
    return contents(lake, slice_)["image_id"]


def erased(lake: Lake, names: Sequence[str]) -> set[str]:
    """Those of the images that were erased."""
    if not names or not lake.dataset("forgotten").count_rows():
        return set()
    return set(lake.erased(names))


def stored_definition(slice_: Slice) -> Definition:
    """The definition in a slice's spec, without the guard flags. Raises BadInput if it has no spec."""
    if slice_.spec is None:
        raise BadInput(f"{slice_.id} was made before slices had specs")
    definition = definitions.load(slice_.spec)
    return {key: value for key, value in definition.items() if key not in definitions.GUARD_FLAGS}


def spec(lake: Lake, slice_: Slice) -> Definition:
    """The whole definition: `slices.create` creates the slice again from it, at another version of the lake."""
    definition = definitions.stored(slice_.spec, slice_.kind, slice_.definition)
    return definition | ({"ids": members(lake, slice_).to_pylist()} if "ids" in definition else {})


# ----------------------------------------------------------------------------------------------------------


@dataclass
class _Snapshot:
    lake: Lake
    connection: duckdb.DuckDBPyConnection
    version: int
    open: list[str] = field(default_factory=list)  # the live slices being resolved, outermost first

    def resolve(self, definition: Definition) -> set[str]:
        kind = definitions.kind_of(definition)
        value = definition[kind]
        image_ids: set[str] = getattr(self, f"_{kind}")(value)
        for name in definition.get("minus", ()):
            image_ids = image_ids - self._slice(name)
        return image_ids

    def erased(self, names: set[str]) -> set[str]:
        tombstones = self.names("SELECT image_id FROM forgotten")
        return names & tombstones

    def names(self, query: str, parameters: Sequence[Any] = ()) -> set[str]:
        import duckdb

        try:
            values = self.connection.sql(query, params=[*parameters]).to_arrow_table().column(0).to_pylist()
        except duckdb.Error as error:  # a cast that fails on some row
            raise BadInput(str(error)) from error
        return set(values)

    def _where(self, text: str) -> set[str]:
        return self.names(f"SELECT DISTINCT image_id FROM samples WHERE {filters.predicate(text)}")

    def _ids(self, ids: Sequence[str]) -> set[str]:
        images = {i for i in ids if identity.kind(i) == "image"}
        predictions = {str(identity.as_uuid(i)) for i in ids if identity.kind(i) == "prediction"}
        erased = self.erased(images)
        rest = images - erased
        rest -= self.lake.known("images", "image_id", sorted(rest))
        # The lake may have a prediction without its image's bytes.
        missing = sorted(rest - self.lake.known("samples", "image_id", sorted(rest)))
        rows = self.lake.look_up("samples", ["prediction_id", "image_id"], "prediction_id", sorted(predictions))
        missing += sorted(predictions - set(rows["prediction_id"].to_pylist()))
        if missing:
            raise BadInput(f"the lake does not have {len(missing)} of the ids, the first is {missing[0]}")
        return images | set(rows["image_id"].to_pylist())

    def _cluster(self, nodes: Sequence[str]) -> set[str]:
        if not nodes:
            raise BadInput(
                "a cluster slice needs a node, TREE/PATH; `lakeloop cluster` and the table clusters list them"
            )
        rows = self.connection.sql(
            "SELECT id, image_id FROM cluster_members WHERE id IN (SELECT unnest(?))", params=[[*nodes]]
        ).to_arrow_table()
        known = set(rows["id"].to_pylist())
        for node in nodes:
            if node not in known:
                raise unknown("node", node, self.names("SELECT DISTINCT id FROM cluster_members"))
        return set(rows["image_id"].to_pylist())

    def _search(self, name: str) -> set[str]:
        rows = self.lake.scan("searches", ["id", "name"]).to_pylist()
        matches = [r["id"] for r in rows if r["id"] == name] or [r["id"] for r in rows if r["name"] == name]
        if not matches:
            raise unknown("search", name, (r["name"] or r["id"] for r in rows))
        if len(matches) > 1:
            raise BadInput(f"{len(matches)} searches have the name {name!r}; use an id: {', '.join(sorted(matches))}")
        return self.names("SELECT image_id FROM marks_current WHERE search = ? AND mark = 'yes'", [matches[0]])

    def _like(self, ball: dict[str, Any]) -> set[str]:
        records = self.lake.embedders()
        record = next((r for r in records if ball["embedder"] in (None, r.name)), None)
        if record is None:
            raise unknown("embedder", str(ball["embedder"]), (r.name for r in records))
        dim = record.require_dim()
        centre = np.zeros(dim, np.float32)
        for example in ball["ids"]:
            vector = vector_of(self.lake, record, example, self.version)
            centre += vector / max(float(np.linalg.norm(vector)), 1e-12)
        if not np.linalg.norm(centre):
            raise BadInput("the mean of the examples' vectors is zero and has no direction")
        centre /= np.linalg.norm(centre)
        image_ids: set[str] = set()
        # A copy's cosine is 1 up to rounding; a radius of 0 must find it.
        threshold = 1 - ball["radius"] - 1e-6
        batches = self.lake.dataset("samples", self.version).to_batches(
            columns=["image_id", record.column], filter=f"{record.column} is not null"
        )
        for batch in batches:
            vectors = np.asarray(batch[record.column].flatten(), np.float32).reshape(-1, dim)
            lengths = np.linalg.norm(vectors, axis=1)
            near = vectors @ centre >= threshold * lengths
            image_ids |= set(batch["image_id"].filter(pa.array(near)).to_pylist())
        return image_ids

    def _union(self, parts: Sequence[str | Definition]) -> set[str]:
        return set().union(*(self._part(part) for part in parts))

    def _intersect(self, parts: Sequence[str | Definition]) -> set[str]:
        first, *others = (self._part(part) for part in parts)
        return first.intersection(*others)

    def _part(self, part: str | Definition) -> set[str]:
        return self._slice(part) if isinstance(part, str) else self.resolve(part)

    def _slice(self, name: str) -> set[str]:
        slice_ = versions.get(self.lake, name)
        if not slice_.live:
            return self.names("SELECT image_id FROM slice_members WHERE id = ?", [slice_.id])
        if slice_.id in self.open:
            raise BadInput(f"{slice_.id} is defined in terms of itself: {' -> '.join([*self.open, slice_.id])}")
        self.open.append(slice_.id)
        definition = stored_definition(slice_)
        image_ids = self.resolve(definition)
        self.open.pop()
        return image_ids


@contextmanager
def _snapshot(lake: Lake, definition: Definition) -> Iterator[_Snapshot]:
    """A connection with one version of every table, and the version of samples."""
    text = f"{_TABLES} labels_current marks_current {' '.join(map(filters.predicate, _filters(lake, definition)))}"
    for _ in range(ATTEMPTS):
        before = lake.version("samples")
        with connections.connect(lake, text) as connection:
            if lake.version("samples") == before:
                yield _Snapshot(lake, connection, before)
                return
    raise LakeBusy(f"samples of {lake.uri} kept changing while they were read; try again")


def _labels(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> pa.Table:
    connection.register("_members", pa.table({"image_id": pa.array(names, pa.string())}))
    try:
        rows = connection.sql(_LABELS).to_arrow_table()
    finally:
        connection.unregister("_members")
    return rows.cast(pa.schema([("image_id", pa.string()), ("label_events", pa.list_(pa.string()))]))


def _filters(lake: Lake, definition: Definition, seen: frozenset[str] = frozenset()) -> list[str]:
    """Every SQL filter in the definition and in the live slices it refers to: they may use any table."""
    texts = [definition["where"]] if "where" in definition else []
    for part in (*definition.get("union", ()), *definition.get("intersect", ()), *definition.get("minus", ())):
        if not isinstance(part, str):
            texts += _filters(lake, part, seen)
        elif (slice_ := versions.get(lake, part)).live and slice_.id not in seen:
            texts += _filters(lake, stored_definition(slice_), seen | {slice_.id})
    return texts


def _check_filters(lake: Lake, definition: Definition) -> None:
    for text in _filters(lake, definition):
        filters.check(lake, text)
