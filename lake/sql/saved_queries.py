"""Saved queries by name, and the history of queries, which is in the audit log.

Saving replaces the query of the same name; deleting leaves a row with the time of deletion. It runs no query.
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import nesting
from lake.access import audit
from lake.errors import BadInput
from lake.storage import schema, store

if TYPE_CHECKING:
    from lake.storage.store import Lake

ACTION = "sql"
TARGET_CHARACTERS = 80
# Of one query, in the audit log.
LOGGED_CHARACTERS = 20_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


@dataclass(frozen=True)
class SavedQuery:
    """A SELECT with $name for each parameter, and the default values of the parameters."""

    name: str
    sql: str
    parameters: dict[str, Any]
    description: str | None
    saved_at: dt.datetime
    deleted_at: dt.datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "sql": self.sql,
            "parameters": self.parameters,
            "description": self.description,
            "saved_at": self.saved_at.astimezone(dt.UTC).isoformat().replace("+00:00", "Z"),
        }


@dataclass(frozen=True)
class HistoryEntry:
    """A query that was run. `who` is the access key or the user; `rows` and `seconds` are None if it failed."""

    timestamp: dt.datetime
    event_id: str
    who: str | None
    sql: str
    parameters: Any
    rows: int | None
    seconds: float | None
    truncated: bool
    error: str | None

    def as_dict(self) -> dict[str, Any]:
        moment = self.timestamp.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
        return {**vars(self), "timestamp": moment}


_OF_THE_ROW = ("timestamp", "event_id", "who")


def save(
    lake: Lake,
    name: str,
    sql: str,
    parameters: Mapping[str, Any] | None = None,
    description: str | None = None,
    *,
    replacing: bool = False,
) -> SavedQuery:
    """Saves the query.

    Raises BadInput for an invalid name, an existing name unless `replacing`, an empty text, or a default that JSON
    cannot hold.
    """
    if not _NAME.match(name):
        raise BadInput(f"query name {name!r:.120}: use up to 100 letters, digits, dots, dashes and underscores")
    if not sql.strip():
        raise BadInput("the query is empty")
    nesting.check(sql)
    try:
        json.dumps(parameters, allow_nan=False)
    except ValueError as error:
        raise BadInput("a default value of a parameter is NaN or infinite; use a finite number") from error
    if not replacing and name in {query.name for query in list(lake)}:
        raise BadInput(f"a query {name!r} is saved already; replace it, or use another name")
    query = SavedQuery(name, sql, dict(parameters or {}), description or None, store.now())
    lake.update("saved_queries", _table(query))
    return query


def list(lake: Lake) -> Sequence[SavedQuery]:  # read as `saved_queries.list`
    """Every saved query, by name."""
    rows = lake.dataset("saved_queries").to_table(filter="deleted_at is null").to_pylist()
    queries = [SavedQuery(**(row | {"parameters": json.loads(row["parameters"] or "{}")})) for row in rows]
    return sorted(queries, key=lambda query: query.name)


def get(lake: Lake, name: str) -> SavedQuery:
    """The saved query. Raises BadInput, with the nearest names, if it does not exist."""
    saved = {query.name: query for query in list(lake)}
    if name in saved:
        return saved[name]
    near = difflib.get_close_matches(name, saved, 3) or sorted(saved)[:5]
    raise BadInput(f"no saved query {name!r:.120}; {'there is ' + ', '.join(near) if near else 'none is saved yet'}")


def delete(lake: Lake, name: str) -> SavedQuery:
    """Removes it from the list. Raises as `get`."""
    deleted = replace(get(lake, name), deleted_at=store.now())
    lake.update("saved_queries", _table(deleted))
    return deleted


def entry(
    sql: str,
    parameters: Any = None,
    *,
    rows: int | None = None,
    seconds: float | None = None,
    truncated: bool = False,
    error: str | None = None,
    key_id: str | None = None,
    user: str | None = None,
) -> dict[str, Any]:
    """The row of the audit log about one query."""
    text = _storable(json.dumps(parameters, ensure_ascii=False, default=str))
    # NaN and infinity are no JSON: they are logged as text.
    values = json.loads(text, parse_constant=str) if len(text) <= LOGGED_CHARACTERS else "too long to keep"
    detail = {
        "sql": _storable(sql[:LOGGED_CHARACTERS]),
        "parameters": values,
        "rows": rows,
        "seconds": None if seconds is None else round(seconds, 4),
        "truncated": truncated,
        "error": None if error is None else _storable(error[:2_000]),
    }
    target = _storable(" ".join(sql[: 4 * TARGET_CHARACTERS].split())[:TARGET_CHARACTERS])
    return audit.entry(ACTION, target, key_id=key_id, user=user, detail=detail)


def history(lake: Lake, most: int = 100, before: tuple[dt.datetime, str] | None = None) -> Sequence[HistoryEntry]:
    """The last `most` queries that came over HTTP, from the app and from the command line, newest first.

    `before`: of those behind the entry with this `timestamp` and `event_id`.
    """
    entries = []
    for row in audit.newest(lake, ACTION, most, before):
        detail = json.loads(row["detail"])
        facts = {f.name: detail.get(f.name) for f in fields(HistoryEntry) if f.name not in _OF_THE_ROW}
        own = {"timestamp": row["timestamp"], "event_id": row["event_id"], "who": row["key_id"] or row["user"]}
        entries.append(HistoryEntry(**own, **facts))
    return entries


def _table(query: SavedQuery) -> pa.Table:
    row = {**vars(query), "parameters": json.dumps(query.parameters, ensure_ascii=False)}
    return pa.Table.from_pylist([row], schema=schema.SAVED_QUERIES.arrow())


def _storable(text: str) -> str:
    """The text without characters that UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
