"""Renames table predictions of an older lake to samples, and the old names in the SQL that the lake has saved.

The folders change their names in one system call, after which a plain file has the old name: an older lakeloop that
still runs cannot write to the old table any more, so no row of it can be lost.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import nesting
from lake.errors import BadInput, CouldNot, LakeBusy, NotALake
from lake.images.workers import WorkerDied, WorkerPool
from lake.storage import leader_lock, schema, views

if TYPE_CHECKING:
    from pathlib import Path

    from lake.storage.store import Lake

OLD, NEW = "predictions", "samples"
_NAMES = {OLD: NEW} | {old: f"main.{new}" for old, new in views.RENAMED.items()}
# Saved SQL that says one of these has been rewritten: only rewriting says `main`.
_REWRITTEN = re.compile(rf"\bmain\.({'|'.join(views.RENAMED.values())})\b")
# Where a query that DuckDB does not give a tree of, such as PIVOT, names a table.
_NAMED = re.compile(
    rf"\b(FROM|JOIN|PIVOT|UNPIVOT|DESCRIBE|SUMMARIZE)(\s+)\"?({'|'.join(_NAMES)})\b\"?(?!\s*[.(])", re.IGNORECASE
)
_WAIT_SECONDS = 60.0
# Of a saved text's parsing.
_PARSE_BYTES, _PARSE_SECONDS = 1 << 30, 5.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def rename_table(lake: Lake) -> None:
    """Gives the folder of table predictions the name samples, unless it has it. Safe to repeat after a kill.

    Raises LakeBusy while a server of an older lakeloop runs on the lake, CouldNot if the folder is not writable.
    """
    folder = lake.folder
    if folder is None:
        return  # `rewrite_saved_sql` refuses it, after the checks of the open
    old, new = folder / f"{OLD}.lance", folder / f"{NEW}.lance"
    if not (old.is_dir() and (folder / "migrations.lance").is_dir()):
        return
    try:
        with leader_lock.leader(lake, _WAIT_SECONDS):
            _refuse_while_served(folder)
            if old.is_dir() and not new.is_dir():  # else another process has done it meanwhile
                new.write_text(f"Table {OLD} is named {NEW} since lakeloop 0.1.0: upgrade lakeloop.\n")
                _exchange(old, new)
    except OSError as error:
        raise CouldNot(
            f"{lake.uri} was made by an earlier lakeloop and must be changed once to be opened; "
            f"its folder cannot be written to ({error})"
        ) from error


def rewrite_saved_sql(lake: Lake) -> None:
    """Renames tables and views in saved queries and in the filters of slices, trees, searches and maps.

    Every filter then passes the same rows as before. Safe to repeat. Raises CouldNot for a lake on object storage
    whose table is not renamed yet.
    """
    if lake.folder is None:
        _refuse_unrenamed(lake)
    else:
        _rename_copies(lake.folder)
    with SavedSql() as sql:
        for name, columns in _SAVED.items():
            rows = lake.dataset(name).to_table()
            changed = []
            for row in rows.to_pylist():
                renamed = row | {column: rewrite(sql, row) for column, rewrite in columns.items()}
                if renamed != row:
                    changed.append(renamed)
            if changed:
                lake.update(name, pa.Table.from_pylist(changed, schema=rows.schema))


class SavedSql:
    """Gives SQL that others saved its new names, in a process that is killed if that takes much memory or time.

    Such a text stays as it is: it could not be run, either. Use it as a context manager.
    """

    def __init__(self) -> None:
        self._pool: WorkerPool | None = None

    def __enter__(self) -> SavedSql:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def query(self, text: str) -> str:
        """A SELECT with the new names of its tables and views."""
        return self._rewritten(text, "", "")

    def filter(self, text: str) -> str:
        """A filter over samples with the new names."""
        return self._rewritten(text, f"SELECT 1 FROM {NEW} WHERE (", "\n)")

    def _rewritten(self, text: str, before: str, after: str) -> str:
        if _REWRITTEN.search(text) or not any(name in text.lower() for name in _NAMES):
            return text
        if self._pool is None:
            function = f"{__name__}:{rewritten.__name__}"
            self._pool = WorkerPool(function, 1, memory_bytes=_PARSE_BYTES, timeout=_PARSE_SECONDS)
        result = self._pool.run(text, before, after)
        return text if isinstance(result, WorkerDied) else str(result)


def rewritten(text: str, before: str, after: str) -> str:
    """Runs in the process of `SavedSql`: the text with the new names, in a query that has it between the others."""
    import duckdb

    try:
        nesting.check(text)
    except BadInput:
        return text  # too deep to have been run
    statement = before + text + after
    with duckdb.connect(config={"threads": 1}) as connection:
        serialized = connection.execute("SELECT json_serialize_sql(?)", [statement]).fetchall()[0][0]
    try:
        tree = json.loads(serialized)
        references = [*_references(tree, frozenset())]
    except RecursionError:
        return text  # too deep to have been run
    if tree.get("error") or any(position > len(statement) * 4 for _, position, _ in references):
        return _NAMED.sub(lambda match: f"{match[1]}{match[2]}{_NAMES[match[3].lower()]}", text)
    # An alias may have an old name: then qualified columns are the alias's.
    aliases = {name for kind, _, name in references if kind == "alias"}
    data = statement.encode()
    for kind, position, name in sorted(references, key=lambda reference: -reference[1]):
        if kind == "alias" or (kind == "column" and name in aliases):
            continue
        new = _NAMES[name] if kind == "table" else _NAMES[name].removeprefix("main.")
        written = re.compile(rf'(main\s*\.\s*)?"?{name}"?'.encode(), re.IGNORECASE).match(data, position)
        if written:
            data = data[:position] + new.encode() + data[written.end() :]
    return data.decode()[len(before) : len(data.decode()) - len(after)]


def _references(node: Any, defined: frozenset[str]) -> Iterator[tuple[str, int, str]]:
    """(kind, byte, old name) of every table, qualified column and alias with an old name.

    `defined`: names that WITH gives to queries, which hide tables.
    """
    if isinstance(node, list):
        for item in node:
            yield from _references(item, defined)
    if not isinstance(node, dict):
        return
    if isinstance(cte_map := node.get("cte_map"), dict):
        for entry in cte_map.get("map", ()):
            name, query = str(entry["key"]).lower(), entry["value"]
            recursive = "RECURSIVE_CTE_NODE" in json.dumps(query)
            yield from _references(query, defined | {name} if recursive else defined)
            defined |= {name}
    if "class" not in node and str(node.get("alias") or "").lower() in _NAMES and "query_location" in node:
        yield "alias", int(node["query_location"]), str(node["alias"]).lower()
    if node.get("type") == "BASE_TABLE":
        name = str(node["table_name"]).lower()
        if name in _NAMES and (name not in defined or node.get("schema_name")):
            yield "table", int(node["query_location"]), name
        elif name in _NAMES:
            yield "alias", int(node["query_location"]), name
    qualifier = _qualifier(node)
    if qualifier in _NAMES:
        yield "column", int(node["query_location"]), qualifier
    for key, value in node.items():
        if key != "cte_map":
            yield from _references(value, defined)


def _qualifier(node: dict[str, Any]) -> str:
    """The table that a column or a star names; empty without one."""
    if node.get("class") == "STAR":
        return str(node.get("relation_name") or "").lower()
    names = node.get("column_names") if node.get("class") == "COLUMN_REF" else None
    return str(names[0]).lower() if names and len(names) > 1 else ""


def _filter_of(column: str) -> Any:
    return lambda sql, row: None if row[column] is None else sql.filter(row[column])


def _slice_filter(sql: SavedSql, row: dict[str, Any]) -> str | None:
    return sql.filter(row["definition"]) if row["kind"] == "where" and row["definition"] else row["definition"]


def _spec(sql: SavedSql, row: dict[str, Any]) -> str | None:
    if row["spec"] is None:
        return None
    definition = json.loads(row["spec"])
    renamed = _definition(sql, definition)
    return row["spec"] if renamed == definition else json.dumps(renamed, ensure_ascii=False)


def _definition(sql: SavedSql, part: Any) -> Any:
    """A slice's definition, whose unions and intersections hold more definitions, with rewritten filters."""
    if isinstance(part, list):
        return [_definition(sql, item) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: sql.filter(value) if key == "where" and isinstance(value, str) else _definition(sql, value)
        for key, value in part.items()
    }


# By table, what rewrites which of its columns.
_SAVED: dict[str, dict[str, Any]] = {
    schema.SAVED_QUERIES.name: {"sql": lambda sql, row: sql.query(row["sql"])},
    schema.SLICES.name: {"definition": _slice_filter, "spec": _spec},
    schema.CLUSTERS.name: {"where": _filter_of("where")},
    schema.SEARCHES.name: {"where": _filter_of("where")},
    schema.MAPS.name: {"where": _filter_of("where")},
}


def _refuse_while_served(folder: Path) -> None:
    """A running server of an older lakeloop holds this lock, as a running one of this does."""
    try:
        lock = os.open(folder / "spool" / "serving.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LakeBusy(
            f"a server of an earlier lakeloop runs on {folder}: stop it, then open the lake with this one, "
            "which changes the lake once"
        ) from None
    finally:
        os.close(lock)


def _refuse_unrenamed(lake: Lake) -> None:
    try:
        lake.dataset(NEW)
    except NotALake:
        raise CouldNot(
            f"{lake.uri} was made by an earlier lakeloop: copy all objects under {OLD}.lance/ to {NEW}.lance/ with "
            "your store's own tool while nothing writes to the lake, then open it again"
        ) from None


def _rename_copies(folder: Path) -> None:
    """What lies beside the tables by their names: quarantined versions move, the copy for SQL is made again."""
    quarantined = folder / "quarantine" / OLD
    if quarantined.is_dir() and not (folder / "quarantine" / NEW).exists():
        quarantined.rename(folder / "quarantine" / NEW)
    for path in (folder / "columnar").glob(f"{OLD}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _exchange(old: Path, new: Path) -> None:
    """Swaps two names in one step; where the system or its disk cannot, in two."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        if not libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_EXCHANGE):
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(number, os.strerror(number), str(old))
    note = new.read_text()
    new.unlink()
    old.rename(new)
    old.write_text(note)
