"""Dimensions that metrics are split by: from a name to SQL, and from a value back to a filter.

A dimension gives each prediction one value, as text, or several (a prediction counts in every size its boxes have).
Numbers with many values are put into bins of equal numbers of predictions. Each value has a predicate that selects its
predictions, so any cell of a table can become a filter or a slice.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import slices
from lake.errors import BadInput
from lake.regions.sizes import SIZES, bucket_sql
from lake.sql import connections
from lake.sql.where import predicate
from lake.storage import schema
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import Lake

BINS = 5
MOST_VALUES = 12  # distinct numbers that are shown as they are, without bins
_KEYS_FROM = 50_000  # rows, oldest and newest, whose metadata is searched for keys
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_TIME = {
    "hour": ("hour of the day", "strftime(timestamp, '%H')"),
    "weekday": ("day of the week", "dayname(timestamp)"),
    "day": ("day", "strftime(timestamp, '%Y-%m-%d')"),
    "week": ("week", "strftime(date_trunc('week', timestamp), '%Y-%m-%d')"),
    "month": ("month", "strftime(timestamp, '%Y-%m')"),
}
_IMAGE = ("width", "height", "format", "size_bytes")
_PREDICTED = {"predicted": "label"}
_PLAIN = ("label", "model", "model_version", "task", "source", "image_status", "confidence", "latency_ms")
_DESCRIBED = {
    "label": "predicted label",
    "true_label": "true label",
    "version": "model and version",
    "judged_by": "judged by",
    "folder": "source folder",
    "box_size": "size of boxes",
    "mask_size": "size of masks",
    "size_bytes": "file size, bytes",
    "latency_ms": "latency, ms",
}


@dataclass(frozen=True)
class Dimension:
    """`sql`: an expression over predictions_reviewed `a` and `join`: the value as text, null for none.

    `several`: `sql` is a list of values, and a prediction counts in each. `order`: the values' own order, if they have
    one. `picks(value)`: the predicate over predictions for a value, or None if there is none.
    """

    name: str
    title: str
    sql: str
    picks: Callable[[str | None], str | None]
    join: str = ""
    several: bool = False
    order: tuple[str, ...] = ()


def names(lake: Lake) -> list[str]:
    """Every dimension of the lake: promoted columns first, then the most used ones."""
    found_ = [*lake.promoted(), *(f"metadata.{key}" for key in metadata_keys(lake))]
    found_ += ["label", "true_label", "version", "model", "model_version", "task", "folder", *_TIME, *_IMAGE]
    found_ += ["box_size", "mask_size", "confidence", "latency_ms", "source", "image_status", "judged_by"]
    found_ += ["cluster"] if newest_tree(lake) else []
    return [*dict.fromkeys(found_), *(["slice"] if slices.list(lake) else [])]


def metadata_keys(lake: Lake) -> list[str]:
    """Keys of the metadata of the oldest and the newest predictions, sorted."""
    dataset = lake.dataset("samples")
    total = dataset.count_rows()
    start = max(0, total - _KEYS_FROM // 2)
    parts = [dataset.scanner(columns=["metadata"], limit=_KEYS_FROM // 2).to_table()]
    if start:
        parts.append(dataset.scanner(columns=["metadata"], limit=_KEYS_FROM // 2, offset=start).to_table())
    import duckdb

    with duckdb.connect(":memory:") as connection:
        connection.register("m", pa.concat_tables(parts))
        found_ = connection.sql(
            "SELECT DISTINCT unnest(json_keys(metadata)) FROM m WHERE json_valid(metadata) "
            "AND json_type(metadata) = 'OBJECT'"
        ).fetchall()
    return sorted(key for (key,) in found_ if '"' not in key and "\\" not in key)


def newest_tree(lake: Lake) -> str | None:
    """The newest drill-down tree, or None."""
    found_ = lake.scan("clusters", ["tree", "created_at"], "node = ''").sort_by([("created_at", "descending")])
    return None if not found_.num_rows else str(found_["tree"][0].as_py())


def resolve(lake: Lake, requested: Sequence[str], where: str | None = None) -> list[Dimension]:
    """The dimensions with these names; bins are computed from the predictions that pass `where`.

    A name is a column, a promoted column, a key of the metadata (`metadata.KEY`, or KEY alone), `day`, `week`, ..., an
    image's `width`, `height` or `format`, `box_size`, `mask_size`, `version`, `cluster` (of the newest tree,
    `cluster:TREE` or `cluster:TREE/PATH` for the nodes below one), or `slice` (`slice:NAME`: in it or not).
    Raises BadInput for any other, with the nearest names.
    """
    resolved = [_named(lake, name) for name in requested]
    return _binned(lake, resolved, where)


@dataclass(frozen=True)
class _Number:
    """A dimension of numbers, before it is known whether they need bins: `sql` is the number."""

    name: str
    title: str
    sql: str
    join: str = ""
    inside: str = ""  # the same over predictions alone; empty: `sql`


def _named(lake: Lake, name: str) -> Dimension | _Number:
    kind, colon, rest = name.partition(":")
    name = _PREDICTED.get(name, name)
    title = _DESCRIBED.get(name, name.removeprefix("metadata.").replace("_", " "))
    promoted = lake.promoted()
    if kind == "cluster":
        return _cluster(lake, name, rest)
    if kind == "slice":
        return _slice(lake, name, rest)
    if colon:
        raise _unknown(lake, name)
    if name in promoted or name in _PLAIN:
        arrow = promoted.get(name) or next(c.type for c in schema.SAMPLES.columns if c.name == name)
        return _column(name, title, arrow)
    if name == "true_label":
        labelled = (
            "SELECT image_id FROM labels_current WHERE task = 'classification' AND incomplete IS NOT TRUE AND label"
        )
        return Dimension(name, title, "a.true_label", lambda v: _among(v, labelled, "is not distinct from"))
    if name == "judged_by":
        judged = "SELECT prediction_id FROM predictions_reviewed WHERE judged_by"
        return Dimension(name, title, "a.judged_by", lambda v: f"prediction_id IN ({judged} {_is(v)})")
    if name == "version":
        name_and_version = "model || coalesce(' ' || model_version, '')"
        return Dimension(name, title, name_and_version, lambda v: f"{name_and_version} {_is(v)}")
    if name == "folder":
        folder = "regexp_replace(source, '/?[^/]*$', '')"
        return Dimension(name, title, folder.replace("source", "a.source"), lambda v: f"{folder} {_is(v)}")
    if name in _TIME:
        title, sql = _TIME[name]
        order = WEEKDAYS if name == "weekday" else ()
        return Dimension(name, title, sql, lambda v: f"{sql} {_is(v)}", order=order)
    if name in _IMAGE:
        return _of_image(name, title)
    if name == "box_size":
        sql = f"list_distinct(list_transform(a.boxes, lambda b: {bucket_sql('b.width * b.height')}))"
        return Dimension(name, title, sql, _box_size, several=True, order=SIZES)
    if name == "mask_size":
        join = "LEFT JOIN _mask_sizes m USING (prediction_id)"
        return Dimension(name, title, "m.sizes", lambda v: None, join, several=True, order=SIZES)
    keys = metadata_keys(lake)
    if name.removeprefix("metadata.") in keys:
        return _metadata(name.removeprefix("metadata."))
    raise _unknown(lake, name)


def _column(name: str, title: str, arrow: Any) -> Dimension | _Number:
    quoted = quote(name)
    if pa.types.is_integer(arrow) or pa.types.is_floating(arrow):
        return _Number(name, title, quoted)
    if pa.types.is_timestamp(arrow):
        sql = f"strftime({quoted}, '%Y-%m-%d')"
        return Dimension(name, title, sql, lambda v: f"{sql} {_is(v)}")
    if pa.types.is_boolean(arrow):
        text = f"CAST({quoted} AS VARCHAR)"
        return Dimension(name, title, text, lambda v: f"{quoted} IS NOT DISTINCT FROM {v or 'NULL'}")
    return Dimension(name, title, f"a.{quoted}", lambda v: f"{quoted} {_is(v)}")


def _metadata(key: str) -> _Number:
    # Only its values show whether they are numbers.
    path = literal(f'$."{key}"')
    return _Number(f"metadata.{key}", key.replace("_", " "), f"json_extract_string(metadata, {path})")


def _of_image(name: str, title: str) -> Dimension | _Number:
    join = "LEFT JOIN (SELECT image_id, width, height, format, size_bytes FROM images) i USING (image_id)"
    among = "image_id IN (SELECT image_id FROM images WHERE {})"
    if name == "format":
        return Dimension(name, title, "i.format", lambda v: among.format(f"format {_is(v)}"), join)
    return _Number(name, title, f"i.{name}", join, inside=name)


def _cluster(lake: Lake, name: str, rest: str) -> Dimension:
    tree, _, path = (rest or newest_tree(lake) or "").partition("/")
    children = lake.scan(
        "clusters", ["node", "name", "suggested"], f"tree = {literal(tree)} AND parent = {literal(path)}"
    )
    if not children.num_rows:
        trees = sorted(set(lake.scan("clusters", ["tree"])["tree"].to_pylist()))
        hint = f"the lake has the trees {', '.join(trees)}" if trees else "create clusters with: lakeloop cluster"
        raise BadInput(f"no clusters {name!r}; {hint}")
    nodes = sorted(
        children["node"].to_pylist(), key=lambda node: [int(p) if p.isdigit() else -1 for p in node.split(".")]
    )
    inside = ", ".join(literal(f"{tree}/{node}") for node in nodes)
    join = f"LEFT JOIN (SELECT image_id, node FROM cluster_members WHERE id IN ({inside})) c USING (image_id)"

    def picks(value: str | None) -> str:
        if value is None:
            return f"image_id NOT IN (SELECT image_id FROM cluster_members WHERE id IN ({inside}))"
        return f"image_id IN (SELECT image_id FROM cluster_members WHERE id = {literal(f'{tree}/{value}')})"

    return Dimension(
        f"cluster:{tree}" + (f"/{path}" if path else ""), "cluster", "c.node", picks, join, order=tuple(nodes)
    )


def _slice(lake: Lake, name: str, rest: str) -> Dimension:
    if rest:
        slice_ = slices.get(lake, rest)
        predicate = inside_slice(lake, rest)
        return Dimension(
            f"slice:{slice_.id}",
            f"slice {slice_.name}",
            f"CASE WHEN a.{predicate} THEN 'in {slice_.name}' ELSE 'not in it' END",
            lambda v: predicate if v == f"in {slice_.name}" else f"NOT ({predicate})",
        )
    newest = {
        slice_.name: slice_.id
        for slice_ in reversed(slices.list(lake))
        if not slice_.live and slice_.deleted_at is None
    }
    if not newest:
        raise BadInput("the lake has no frozen slice; create one with: lakeloop slice create")
    ids = ", ".join(map(literal, newest.values()))
    of_each = f"SELECT image_id, list(name) AS names FROM slice_members WHERE id IN ({ids}) GROUP BY image_id"

    def picks(value: str | None) -> str | None:
        return None if value is None else inside_slice(lake, newest[value])

    return Dimension(name, "slice", "s.names", picks, f"JOIN ({of_each}) s USING (image_id)", several=True)


def inside_slice(lake: Lake, name: str) -> str:
    """The predicate that an image is in the slice NAME, NAME@VERSION or NAME@TAG. Raises BadInput."""
    slice_ = slices.get(lake, name)
    if not slice_.live:
        return f"image_id IN (SELECT image_id FROM slice_members WHERE id = {literal(slice_.id)})"
    image_ids = slices.members(lake, slice_).to_pylist()
    return f"image_id IN ({', '.join(map(literal, image_ids)) or 'NULL'})"


def _box_size(value: str | None) -> str:
    if value is None:
        return "coalesce(len(boxes), 0) = 0"
    return f"len(list_filter(boxes, lambda b: {bucket_sql('b.width * b.height')} = {literal(value)})) > 0"


def _binned(lake: Lake, resolved: Sequence[Dimension | _Number], where: str | None) -> list[Dimension]:
    """Numbers with few distinct values as they are, others in bins of equal numbers of predictions."""
    numbers = {dimension.name: dimension for dimension in resolved if isinstance(dimension, _Number)}
    if not numbers:
        return [dimension for dimension in resolved if isinstance(dimension, Dimension)]
    joins = " ".join(dict.fromkeys(dimension.join for dimension in numbers.values() if dimension.join))
    shares = [number / BINS for number in range(1, BINS)]
    columns = ", ".join(
        f"count(DISTINCT {dimension.sql}), count({dimension.sql}), count(TRY_CAST({dimension.sql} AS DOUBLE)), "
        f"quantile_disc(TRY_CAST({dimension.sql} AS DOUBLE), {shares})"
        for dimension in numbers.values()
    )
    row = connections.query(
        lake, f"SELECT {columns} FROM (SELECT * FROM predictions WHERE {predicate(where)}) a {joins}"
    )
    facts = [column[0].as_py() for column in row.columns]
    binned: dict[str, Dimension] = {}
    for number, (name, dimension) in enumerate(numbers.items()):
        distinct, n, numeric, edges = facts[4 * number : 4 * number + 4]
        as_text = distinct <= MOST_VALUES or numeric < n
        binned[name] = _values(dimension, numeric == n) if as_text else _bins(dimension, sorted({*edges}))
    return [binned[dimension.name] if isinstance(dimension, _Number) else dimension for dimension in resolved]


def _values(number: _Number, numeric: bool) -> Dimension:
    text = f"CAST({number.sql} AS VARCHAR)"
    return Dimension(
        number.name, number.title, text, lambda v: _lift(number, f"CAST({{}} AS VARCHAR) {_is(v)}"), number.join
    )


def _bins(number: _Number, edges: Sequence[float]) -> Dimension:
    as_double = f"TRY_CAST({number.sql} AS DOUBLE)"
    written = [f"{edge:.6g}" for edge in edges]
    bounds = [*zip(["", *written], [*written, ""], strict=True)]
    texts = [f"up to {high}" if not low else f"over {low}" if not high else f"{low} to {high}" for low, high in bounds]
    # The edge itself belongs to the bin below it.
    tests = [
        " AND ".join(([f"{{0}} > {low}"] if low else []) + ([f"{{0}} <= {high}"] if high else []))
        for low, high in bounds
    ]
    cases = " ".join(
        f"WHEN {test.format(as_double)} THEN {literal(text)}" for test, text in zip(tests, texts, strict=True)
    )
    by_text = dict(zip(texts, tests, strict=True))

    def picks(value: str | None) -> str | None:
        inner = "TRY_CAST({} AS DOUBLE)"
        return _lift(number, f"{inner} IS NULL" if value is None else by_text[value].replace("{0}", inner))

    return Dimension(number.name, number.title, f"CASE {cases} END", picks, number.join, order=tuple(texts))


def _lift(number: _Number, test: str) -> str:
    """A test of the number as a predicate over predictions; an image's number needs the table images."""
    text = test.replace("{}", number.inside or number.sql)
    return f"image_id IN (SELECT image_id FROM images WHERE {text})" if number.inside else text


def _among(value: str | None, select: str, operator: str) -> str:
    if value is None:
        return f"image_id NOT IN ({select} IS NOT NULL)"
    return f"image_id IN ({select} = {literal(value)})"


def _is(value: str | None) -> str:
    return "IS NULL" if value is None else f"= {literal(value)}"


def quote(column: str) -> str:
    """The column as an SQL identifier, quoted if necessary."""
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else '"' + column.replace('"', '""') + '"'


def _unknown(lake: Lake, name: str) -> BadInput:
    known = names(lake)
    full_names = {name_.removeprefix("metadata."): name_ for name_ in known}
    near = difflib.get_close_matches(name.removeprefix("metadata."), [*full_names], 3, 0.5)
    hint = (
        f"did you mean {' or '.join(full_names[name_] for name_ in near)}?" if near else f"there are {', '.join(known)}"
    )
    return BadInput(f"no dimension {name!r}; {hint}")
