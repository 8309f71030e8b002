"""What answers can be told apart by: every dimension a metric takes, from its name to SQL and back to a filter.

A dimension gives each answer one value, as text, or several ("an answer stands in every size its boxes have"). Numbers
with many values are put into bins of equal numbers of answers. A value leads back to the predicate over predictions
that picks its answers out, so that any cell of any table can become a filter or a slice.
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
from lake.storage import schema
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import Lake

BINS = 5
MOST_VALUES = 12  # of a number that still stand for themselves
_KEYS_FROM = 50_000  # rows whose metadata is looked into for its keys, oldest and newest
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_TIME = {
    "hour": ("hour of the day", "strftime(timestamp, '%H')"),
    "weekday": ("day of the week", "dayname(timestamp)"),
    "day": ("day", "strftime(timestamp, '%Y-%m-%d')"),
    "week": ("week", "strftime(date_trunc('week', timestamp), '%Y-%m-%d')"),
    "month": ("month", "strftime(timestamp, '%Y-%m')"),
}
_IMAGE = ("width", "height", "format", "size_bytes")
_PREDICTED = {"predicted": "label", "answer": "label"}
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
    """`sql`: an expression over answers_judged `a`, and what `join` joins to it: the value as text, null for none.

    `several`: `sql` is a list of values, and an answer counts in each. `order`: values in their own order, where they
    have one. `picks(value)`: the predicate over predictions for a value, or None when none can say it.
    """

    name: str
    title: str
    sql: str
    picks: Callable[[str | None], str | None]
    join: str = ""
    several: bool = False
    order: tuple[str, ...] = ()


def names(lake: Lake) -> list[str]:
    """Every dimension the lake has, in the order a person would look: what it promoted first."""
    found = [*lake.promoted(), *(f"metadata.{key}" for key in metadata_keys(lake))]
    found += ["label", "true_label", "version", "model", "model_version", "task", "folder", *_TIME, *_IMAGE]
    found += ["box_size", "mask_size", "confidence", "latency_ms", "source", "image_status", "judged_by"]
    found += ["cluster"] if newest_tree(lake) else []
    return [*dict.fromkeys(found), *(["slice"] if slices.list(lake) else [])]


def metadata_keys(lake: Lake) -> list[str]:
    """Keys of the metadata of the oldest and the newest answers, sorted."""
    dataset = lake.dataset("predictions")
    total = dataset.count_rows()
    start = max(0, total - _KEYS_FROM // 2)
    parts = [dataset.scanner(columns=["metadata"], limit=_KEYS_FROM // 2).to_table()]
    if start:
        parts.append(dataset.scanner(columns=["metadata"], limit=_KEYS_FROM // 2, offset=start).to_table())
    import duckdb

    with duckdb.connect(":memory:") as connection:
        connection.register("m", pa.concat_tables(parts))
        found = connection.sql(
            "SELECT DISTINCT unnest(json_keys(metadata)) FROM m WHERE json_valid(metadata) "
            "AND json_type(metadata) = 'OBJECT'"
        ).fetchall()
    return sorted(key for (key,) in found if '"' not in key and "\\" not in key)


def newest_tree(lake: Lake) -> str | None:
    """The drill-down tree that was made last, or None."""
    found = lake.scan("clusters", ["tree", "created_at"], "node = ''").sort_by([("created_at", "descending")])
    return None if not found.num_rows else str(found["tree"][0].as_py())


def resolve(lake: Lake, asked: Sequence[str], where: str | None = None) -> list[Dimension]:
    """The dimensions of these names; bins are made of the answers that pass `where`.

    A name is a column, a promoted column, a key of the metadata (`metadata.KEY`, or KEY alone), `day`, `week`, ..., an
    image's `width`, `height` or `format`, `box_size`, `mask_size`, `version`, `cluster` (of the newest tree,
    `cluster:TREE` or `cluster:TREE/PATH` for the nodes below one), or `slice` (`slice:NAME`: in it or not).
    Raises BadInput for any other, with the nearest names.
    """
    found = [_named(lake, name) for name in asked]
    return _binned(lake, found, where)


@dataclass(frozen=True)
class _Number:
    """A dimension of numbers before it is known whether they are many: `sql` is the number."""

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
        arrow = promoted.get(name) or next(c.type for c in schema.PREDICTIONS.columns if c.name == name)
        return _column(name, title, arrow)
    if name == "true_label":
        labelled = "SELECT image_id FROM labels_current WHERE task = 'classification' AND label"
        return Dimension(name, title, "a.true_label", lambda v: _among(v, labelled, "is not distinct from"))
    if name == "judged_by":
        judged = "SELECT prediction_id FROM answers_judged WHERE judged_by"
        return Dimension(name, title, "a.judged_by", lambda v: f"prediction_id IN ({judged} {_is(v)})")
    if name == "version":
        both = "model || coalesce(' ' || model_version, '')"
        return Dimension(name, title, both, lambda v: f"{both} {_is(v)}")
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
    # Whether its values are numbers is only known by looking.
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
    below = lake.scan("clusters", ["node", "name", "suggested"], f"tree = {literal(tree)} AND parent = {literal(path)}")
    if not below.num_rows:
        made = sorted(set(lake.scan("clusters", ["tree"])["tree"].to_pylist()))
        known = f"the lake has the trees {', '.join(made)}" if made else "make clusters with: lakeloop cluster"
        raise BadInput(f"no clusters {name!r}; {known}")
    nodes = sorted(below["node"].to_pylist(), key=lambda one: [int(p) if p.isdigit() else -1 for p in one.split(".")])
    inside = ", ".join(literal(f"{tree}/{one}") for one in nodes)
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
        made = slices.get(lake, rest)
        inside = inside_slice(lake, rest)
        return Dimension(
            f"slice:{made.id}",
            f"slice {made.name}",
            f"CASE WHEN a.{inside} THEN 'in {made.name}' ELSE 'not in it' END",
            lambda v: inside if v == f"in {made.name}" else f"NOT ({inside})",
        )
    newest = {one.name: one.id for one in reversed(slices.list(lake)) if not one.live and one.deleted_at is None}
    if not newest:
        raise BadInput("there are no slices with members of their own yet; make one with: lakeloop slice create")
    ids = ", ".join(map(literal, newest.values()))
    of_each = f"SELECT image_id, list(name) AS names FROM slice_members WHERE id IN ({ids}) GROUP BY image_id"

    def picks(value: str | None) -> str | None:
        return None if value is None else inside_slice(lake, newest[value])

    return Dimension(name, "slice", "s.names", picks, f"JOIN ({of_each}) s USING (image_id)", several=True)


def inside_slice(lake: Lake, name: str) -> str:
    """The predicate over predictions that an image is in the slice NAME, NAME@VERSION or NAME@TAG. Raises BadInput."""
    made = slices.get(lake, name)
    if not made.live:
        return f"image_id IN (SELECT image_id FROM slice_members WHERE id = {literal(made.id)})"
    found = slices.members(lake, made).to_pylist()
    return f"image_id IN ({', '.join(map(literal, found)) or 'NULL'})"


def _box_size(value: str | None) -> str:
    if value is None:
        return "coalesce(len(boxes), 0) = 0"
    return f"len(list_filter(boxes, lambda b: {bucket_sql('b.width * b.height')} = {literal(value)})) > 0"


def _binned(lake: Lake, found: Sequence[Dimension | _Number], where: str | None) -> list[Dimension]:
    """Numbers as they are where they are few, else in bins of equal numbers of answers."""
    numbers = {one.name: one for one in found if isinstance(one, _Number)}
    if not numbers:
        return [one for one in found if isinstance(one, Dimension)]
    joins = " ".join(dict.fromkeys(one.join for one in numbers.values() if one.join))
    shares = [place / BINS for place in range(1, BINS)]
    asked = ", ".join(
        f"count(DISTINCT {one.sql}), count({one.sql}), count(TRY_CAST({one.sql} AS DOUBLE)), "
        f"quantile_disc(TRY_CAST({one.sql} AS DOUBLE), {shares})"
        for one in numbers.values()
    )
    said = connections.query(lake, f"SELECT {asked} FROM (SELECT * FROM answers WHERE {where or 'true'}) a {joins}")
    facts = [column[0].as_py() for column in said.columns]
    made: dict[str, Dimension] = {}
    for place, (name, one) in enumerate(numbers.items()):
        distinct, n, numeric, edges = facts[4 * place : 4 * place + 4]
        as_text = distinct <= MOST_VALUES or numeric < n
        made[name] = _values(one, numeric == n) if as_text else _bins(one, sorted({*edges}))
    return [made[one.name] if isinstance(one, _Number) else one for one in found]


def _values(one: _Number, numeric: bool) -> Dimension:
    text = f"CAST({one.sql} AS VARCHAR)"
    return Dimension(one.name, one.title, text, lambda v: _lift(one, f"CAST({{}} AS VARCHAR) {_is(v)}"), one.join)


def _bins(one: _Number, edges: Sequence[float]) -> Dimension:
    number = f"TRY_CAST({one.sql} AS DOUBLE)"
    written = [f"{edge:.6g}" for edge in edges]
    bounds = [*zip(["", *written], [*written, ""], strict=True)]
    texts = [f"up to {high}" if not low else f"over {low}" if not high else f"{low} to {high}" for low, high in bounds]
    # The edge itself belongs to the bin below it.
    tests = [
        " AND ".join(([f"{{0}} > {low}"] if low else []) + ([f"{{0}} <= {high}"] if high else []))
        for low, high in bounds
    ]
    cases = " ".join(
        f"WHEN {test.format(number)} THEN {literal(text)}" for test, text in zip(tests, texts, strict=True)
    )
    by_text = dict(zip(texts, tests, strict=True))

    def picks(value: str | None) -> str | None:
        inner = "TRY_CAST({} AS DOUBLE)"
        return _lift(one, f"{inner} IS NULL" if value is None else by_text[value].replace("{0}", inner))

    return Dimension(one.name, one.title, f"CASE {cases} END", picks, one.join, order=tuple(texts))


def _lift(one: _Number, test: str) -> str:
    """A test of the number as a predicate over predictions; of an image's number by way of the table images."""
    text = test.replace("{}", one.inside or one.sql)
    return f"image_id IN (SELECT image_id FROM images WHERE {text})" if one.inside else text


def _among(value: str | None, select: str, operator: str) -> str:
    if value is None:
        return f"image_id NOT IN ({select} IS NOT NULL)"
    return f"image_id IN ({select} = {literal(value)})"


def _is(value: str | None) -> str:
    return "IS NULL" if value is None else f"= {literal(value)}"


def quote(column: str) -> str:
    """The column as an identifier, quoted when it must be."""
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else '"' + column.replace('"', '""') + '"'


def _unknown(lake: Lake, name: str) -> BadInput:
    known = names(lake)
    plain = {one.removeprefix("metadata."): one for one in known}
    near = difflib.get_close_matches(name.removeprefix("metadata."), [*plain], 3, 0.5)
    said = f"did you mean {' or '.join(plain[one] for one in near)}?" if near else f"there are {', '.join(known)}"
    return BadInput(f"no dimension {name!r}; {said}")
