"""A filter's syntax: checks on a locked connection that a text is one boolean expression, and translates it for Lance.

It runs in the server's process for texts of its owner, and in the process of queries for texts of others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.errors import BadInput
from lake.sql import syntax_tree
from lake.storage import schema, views
from lake.storage.store import literal

if TYPE_CHECKING:
    import duckdb

_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}

# By their names in lower case.
Columns = dict[str, pa.Field]
# A filter that names one of these is evaluated over the view samples_reviewed, any other over table samples.
_NAMES_REVIEWED = re.compile(rf"\b({'|'.join(views.REVIEWED)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Filter:
    """A checked filter. `lance` is the same filter in Lance's dialect, or None if only DuckDB can evaluate it."""

    sql: str
    lance: str | None


def statement(text: str) -> str:
    """The query that passes the rows of the filter: what it names tells which tables a connection needs."""
    return f"SELECT prediction_id FROM {source(text)} WHERE {text}\n"


def tree(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    """The filter's syntax tree. Raises BadInput, with DuckDB's own message, unless it is one expression.

    It is parsed between brackets and without them: `a) OR (b` is an expression only between them, `a ORDER BY b` only
    without, and what is both is one expression.
    """
    import duckdb

    try:
        # The newline ends a trailing comment, which would otherwise swallow the closing bracket.
        statements = connection.extract_statements(f"SELECT 1 FROM samples WHERE ({text}\n)")
    except duckdb.Error as error:
        raise BadInput(f"{_named(text)}: {error}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise BadInput(f"{_named(text)} is not one expression")
    try:
        parsed = syntax_tree.parsed(connection, statement(text))
    except RecursionError:
        raise BadInput("the filter is nested too deeply") from None
    if parsed.get("error") or len(parsed["statements"]) != 1:
        raise BadInput(f"{_named(text)} is not one expression: {parsed.get('error_message')}")
    node = parsed["statements"][0]["node"]
    shape = (node.get("type"), node.get("modifiers"), node.get("group_expressions"), node.get("having"))
    if shape != ("SELECT_NODE", [], [], None) or node.get("qualify") is not None:
        raise BadInput(f"{_named(text)} is not one expression")
    where_clause: dict[str, Any] = node["where_clause"]
    return where_clause


def bind(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    """Raises BadInput, with DuckDB's own message, unless what `tree` parsed is true or false of a row of samples."""
    import duckdb

    try:
        connection.sql(statement(text))  # aggregates and the like are refused
        result_type = connection.sql(f"SELECT ({text}\n) AS passes FROM {source(text)}").types[0]
    except duckdb.Error as error:
        raise BadInput(f"{_named(text)}: {views.hint(str(error))}") from error
    if str(result_type) != "BOOLEAN":
        raise BadInput(f"{_named(text)} gives {result_type}, not true or false")


def source(text: str) -> str:
    """What the filter is evaluated over, after FROM."""
    return "samples_reviewed AS samples" if _NAMES_REVIEWED.search(text) else "samples"


def _named(text: str) -> str:
    return f"the filter {text!r:.200}"


def for_lance(node: dict[str, Any], samples: pa.Schema) -> str | None:
    """The tree of a filter over a table of these columns in Lance's dialect.

    None if some part of it means something else there.
    """
    # DuckDB's names are not case-sensitive, Lance's are.
    return _translate(node, {f.name.lower(): f for f in samples if not f.name.startswith(schema.VECTOR_PREFIX)})


def _translate(node: dict[str, Any], columns: Columns) -> str | None:
    """The expression in Lance's dialect; None if some part of it means something else there."""
    kind, family = node["type"], node["class"]
    if family == "CONJUNCTION":
        parts = [_translate(child, columns) for child in node["children"]]
        word = " AND " if kind == "CONJUNCTION_AND" else " OR "
        return None if None in parts else "(" + word.join(p for p in parts if p) + ")"
    if family == "COMPARISON" and kind in _COMPARISONS:
        left, right = _column(node["left"], columns), _constant(node["right"])
        operator = _COMPARISONS[kind]
        if left is None:
            flipped = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(operator, operator)
            left, right, operator = _column(node["right"], columns), _constant(node["left"]), flipped
        return _compare(left, operator, right)
    if family == "BETWEEN":
        column = _column(node["input"], columns)
        low = _compare(column, ">=", _constant(node["lower"]))
        high = _compare(column, "<=", _constant(node["upper"]))
        return f"({low} AND {high})" if low and high else None
    if family == "OPERATOR" and kind == "OPERATOR_NOT":
        inner = _translate(node["children"][0], columns)
        return f"(NOT {inner})" if inner else None
    if family == "OPERATOR" and kind in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
        column = _column(node["children"][0], columns)
        return f"({column.name} IS {'NOT ' if 'NOT' in kind else ''}NULL)" if column is not None else None
    if family == "OPERATOR" and kind in ("COMPARE_IN", "COMPARE_NOT_IN"):
        column = _column(node["children"][0], columns)
        parts = [_compare(column, "=", _constant(child)) for child in node["children"][1:]]
        if not parts or None in parts:
            return None
        text = "(" + " OR ".join(p for p in parts if p) + ")"
        return f"(NOT {text})" if kind == "COMPARE_NOT_IN" else text
    return None


def _column(node: dict[str, Any], columns: Columns) -> pa.Field | None:
    if node["class"] != "COLUMN_REF" or len(node["column_names"]) != 1:
        return None
    return columns.get(node["column_names"][0].lower())


def _constant(node: dict[str, Any]) -> str | int | float | None:
    """A text or number literal, else None: casts, null and dates are left to DuckDB."""
    literal = node.get("literal") if node["class"] == "CONSTANT" else None
    if literal is None:
        return None
    text = str(literal["text"])
    return {"STRING": str, "INTEGER": int, "NUMERIC": float}.get(literal["kind"], lambda _: None)(text)


def _compare(column: pa.Field | None, operator: str, value: Any) -> str | None:
    """Compares only text with text and numbers with numbers: the dialects differ in all else."""
    if column is None or value is None:
        return None
    if pa.types.is_string(column.type) and isinstance(value, str):
        return f"({column.name} {operator} {literal(value)})"
    if pa.types.is_floating(column.type) and isinstance(value, int | float):
        return f"({column.name} {operator} {float(value)!r})" if "inf" not in repr(float(value)) else None
    if pa.types.is_integer(column.type) and isinstance(value, int) and -(2**63) <= value < 2**63:
        return f"({column.name} {operator} {value})"
    return None
