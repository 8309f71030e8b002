"""Runs SQL over the lake's tables and views, in a locked DuckDB of this process.

A connection is in memory, for one query at a time. It cannot read files, reach the network, load extensions or change
its settings, and sees every table at one version: large ones from the columnar copy, the others from Lance.
It does not limit memory: `lake/sql/sandbox` does. It stops after `limits(lake).seconds`, which a server sets for the
filters of others that it evaluates here, between two blocks of rows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, NotALake, QueryStopped
from lake.sql import columnar, portable, refusals
from lake.sql.per_lake import PerLake
from lake.storage import schema, views
from lake.storage.lance_files import missing_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb
    import pyarrow as pa

    from lake.sql.lance_view import LanceView
    from lake.storage.store import Lake

    Versions = dict[str, int]  # by table; see _version_key

MOST_IDLE = 4
# Copying this many rows takes half a second. The server and maintenance copy more, where nobody waits for it.
COPIED_AT_ONCE_ROWS = 200_000

# The order matters: after the last statement, settings cannot change any more.
LOCK = (
    "SET max_temp_directory_size = '0GB'",
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET python_enable_replacements = false",
    "SET TimeZone = 'UTC'",
    "SET lock_configuration = true",
)


@dataclass
class Idle:
    """Connections of one lake that wait for their next query, the longest waiting first, each with its versions."""

    connections: list[tuple[Versions, duckdb.DuckDBPyConnection]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Limits:
    """`seconds`: how long a connection may be used for one query; None: without end."""

    seconds: float | None = None


idle = PerLake(Idle)
limits = PerLake(Limits)
_CATALOGUES = re.compile(r"\b(show|describe|information_schema|duckdb_\w+|pg_\w+|sqlite_\w+|pragma_\w+)\b")


def query(
    lake: Lake,
    text: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    tables: Mapping[str, pa.Table] | None = None,
    macros: Mapping[str, str] | None = None,
) -> pa.Table:
    """The rows of one SELECT, in memory. Raises BadInput with DuckDB's own message.

    `parameters` fill the places $name or ?. `tables` are more tables that the SELECT may name, for this query only,
    and `macros` table functions over them, each by the statement that creates it.
    """
    import duckdb

    with connect(lake, text) as connection:
        for name, table in (tables or {}).items():
            connection.register(name, table)
        for statement in (macros or {}).values():
            connection.execute(statement)
        try:
            statements = connection.extract_statements(text)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise BadInput(refusals.statement(text))
            return portable.portable(connection.sql(text, params=parameters)).to_arrow_table()
        except duckdb.Error as error:
            raise missing_file.as_error(error) or BadInput(views.hint(str(error))) from error
        finally:
            for name in tables or {}:
                connection.unregister(name)


def tables_read(text: str) -> list[str]:
    """The tables a query may read, directly or through views: by the names in its text; all if it names none."""
    words: set[str] = set()
    new = views.reads(text)
    while new:
        words |= new
        new = {word for view in new & views.VIEWS.keys() for word in views.reads(views.VIEWS[view][1])} - words
    tables = [name for name in schema.TABLES if name in words]
    return [*schema.TABLES] if not tables or _CATALOGUES.search(text.lower()) else tables


@contextmanager
def connect(lake: Lake, text: str = "") -> Iterator[duckdb.DuckDBPyConnection]:
    """A locked connection with the tables that `text` names (all, if it names none) and the views over them.

    The tables are at their newest versions. Vector columns are there if `text` names one. A new connection costs up
    to 30 ms, so it also gets the other tables that cost nothing, and it is kept after a query without an error, for
    queries whose tables have not changed since. A SELECT leaves nothing behind in it.
    """
    vectors = schema.VECTOR_PREFIX in text.lower()
    sources = {}
    for name in tables_read(text):
        with suppress(NotALake):  # a table of a later migration
            sources[name] = _source(lake, name, vectors)
    versions = {_version_key(name, vectors): version for name, (version, _) in sources.items()}
    entry = _take(lake, versions)
    if entry is None:
        for name in schema.TABLES.keys() - sources.keys():
            with suppress(NotALake):
                if (cheap := _cheap_source(lake, name)) is not None:
                    sources[name] = cheap
                    versions[name] = cheap[0]
        entry = versions, _connection({name: source for name, (_, source) in sources.items()})
    versions, connection = entry
    seconds = limits(lake).seconds
    late = threading.Event()
    timer = threading.Timer(seconds or 0, _interrupt, (connection, late))
    try:
        if seconds is not None:
            timer.start()
        yield connection
    except BaseException as error:
        connection.close()
        if late.is_set() and isinstance(error, Exception):
            raise QueryStopped(
                "timeout", f"it took longer than {seconds:g} s here; ask for fewer rows, or write a simpler filter"
            ) from error
        raise
    finally:
        timer.cancel()
    if late.is_set():
        connection.close()
    else:
        _give_back(lake, versions, connection)


def _interrupt(connection: duckdb.DuckDBPyConnection, late: threading.Event) -> None:
    late.set()
    connection.interrupt()


def _source(lake: Lake, name: str, vectors: bool) -> tuple[int, LanceView | columnar.PinnedTables]:
    """The table's version, and what DuckDB reads its rows from."""
    import duckdb

    from lake.sql.lance_view import LanceView

    dataset = lake.dataset(name)
    if not (vectors and name == "samples") and dataset.count_rows() >= columnar.WORTH_ROWS:
        # Without a copy, because the disk is full or not writable, it is only slower.
        with suppress(OSError, duckdb.Error):
            pinned = columnar.pin(lake, [name], most_rows=COPIED_AT_ONCE_ROWS)
            if name in pinned.versions:
                return pinned.versions[name], pinned
    names = columnar.columns(name, dataset)
    if vectors and name == "samples":
        names = [f.name for f in dataset.schema if f.name in names or f.name.startswith(schema.VECTOR_PREFIX)]
    return int(dataset.version), LanceView(dataset, names)


def _cheap_source(lake: Lake, name: str) -> tuple[int, LanceView | columnar.PinnedTables] | None:
    """As `_source`, but None unless the table's copy is fresh, or the table is open and has no copy."""
    import duckdb

    with suppress(OSError, duckdb.Error):
        if columnar.exists(lake, name):
            pinned = columnar.pin(lake, [name], most_rows=0)
            return (pinned.versions[name], pinned) if name in pinned.versions else None
    return _source(lake, name, vectors=False) if lake.is_open(name) else None


def _version_key(name: str, vectors: bool) -> str:
    return f"{name} with vectors" if vectors and name == "samples" else name


def _take(lake: Lake, versions: Versions) -> tuple[Versions, duckdb.DuckDBPyConnection] | None:
    """An idle connection with these tables at these versions, and all its versions. Closes outdated ones."""
    waiting = idle(lake)
    with waiting.lock:
        for entry in [*waiting.connections]:
            available, connection = entry
            if versions.items() <= available.items():
                waiting.connections.remove(entry)
                return entry
            if any(available.get(name, version) != version for name, version in versions.items()):
                waiting.connections.remove(entry)
                connection.close()
    return None


def _give_back(lake: Lake, versions: Versions, connection: duckdb.DuckDBPyConnection) -> None:
    waiting = idle(lake)
    with waiting.lock:
        waiting.connections.append((versions, connection))
        if len(waiting.connections) > MOST_IDLE:
            waiting.connections.pop(0)[1].close()


def _connection(sources: dict[str, LanceView | columnar.PinnedTables]) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(":memory:")
    try:
        for name, source in sources.items():
            if isinstance(source, columnar.PinnedTables):
                for statement in source.statements():
                    connection.execute(statement)
            else:
                connection.register(name, source)
        for statement in (*views.statements(sources), *LOCK):
            connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection
