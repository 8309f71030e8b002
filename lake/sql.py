"""DuckDB over the lake: every table and view under its own name, in a locked room.

Each query has an in-memory DuckDB to itself that cannot read files, reach the network, load extensions or change its
settings, and sees every table at one version. Memory and time are not bounded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pads

from lake import schema, views
from lake.errors import BadInput, NotALake

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb
    import lance

    from lake.store import Lake

# Arrow hands a filter to Lance as Substrait, which takes twice as long for every AND or OR more: 15 take 0.3 s.
PUSHED_WORDS = 8
MOST_IDLE = 4

# In this order: settings cannot be changed any more after the last.
_LOCK = (
    "SET max_temp_directory_size = '0GB'",
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET python_enable_replacements = false",
    "SET TimeZone = 'UTC'",
    "SET lock_configuration = true",
)


def query(lake: Lake, text: str, parameters: Sequence[Any] | dict[str, Any] | None = None) -> pa.Table:
    """The answer to one SELECT, in memory. Raises BadInput with DuckDB's own words."""
    import duckdb

    with connect(lake) as connection:
        try:
            statements = connection.extract_statements(text)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise BadInput("lakeloop sql takes one SELECT statement: the lake is changed by its commands only")
            return connection.sql(text, params=parameters).to_arrow_table()
        except duckdb.Error as error:
            raise BadInput(str(error)) from error


@contextmanager
def connect(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    """A locked connection with the lake's tables and views at their newest versions, for one user at a time.

    Making one costs 30 ms, so the lake keeps those that ended well for as long as no table changes. Nothing a
    SELECT can do stays behind in them.
    """
    datasets = {}
    for name in schema.TABLES:
        with suppress(NotALake):  # a table of a later migration
            datasets[name] = lake.dataset(name)
    versions = tuple((name, dataset.version) for name, dataset in datasets.items())
    connection = _take(lake.idle_connections, versions) or _make(datasets)
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
    if len(lake.idle_connections) < MOST_IDLE:
        lake.idle_connections.append((versions, connection))
    else:
        connection.close()


def _take(idle: list[tuple[Any, duckdb.DuckDBPyConnection]], versions: Any) -> duckdb.DuckDBPyConnection | None:
    """An idle connection at these versions; the outdated ones it comes across are closed."""
    while True:
        try:
            held, connection = idle.pop()  # atomic: two threads never get the same
        except IndexError:
            return None
        if held == versions:
            return connection
        connection.close()


def _make(datasets: dict[str, lance.LanceDataset]) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(":memory:")
    try:
        for name, dataset in datasets.items():
            hidden = {c.name for c in schema.TABLES[name].columns if c.type in ("blob", pa.binary())}
            connection.register(name, LanceView(dataset, hidden))
        for statement in (*views.STATEMENTS, *_LOCK):
            connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


class LanceView(pads.Dataset):  # type: ignore[misc]
    """A Lance table as DuckDB reads it: columns it cannot take are hidden, filters Lance cannot take are done here.

    DuckDB pushes filters on struct fields and dictionary columns that Lance refuses, and does not fall back.
    """

    def __init__(self, dataset: lance.LanceDataset, hidden: set[str]) -> None:
        self._dataset = dataset
        self._names = [f.name for f in dataset.schema if f.name not in hidden]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([_plain(self._dataset.schema.field(n)) for n in self._names])

    def scanner(self, columns: Any = None, filter: Any = None, **options: Any) -> Any:
        """What DuckDB calls: a scanner over `columns` (all when None) of the rows that pass `filter`."""
        wanted = list(columns) if columns else self._names
        if filter is not None and not self._takes(wanted, filter):
            reader = self._dataset.scanner(columns=self._names).to_reader()
            return pads.Scanner.from_batches(reader, columns=wanted, filter=filter)
        return self._dataset.scanner(columns=wanted, filter=filter, batch_size=options.get("batch_size"))

    def _takes(self, columns: list[str], filter: Any) -> bool:
        text = str(filter)
        if text.count(" or ") + text.count(" and ") > PUSHED_WORDS:
            return False
        try:
            self._dataset.scanner(columns=columns, filter=filter).explain_plan()
        except Exception:  # Lance raises many kinds for filters it cannot translate
            return False
        return True


def _plain(field: pa.Field) -> pa.Field:
    return pa.field(field.name, field.type, field.nullable)
