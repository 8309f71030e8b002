"""The syntax tree that DuckDB's own parser makes of a query, and one walk over it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb


def serialized(connection: duckdb.DuckDBPyConnection, text: str) -> str:
    """The tree as JSON, as `json_serialize_sql` gives it."""
    tree: str = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0]
    return tree


def parsed(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    """The tree: `statements`, or `error` and `error_message` if the text does not parse.

    Raises RecursionError if the text is nested too deeply.
    """
    tree: dict[str, Any] = json.loads(serialized(connection, text))
    return tree


def table_calls(tree: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """`function_name`, in lower case, and `arguments` of every call of these functions in a FROM clause."""
    functions = [node["function"] for node in walk(tree) if node.get("type") == "TABLE_FUNCTION"]
    calls = [{"function_name": f["function_name"].lower(), "arguments": f["arguments"]} for f in functions]
    return [call for call in calls if call["function_name"] in names]


def walk(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in the tree, a parent before its children."""
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
