"""Checks a query: one SELECT over the lake's tables that calls only functions that compute.

DuckDB's own parser makes the tree, and the statement that runs is the one that was parsed. Node kinds, functions and
tables are allow-lists. A locked DuckDB alone would not do: its catalogues and settings tell about the server,
`query()` runs text, and a SELECT may begin WITH an INSERT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lake import nesting
from lake.errors import BadInput
from lake.sql import refusals, syntax_tree
from lake.sql.sandbox.functions import ALLOWED, TABLE_FUNCTIONS

if TYPE_CHECKING:
    import duckdb

_EXPRESSIONS = frozenset(
    {
        "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION",
        "LAMBDA", "LAMBDA_REF", "OPERATOR", "PARAMETER", "POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "TYPE", "WINDOW",
    }
)  # fmt: skip
_NODES = frozenset(
    {
        "SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE",  # queries
        "BASE_TABLE", "EMPTY", "EXPRESSION_LIST", "JOIN", "PIVOT", "SHOW_REF", "SUBQUERY", "TABLE_FUNCTION",  # FROM
        "DISTINCT_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "ORDER_MODIFIER",
        "ORDER_DEFAULT", "ASCENDING", "DESCENDING", "ORDER_ASCENDING", "ORDER_DESCENDING",
    }
)  # fmt: skip
_ALLOWED_SHOWS = frozenset({"DESCRIBE", "SUMMARY"})
_NAME = re.compile(r"[\w -]+")  # cannot be the name of a file
_OWN_CATALOGUES = ({"main"}, {"memory"}, {"memory", "main"})


def parse(connection: duckdb.DuckDBPyConnection, text: str, tables: Sequence[str], macros: Iterable[str] = ()) -> None:
    """Raises BadInput unless `text` is one SELECT that reads these tables and calls allowed functions only.

    `macros` are table functions that it may also call. Raises duckdb.Error, with the position, if it does not parse.
    """
    import duckdb

    nesting.check(text)
    statements = connection.extract_statements(text)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise BadInput(refusals.statement(text))
    try:
        tree = syntax_tree.parsed(connection, text)
    except RecursionError:
        raise BadInput("the query is nested too deeply") from None
    if tree.get("error") or len(tree["statements"]) != 1:
        raise BadInput(refusals.statement(text))
    known = {name.lower() for name in tables}
    functions = TABLE_FUNCTIONS | {*macros}  # a call after FROM is in the tree as a function, too
    for node in syntax_tree.walk(tree["statements"][0]):
        _check(node, text, known, functions)


def _check(node: dict[str, Any], text: str, known: set[str], functions: frozenset[str]) -> None:
    kind, family = node.get("type"), node.get("class")
    if family is not None:
        if family not in _EXPRESSIONS:
            raise BadInput(_at(f"{str(family).lower()} cannot be used in a query here", node, text))
        name = node.get("function_name")
        if name is not None and str(name).lower() not in ALLOWED | functions and family != "TABLE_FUNCTION":
            raise BadInput(_at(refusals.function(str(name)), node, text))
    elif isinstance(kind, str) and kind not in _NODES:
        raise BadInput(_at(f"{refusals.ONE_SELECT} ({kind.removesuffix('_NODE').lower()})", node, text))
    if kind == "TABLE_FUNCTION" and family is None:
        name = str(node["function"].get("function_name", ""))
        if name.lower() not in functions:
            raise BadInput(_at(refusals.function(name), node, text))
    elif kind == "BASE_TABLE":
        _check_table(node, text, known)
    elif kind == "SHOW_REF" and node["show_type"] not in _ALLOWED_SHOWS and node["table_name"] != '"tables"':
        raise BadInput(_at("SHOW TABLES is the only SHOW command here; DESCRIBE t shows a table", node, text))


def _check_table(node: dict[str, Any], text: str, known: set[str]) -> None:
    path = [str(part) for part in node["qualified_name"]["path"]]
    name = path[-1]
    if name.lower() in known and (len(path) == 1 or {part.lower() for part in path[:-1]} in _OWN_CATALOGUES):
        return
    if len(path) > 1 or _internal(name) or not _NAME.fullmatch(name):
        raise BadInput(_at(refusals.table(".".join(path)), node, text))


def _internal(name: str) -> bool:
    """Whether DuckDB would answer with a view about itself if no table has this name."""
    return name.lower().startswith(("duckdb_", "pg_", "sqlite_", "pragma_"))


def _at(sentence: str, node: dict[str, Any], text: str) -> str:
    """The sentence, and below it the position in the query as DuckDB shows it."""
    position = node.get("query_location", 2**64 - 1)
    before = text.encode()[:position].decode(errors="ignore")
    if position >= len(text.encode()):
        return sentence
    number = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1)
    line = text.split("\n")[number - 1]
    start = max(0, column - 60)
    shown = f"LINE {number}: {'...' if start else ''}"
    return f"{sentence}\n\n{shown}{line[start : start + 120]}\n{' ' * (len(shown) + column - start)}^"
