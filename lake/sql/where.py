"""One filter language: a boolean SQL expression over predictions, in DuckDB's dialect, wherever a filter is taken.

Lance filters (which run before the nearest neighbours are chosen) speak another dialect and ignore trailing text, so
a filter is parsed by DuckDB first. What Lance can say with the same meaning is pushed down to it; for the rest
DuckDB finds the rows and Lance gets their ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.errors import BadInput
from lake.sql.connections import connect, query
from lake.storage import schema
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import Lake

_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}


@dataclass(frozen=True)
class Filter:
    """A checked filter. `lance` is the same in Lance's dialect, or None when only DuckDB can say it."""

    sql: str
    lance: str | None


def check(lake: Lake, text: str) -> Filter:
    """Raises BadInput, with DuckDB's own words, unless `text` is one boolean expression over predictions."""
    import duckdb

    # The newline ends a trailing comment, which would otherwise swallow the closing parenthesis.
    statement = f"SELECT prediction_id FROM predictions WHERE ({text}\n)"
    with connect(lake, statement) as connection:
        try:
            parsed = connection.extract_statements(statement)
            if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
                raise BadInput(f"the filter {text!r} is not one expression")
            tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [statement]).fetchall()[0][0])
            if tree.get("error"):
                raise BadInput(f"the filter {text!r} is not one expression: {tree.get('error_message')}")
            node = tree["statements"][0]["node"]
            shape = (node.get("type"), node.get("modifiers"), node.get("group_expressions"), node.get("having"))
            if shape != ("SELECT_NODE", [], [], None) or node.get("qualify") is not None:
                raise BadInput(f"the filter {text!r} is not one expression")
            connection.sql(statement)  # binds it: aggregates and the like are refused
            kind = connection.sql(f"SELECT ({text}\n) AS passes FROM predictions").types[0]
            if str(kind) != "BOOLEAN":
                raise BadInput(f"the filter {text!r} gives {kind}, not true or false")
        except duckdb.Error as error:
            raise BadInput(f"the filter {text!r}: {error}") from error
    kinds = {c.name: c.type for c in schema.PREDICTIONS.columns} | dict(lake.promoted())
    return Filter(text, _translate(node["where_clause"], kinds))


def row_ids(lake: Lake, filter: Filter) -> list[int]:
    """Lance row ids of the rows of predictions that pass, at the newest version."""
    import duckdb

    from lake.sql.lance_view import ViewWithRowIds

    dataset = lake.dataset("predictions")
    text = f"SELECT _rowid FROM _rows AS predictions WHERE ({filter.sql}\n)"
    with connect(lake, text) as connection:
        connection.register("_rows", ViewWithRowIds(dataset))
        try:
            found: list[int] = connection.sql(text).to_arrow_table()["_rowid"].to_pylist()
        except duckdb.Error as error:  # a cast that fails on some row
            raise BadInput(f"the filter {filter.sql!r}: {error}") from error
        connection.unregister("_rows")
    return found


def images(lake: Lake, text: str) -> list[str]:
    """Distinct image_ids of the rows of predictions that pass the filter, sorted. Raises BadInput."""
    check(lake, text)
    found = query(lake, f"SELECT DISTINCT image_id FROM predictions WHERE ({text}\n) ORDER BY image_id")
    names: list[str] = found["image_id"].to_pylist()
    return names


def _translate(node: dict[str, Any], kinds: dict[str, Any]) -> str | None:
    """The expression in Lance's dialect, when it is made only of what means the same in both."""
    kind, family = node["type"], node["class"]
    if family == "CONJUNCTION":
        parts = [_translate(child, kinds) for child in node["children"]]
        word = " AND " if kind == "CONJUNCTION_AND" else " OR "
        return None if None in parts else "(" + word.join(p for p in parts if p) + ")"
    if family == "COMPARISON" and kind in _COMPARISONS:
        left, right = _column(node["left"], kinds), _constant(node["right"])
        operator = _COMPARISONS[kind]
        if left is None:
            flipped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(operator, operator)
            left, right, operator = _column(node["right"], kinds), _constant(node["left"]), flipped
        return _compare(left, operator, right, kinds)
    if family == "BETWEEN":
        column = _column(node["input"], kinds)
        low = _compare(column, ">=", _constant(node["lower"]), kinds)
        high = _compare(column, "<=", _constant(node["upper"]), kinds)
        return f"({low} AND {high})" if low and high else None
    if family == "OPERATOR" and kind == "OPERATOR_NOT":
        inner = _translate(node["children"][0], kinds)
        return f"(NOT {inner})" if inner else None
    if family == "OPERATOR" and kind in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
        column = _column(node["children"][0], kinds)
        return f"({column} IS {'NOT ' if 'NOT' in kind else ''}NULL)" if column else None
    if family == "OPERATOR" and kind in ("COMPARE_IN", "COMPARE_NOT_IN"):
        column = _column(node["children"][0], kinds)
        parts = [_compare(column, "=", _constant(child), kinds) for child in node["children"][1:]]
        if not parts or None in parts:
            return None
        text = "(" + " OR ".join(p for p in parts if p) + ")"
        return f"(NOT {text})" if kind == "COMPARE_NOT_IN" else text
    return None


def _column(node: dict[str, Any], kinds: dict[str, Any]) -> str | None:
    if node["class"] != "COLUMN_REF" or len(node["column_names"]) != 1:
        return None
    # DuckDB's names are not case-sensitive, Lance's are.
    name = {k.lower(): k for k in kinds}.get(node["column_names"][0].lower())
    return name


def _constant(node: dict[str, Any]) -> str | int | float | None:
    """A text or number literal, else None (casts, null, dates: left to DuckDB)."""
    literal = node.get("literal") if node["class"] == "CONSTANT" else None
    if literal is None:
        return None
    text = str(literal["text"])
    return {"STRING": str, "INTEGER": int, "NUMERIC": float}.get(literal["kind"], lambda _: None)(text)


def _compare(column: str | None, operator: str, value: Any, kinds: dict[str, Any]) -> str | None:
    """Only like with like: text with text, numbers with numbers. The rest has rules of its own in each dialect."""
    if column is None or value is None:
        return None
    if pa.types.is_string(kinds[column]) and isinstance(value, str):
        return f"({column} {operator} {literal(value)})"
    if pa.types.is_floating(kinds[column]) and isinstance(value, int | float):
        return f"({column} {operator} {float(value)!r})" if "inf" not in repr(float(value)) else None
    if pa.types.is_integer(kinds[column]) and isinstance(value, int) and -(2**63) <= value < 2**63:
        return f"({column} {operator} {value})"
    return None
