"""Parses, in the process of queries, texts of others that are not run as they are: filters, and what calls near().

DuckDB's own limits do not hold inside one function: `repeat('a', 1e9)` takes its gigabyte whatever `memory_limit`
says. So a filter from outside may only name columns, compare, calculate, and call functions whose result is no larger
than their arguments. Subqueries are refused: they could read other tables. The command line has no such bound.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lake import nesting
from lake.errors import BadInput
from lake.sql import filter_syntax, syntax_tree
from lake.storage import views

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# LAMBDA is how `metadata -> 'name'` is parsed, too; no function below takes a real one.
_PARTS = "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR"
_TYPES = """
    boolean bool tinyint smallint int integer bigint hugeint utinyint usmallint uinteger ubigint float real double
    decimal numeric varchar text string date time timestamp timestamptz interval json uuid
"""
# Functions of text, numbers, times, JSON and lists. None returns more than its argument, or a long value for a number.
_FUNCTIONS = """
    + - * / // % ** ^ ~~ ~~* !~~ !~~* ~~~ ^@ -> ->>
    abs ceil ceiling floor round trunc sign sqrt ln log log2 log10 exp pow power greatest least nullif ifnull
    isnan isinf isfinite lower upper trim ltrim rtrim length len strlen contains starts_with ends_with prefix suffix
    instr position strpos left right substr substring reverse regexp_matches regexp_full_match regexp_extract
    like_escape ilike_escape not_like_escape not_ilike_escape
    list_value struct_extract array_extract list_extract list_element list_contains list_has array_has list_has_any
    list_has_all list_position array_length list_min list_max list_sum list_avg
    json_extract json_extract_string json_extract_path json_extract_path_text json_exists json_contains json_type
    json_valid json_array_length
    now today current_date current_timestamp get_current_timestamp date_part datepart date_trunc date_diff datediff
    date_add date_sub year month day hour minute second quarter week weekday isodow dow dayofweek dayofyear dayname
    monthname epoch epoch_ms strptime try_strptime make_date make_timestamp age to_timestamp to_years to_months
    to_weeks to_days to_hours to_minutes to_seconds to_milliseconds hash md5
"""
PARTS = frozenset(_PARTS.split())
TYPES = frozenset(_TYPES.split()) | {"timestamp with time zone"}
FUNCTIONS = frozenset(_FUNCTIONS.split())
# Each of these keeps its texts for a block of 2,048 rows, all at once: 90 times `lower` on texts of 10,000 characters
# took gigabytes in the server.
_MAKE_TEXTS = """
    lower upper trim ltrim rtrim left right substr substring reverse greatest least like_escape ilike_escape
    not_like_escape not_ilike_escape regexp_extract list_value struct_extract array_extract list_extract list_element
    list_min list_max json_extract json_extract_string json_extract_path json_extract_path_text -> ->>
"""
MAKE_TEXTS = frozenset(_MAKE_TEXTS.split())
MOST_TEXTS = 16
# A match takes up to about 0.2 microseconds a character of the text with these bounds, and 4 without: an automaton of
# thousands of states, which a few dots or a count give, is not made at once. It may be a text of megabytes.
REGULAR_EXPRESSIONS = frozenset({"regexp_matches", "regexp_full_match", "regexp_extract"})
MOST_PATTERN_CHARACTERS, MOST_PATTERN_SIGNS = 100, 12
_SIGNS, _COSTLY = re.compile(r"[.\[(|\\*+?]"), re.compile(r"[{]|\\[pP]")
# DuckDB looks a long name up in a time that grows with the third power of its parts.
MOST_NAME_PARTS = 10


class Parser:
    """A locked connection without rows: the tables have their columns only."""

    def __init__(self, settings: dict[str, Any], lock: Sequence[str]) -> None:
        self._settings, self._lock = settings, lock
        self._samples: pa.Schema | None = None
        self._connection: duckdb.DuckDBPyConnection | None = None

    def lance_filter(self, text: str, samples: pa.Schema, bounded: bool) -> str | None:
        """The filter in Lance's dialect, or None. Raises BadInput unless it is true or false of a row of samples.

        `samples`: the table's columns. If `bounded`, every part must be allowed, too.
        """
        connection = self._connected(samples)
        tree = filter_syntax.tree(connection, text)
        if bounded:
            nodes = [node for node in syntax_tree.walk(tree) if "class" in node]
            for node in nodes:
                _refuse(node)
            if (count := sum(map(_makes_texts, nodes))) > MOST_TEXTS:
                raise BadInput(f"the filter makes {count} texts for each row; it may make {MOST_TEXTS}: use a query")
        filter_syntax.bind(connection, text)
        return filter_syntax.for_lance(tree, samples)

    def calls(self, text: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """The calls of these table functions in a query: `function_name` and `arguments` of each, as in its tree.

        Empty if the query does not parse: running it reports why.
        """
        nesting.check(text)
        try:
            tree = syntax_tree.parsed(self._connected(self._samples), text)
        except RecursionError:
            raise BadInput("the query is nested too deeply") from None
        return syntax_tree.table_calls(tree, names)

    def _connected(self, samples: pa.Schema | None) -> duckdb.DuckDBPyConnection:
        import duckdb

        if self._connection is not None and (samples is None or samples == self._samples):
            return self._connection
        if self._connection is not None:
            self._connection.close()
        connection = duckdb.connect(":memory:", config=self._settings)
        if samples is not None:
            views.create_empty(connection, samples)
        for statement in self._lock:
            connection.execute(statement)
        self._connection, self._samples = connection, samples
        return connection


def _refuse(part: dict[str, Any]) -> None:
    kind = part["class"]
    if kind == "COLUMN_REF" and len(part["column_names"]) > MOST_NAME_PARTS:
        raise BadInput(f"a name in a filter has at most {MOST_NAME_PARTS} parts, not {len(part['column_names']):,}")
    if kind == "TYPE":
        name = str(part["type_name"])
        if name.lower() not in TYPES:
            raise BadInput(f"a filter may not cast to {name:.100}")
    elif kind == "FUNCTION":
        name = str(part["function_name"])
        if name.lower() not in FUNCTIONS:
            raise BadInput(f"a filter may not call {name:.100}(); use lakeloop sql on the command line")
        if name.lower() in REGULAR_EXPRESSIONS:
            _check_pattern(part["arguments"])
    elif kind not in PARTS:
        raise BadInput(
            f"a filter may not contain a {kind.lower().replace('_', ' ')}; use lakeloop sql on the command line"
        )


def _makes_texts(part: dict[str, Any]) -> bool:
    if part["class"] == "FUNCTION":
        return str(part["function_name"]).lower() in MAKE_TEXTS
    if part["class"] == "LAMBDA":  # `metadata -> 'name'`
        return True
    return part["class"] in ("CAST", "COLLATE")


def _check_pattern(arguments: list[dict[str, Any]]) -> None:
    """Raises BadInput for a regular expression that could take long for each row."""
    literal = arguments[1]["expression"].get("literal") if len(arguments) > 1 else None
    if literal is None or literal["kind"] != "STRING":
        raise BadInput("a regular expression in a filter is a text in quotes")
    pattern = str(literal["text"])
    signs = sum(1 for _ in _SIGNS.finditer(pattern))
    if len(pattern) > MOST_PATTERN_CHARACTERS or signs > MOST_PATTERN_SIGNS or _COSTLY.search(pattern):
        raise BadInput(
            f"the regular expression {pattern!r:.120} is too complex for a filter: it may have "
            f"{MOST_PATTERN_CHARACTERS} characters, {MOST_PATTERN_SIGNS} of the signs . [ ( | \\ * + ?, no {{counts}} "
            "and no \\p; use a query"
        )
