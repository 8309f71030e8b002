"""Filters: boolean SQL expressions over samples in DuckDB's dialect, translated for Lance where possible.

Lance filters run before the nearest neighbours are chosen, but have another dialect and ignore trailing text, so
DuckDB parses a filter first. What means the same in both dialects is pushed down to Lance; for the rest, DuckDB finds
the rows and Lance gets their ids.

A filter that others wrote passes `check_foreign` before anything else parses it. A filter that was checked is known
by its text, and is not parsed again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import pyarrow as pa

from lake import nesting
from lake.errors import BadInput, QueryStopped
from lake.sql import columnar, filter_syntax
from lake.sql.connections import connect, query
from lake.sql.filter_syntax import Filter
from lake.sql.per_lake import PerLake
from lake.sql.sandbox import filters
from lake.storage import schema

if TYPE_CHECKING:
    from lake.storage.store import Lake

MOST_KNOWN = 200


class _Known:
    """The filters checked last. A check holds for the columns that samples had."""

    def __init__(self) -> None:
        self._filters: OrderedDict[tuple[str, pa.Schema], tuple[Filter, bool]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str, columns: pa.Schema, *, bounded: bool) -> Filter | None:
        with self._lock:
            filter_, was_bounded = self._filters.get((text, columns), (None, False))
            if filter_ is not None:
                self._filters.move_to_end((text, columns))
            return filter_ if was_bounded or not bounded else None

    def put(self, filter_: Filter, columns: pa.Schema, *, bounded: bool) -> None:
        with self._lock:
            self._filters[filter_.sql, columns] = filter_, bounded
            while len(self._filters) > MOST_KNOWN:
                self._filters.popitem(last=False)


_known = PerLake(_Known)


def check(lake: Lake, text: str) -> Filter:
    """Raises BadInput, with DuckDB's own message, unless `text` is one boolean expression over samples.

    It is parsed in this process: check what others wrote with `check_foreign` first.
    """
    columns = _columns(lake)
    known = _known(lake).get(text, columns, bounded=False)
    if known is not None:
        return known
    nesting.check_expression(text)
    with connect(lake, filter_syntax.statement(text)) as connection:
        tree = filter_syntax.tree(connection, text)
        filter_syntax.bind(connection, text)
    filter_ = Filter(text, filter_syntax.for_lance(tree, columns))
    if len(text) <= nesting.MOST_FILTER_CHARACTERS:
        _known(lake).put(filter_, columns, bounded=False)
    return filter_


def check_foreign(lake: Lake, text: str, *, bounded: bool = True) -> Filter:
    """As `check`, for a text that others wrote: it is parsed in a process that is stopped beyond its limits.

    If `bounded`, it may use only what needs no more memory than its arguments, and no other table; else it may be a
    filter that `bounded` was checked, joined with others by `conjunction`. Raises BadInput also for a filter that takes
    too long to parse, and QueryStopped if too many wait.
    """
    columns = _columns(lake)
    known = _known(lake).get(text, columns, bounded=bounded)
    if known is not None:
        return known
    nesting.check_expression(text, nesting.MOST_FILTER_CHARACTERS * (1 if bounded else 2))
    try:
        lance = filters.lance_filter(lake, text, columns, bounded=bounded)
    except QueryStopped as stopped:
        if stopped.reason not in ("timeout", "memory", "died"):
            raise
        raise BadInput(f"the filter {text!r:.200} is too complex: {stopped}") from stopped
    filter_ = Filter(text, lance)
    _known(lake).put(filter_, columns, bounded=bounded)
    return filter_


def predicate(text: str | None) -> str:
    """A checked filter as a predicate for a query over samples or one of their views; "true" without a filter.

    In each of them, the same rows pass: `correct` always means the `correct` of samples_reviewed. Raises BadInput as
    `conjunction` does.
    """
    if not text:
        return "true"
    nesting.check_expression(text)
    source = filter_syntax.source(text)
    if source == "samples":
        return f"({text}\n)"
    return f"prediction_id IN (SELECT prediction_id FROM {source} WHERE ({text}\n))"


def conjunction(*texts: str | None) -> str | None:
    """The filter that passes what every one of them passes; those that are None or empty are left out.

    Raises BadInput for a text that could end the brackets around it, such as `true) OR (true`.
    """
    present = [text for text in texts if text]
    for text in present:
        nesting.check_expression(text)
    if len(present) < 2:
        return present[0] if present else None
    # The newline ends a trailing comment.
    return " AND ".join(f"({text}\n)" if "--" in text else f"({text})" for text in present)


def row_ids(lake: Lake, filter: Filter) -> list[int]:
    """Lance row ids of the rows of samples that pass, at the newest version."""
    import duckdb

    from lake.sql.lance_view import ViewWithRowIds

    dataset = lake.dataset("samples")
    text = f"SELECT _rowid FROM _rows AS samples WHERE {predicate(filter.sql)}"
    with connect(lake, text) as connection:
        connection.register("_rows", ViewWithRowIds(dataset))
        try:
            numbers: list[int] = connection.sql(text).to_arrow_table()["_rowid"].to_pylist()
        except duckdb.Error as error:  # a cast that fails on some row
            raise BadInput(f"the filter {filter.sql!r:.200}: {error}") from error
        connection.unregister("_rows")
    return numbers


def images(lake: Lake, text: str) -> list[str]:
    """Distinct image_ids of the samples that pass the filter, sorted. Raises BadInput."""
    check(lake, text)
    rows = query(lake, f"SELECT DISTINCT image_id FROM samples WHERE {predicate(text)} ORDER BY image_id")
    image_ids: list[str] = rows["image_id"].to_pylist()
    return image_ids


def _columns(lake: Lake) -> pa.Schema:
    """The columns of samples that a filter may name."""
    dataset = lake.dataset("samples")
    whole = dataset.schema
    names = {*columnar.columns("samples", dataset)}
    return pa.schema([f for f in whole if f.name in names or f.name.startswith(schema.VECTOR_PREFIX)])
