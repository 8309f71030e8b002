"""Filters: boolean SQL expressions over samples in DuckDB's dialect, translated for Lance where possible.

Lance filters run before the nearest neighbours are chosen, but have another dialect and ignore trailing text, so
DuckDB parses a filter first. What means the same in both dialects is pushed down to Lance; for the rest, DuckDB finds
the rows and Lance gets their ids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.errors import BadInput
from lake.sql import syntax_tree
from lake.sql.connections import connect, query
from lake.storage import schema, views
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


# A filter that names one of these is evaluated over the view samples_reviewed, any other over table samples.
_NAMES_REVIEWED = re.compile(rf"\b({'|'.join(views.REVIEWED)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Filter:
    """A checked filter. `lance` is the same filter in Lance's dialect, or None if only DuckDB can evaluate it."""

    sql: str
    lance: str | None


def check(lake: Lake, text: str) -> Filter:
    """Raises BadInput, with DuckDB's own message, unless `text` is one boolean expression over samples."""
    import duckdb

    # The newline ends a trailing comment, which would otherwise swallow the closing parenthesis.
    source = _source(text)
    statement = f"SELECT prediction_id FROM {source} WHERE ({text}\n)"
    with connect(lake, statement) as connection:
        try:
            parsed = connection.extract_statements(statement)
            if len(parsed) != 1 or parsed[0].type != duckdb.StatementType.SELECT:
                raise BadInput(f"the filter {text!r} is not one expression")
            tree = syntax_tree.parsed(connection, statement)
            if tree.get("error"):
                raise BadInput(f"the filter {text!r} is not one expression: {tree.get('error_message')}")
            node = tree["statements"][0]["node"]
            shape = (node.get("type"), node.get("modifiers"), node.get("group_expressions"), node.get("having"))
            if shape != ("SELECT_NODE", [], [], None) or node.get("qualify") is not None:
                raise BadInput(f"the filter {text!r} is not one expression")
            connection.sql(statement)  # binds it: aggregates and the like are refused
            result_type = connection.sql(f"SELECT ({text}\n) AS passes FROM {source}").types[0]
            if str(result_type) != "BOOLEAN":
                raise BadInput(f"the filter {text!r} gives {result_type}, not true or false")
        except duckdb.Error as error:
            raise BadInput(f"the filter {text!r}: {views.hint(str(error))}") from error
    types = {c.name: c.type for c in schema.SAMPLES.columns} | dict(lake.promoted())
    return Filter(text, _translate(node["where_clause"], types))


def predicate(text: str | None) -> str:
    """A checked filter as a predicate for a query over samples or one of their views; "true" without a filter.

    In each of them, the same rows pass: `correct` always means the `correct` of samples_reviewed.
    """
    if not text:
        return "true"
    if not _NAMES_REVIEWED.search(text):
        return f"({text}\n)"
    return f"prediction_id IN (SELECT prediction_id FROM {_source(text)} WHERE ({text}\n))"


def conjunction(*texts: str | None) -> str | None:
    """The filter that passes what every one of them passes; those that are None or empty are left out."""
    present = [text for text in texts if text]
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
            raise BadInput(f"the filter {filter.sql!r}: {error}") from error
        connection.unregister("_rows")
    return numbers


def images(lake: Lake, text: str) -> list[str]:
    """Distinct image_ids of the samples that pass the filter, sorted. Raises BadInput."""
    check(lake, text)
    rows = query(lake, f"SELECT DISTINCT image_id FROM samples WHERE {predicate(text)} ORDER BY image_id")
    image_ids: list[str] = rows["image_id"].to_pylist()
    return image_ids


def _source(text: str) -> str:
    return "samples_reviewed AS samples" if _NAMES_REVIEWED.search(text) else "samples"


def _translate(node: dict[str, Any], types: dict[str, Any]) -> str | None:
    """The expression in Lance's dialect; None if some part of it means something else there."""
    kind, family = node["type"], node["class"]
    if family == "CONJUNCTION":
        parts = [_translate(child, types) for child in node["children"]]
        word = " AND " if kind == "CONJUNCTION_AND" else " OR "
        return None if None in parts else "(" + word.join(p for p in parts if p) + ")"
    if family == "COMPARISON" and kind in _COMPARISONS:
        left, right = _column(node["left"], types), _constant(node["right"])
        operator = _COMPARISONS[kind]
        if left is None:
            flipped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(operator, operator)
            left, right, operator = _column(node["right"], types), _constant(node["left"]), flipped
        return _compare(left, operator, right, types)
    if family == "BETWEEN":
        column = _column(node["input"], types)
        low = _compare(column, ">=", _constant(node["lower"]), types)
        high = _compare(column, "<=", _constant(node["upper"]), types)
        return f"({low} AND {high})" if low and high else None
    if family == "OPERATOR" and kind == "OPERATOR_NOT":
        inner = _translate(node["children"][0], types)
        return f"(NOT {inner})" if inner else None
    if family == "OPERATOR" and kind in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
        column = _column(node["children"][0], types)
        return f"({column} IS {'NOT ' if 'NOT' in kind else ''}NULL)" if column else None
    if family == "OPERATOR" and kind in ("COMPARE_IN", "COMPARE_NOT_IN"):
        column = _column(node["children"][0], types)
        parts = [_compare(column, "=", _constant(child), types) for child in node["children"][1:]]
        if not parts or None in parts:
            return None
        text = "(" + " OR ".join(p for p in parts if p) + ")"
        return f"(NOT {text})" if kind == "COMPARE_NOT_IN" else text
    return None


def _column(node: dict[str, Any], types: dict[str, Any]) -> str | None:
    if node["class"] != "COLUMN_REF" or len(node["column_names"]) != 1:
        return None
    # DuckDB's names are not case-sensitive, Lance's are.
    return {name.lower(): name for name in types}.get(node["column_names"][0].lower())


def _constant(node: dict[str, Any]) -> str | int | float | None:
    """A text or number literal, else None: casts, null and dates are left to DuckDB."""
    literal = node.get("literal") if node["class"] == "CONSTANT" else None
    if literal is None:
        return None
    text = str(literal["text"])
    return {"STRING": str, "INTEGER": int, "NUMERIC": float}.get(literal["kind"], lambda _: None)(text)


def _compare(column: str | None, operator: str, value: Any, types: dict[str, Any]) -> str | None:
    """Compares only text with text and numbers with numbers: the dialects differ in all else."""
    if column is None or value is None:
        return None
    if pa.types.is_string(types[column]) and isinstance(value, str):
        return f"({column} {operator} {literal(value)})"
    if pa.types.is_floating(types[column]) and isinstance(value, int | float):
        return f"({column} {operator} {float(value)!r})" if "inf" not in repr(float(value)) else None
    if pa.types.is_integer(types[column]) and isinstance(value, int) and -(2**63) <= value < 2**63:
        return f"({column} {operator} {value})"
    return None
