"""DuckDB over the lake: every table and view under its own name, in a locked room.

Each query has an in-memory DuckDB to itself that cannot read files, reach the network, load extensions or change its
settings, and sees every table it names at one version: large ones from the columnar copy, the others from Lance.
Memory and time are not bounded here: see lake/sandbox.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, NotALake
from lake.sql import columnar
from lake.sql.per_lake import PerLake
from lake.storage import schema, views

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb
    import pyarrow as pa

    from lake.sql.lance_view import LanceView
    from lake.storage.store import Lake

    Versions = dict[str, int]  # by table; see _key

MOST_IDLE = 4
# Copying so many takes half a second; who has more to copy does so where nobody waits: the server, maintenance.
COPIED_AT_ONCE_ROWS = 200_000

# In this order: settings cannot be changed any more after the last.
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


idle = PerLake(Idle)
_CATALOGUES = re.compile(r"\b(show|describe|information_schema|duckdb_\w+|pg_\w+|sqlite_\w+|pragma_\w+)\b")


def query(
    lake: Lake,
    text: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    tables: Mapping[str, pa.Table] | None = None,
    macros: Mapping[str, str] | None = None,
) -> pa.Table:
    """The answer to one SELECT, in memory. Raises BadInput with DuckDB's own words.

    `parameters` fill the places $name or ?. `tables` are more tables the SELECT may name, for this query only, and
    `macros` table functions over them, each by the statement that makes it.
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
                raise BadInput("lakeloop sql takes one SELECT statement: the lake is changed by its commands only")
            return connection.sql(text, params=parameters).to_arrow_table()
        except duckdb.Error as error:
            raise BadInput(str(error)) from error
        finally:
            for name in tables or {}:
                connection.unregister(name)


def named(text: str) -> list[str]:
    """The tables a query may read, directly or through views: by their names in its text; all when it names none."""
    words: set[str] = set()
    new = views.reads(text)
    while new:
        words |= new
        new = {word for view in new & views.VIEWS.keys() for word in views.reads(views.VIEWS[view][1])} - words
    found = [name for name in schema.TABLES if name in words]
    return [*schema.TABLES] if not found or _CATALOGUES.search(text.lower()) else found


@contextmanager
def connect(lake: Lake, text: str = "") -> Iterator[duckdb.DuckDBPyConnection]:
    """A locked connection with the tables that `text` names (all, when it names none) at their newest versions, and
    the views over them; for one user at a time.

    Vector columns are there when `text` names one. Making a connection costs up to 30 ms, so it gets what other
    tables are at hand, too, and the lake keeps those that ended well: for queries whose tables have not changed since.
    Nothing a SELECT can do stays behind in them.
    """
    vectors = schema.VECTOR_PREFIX in text.lower()
    sources = {}
    for name in named(text):
        with suppress(NotALake):  # a table of a later migration
            sources[name] = _source(lake, name, vectors)
    versions = {_key(name, vectors): version for name, (version, _) in sources.items()}
    held = _take(lake, versions)
    if held is None:
        for name in schema.TABLES.keys() - sources.keys():
            with suppress(NotALake):
                if (found := _at_hand(lake, name)) is not None:
                    sources[name] = found
                    versions[name] = found[0]
        held = versions, _make({name: source for name, (_, source) in sources.items()})
    versions, connection = held
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
    _give_back(lake, versions, connection)


def _source(lake: Lake, name: str, vectors: bool) -> tuple[int, LanceView | columnar.Pinned]:
    """The table's version, and where its rows are read from."""
    import duckdb

    from lake.sql.lance_view import LanceView

    dataset = lake.dataset(name)
    if not (vectors and name == "predictions") and dataset.count_rows() >= columnar.WORTH_ROWS:
        # A disk that is full or not ours only makes it slower.
        with suppress(OSError, duckdb.Error):
            pinned = columnar.pin(lake, [name], most_rows=COPIED_AT_ONCE_ROWS)
            if name in pinned.versions:
                return pinned.versions[name], pinned
    shown = columnar.columns(name, dataset)
    if vectors and name == "predictions":
        shown = [f.name for f in dataset.schema if f.name in shown or f.name.startswith(schema.VECTOR_PREFIX)]
    return int(dataset.version), LanceView(dataset, shown)


def _at_hand(lake: Lake, name: str) -> tuple[int, LanceView | columnar.Pinned] | None:
    """The table as `_source` gives it, when that costs next to nothing: its copy is fresh, or it is open and small."""
    import duckdb

    with suppress(OSError, duckdb.Error):
        if columnar.exists(lake, name):
            pinned = columnar.pin(lake, [name], most_rows=0)
            return (pinned.versions[name], pinned) if name in pinned.versions else None
    return _source(lake, name, vectors=False) if lake.is_open(name) else None


def _key(name: str, vectors: bool) -> str:
    return f"{name} with vectors" if vectors and name == "predictions" else name


def _take(lake: Lake, versions: Versions) -> tuple[Versions, duckdb.DuckDBPyConnection] | None:
    """An idle connection with these tables at these versions, and all it has. Those found to be outdated are closed."""
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


def _make(sources: dict[str, LanceView | columnar.Pinned]) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(":memory:")
    try:
        for name, source in sources.items():
            if isinstance(source, columnar.Pinned):
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
