"""Checks that a filter sent over the network uses only bounded SQL.

DuckDB's own limits do not hold inside one function: `repeat('a', 1e9)` takes its gigabyte whatever `memory_limit`
says. So a filter from outside may only name columns, compare, calculate, and call functions whose result is no larger
than their arguments. Subqueries are refused: they could read other tables. The command line has no such bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.slices import definition as definitions
from lake.sql import syntax_tree
from lake.sql.connections import connect

if TYPE_CHECKING:
    from lake.storage.store import Lake

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
# Filters and slices in one definition of a slice: each is a query.
MOST_PARTS = 100


def check(lake: Lake, text: str) -> None:
    """Raises BadInput, naming the part, if the filter has a part that is not allowed.

    It does not check whether the text is a valid filter: `lake.sql.where.check` does.
    """
    statement = f"SELECT 1 FROM samples WHERE ({text}\n)"
    try:
        with connect(lake, statement) as connection:
            tree = syntax_tree.parsed(connection, statement)
        if tree.get("error"):  # not SQL: `lake.sql.where.check` has the better message
            return
        for statement_tree in tree["statements"]:
            # A filter has one condition; of the statement around it only the condition is checked.
            for node in syntax_tree.walk(statement_tree["node"].get("where_clause")):
                if "class" in node:
                    _refuse(node)
    except RecursionError as error:
        raise BadInput("the filter is nested too deeply") from error


def check_definition(lake: Lake, definition: Any) -> None:
    """Raises BadInput for a slice's definition with too many parts, or with a filter that `check` refuses."""
    parts = [definitions.check(definition)]
    for part in parts:  # grows meanwhile
        parts += [
            inner for kind in ("union", "intersect") for inner in part.get(kind, ()) if not isinstance(inner, str)
        ]
    count = len(parts) + len(definitions.references(parts[0]))
    if count > MOST_PARTS:
        raise BadInput(f"the definition has {count:,} parts; it may have at most {MOST_PARTS}")
    for part in parts:
        if "where" in part:
            check(lake, part["where"])


def _refuse(part: dict[str, Any]) -> None:
    kind = part["class"]
    if kind == "TYPE":
        name = str(part["type_name"])
        if name.lower() not in TYPES:
            raise BadInput(f"a filter may not cast to {name}")
    elif kind == "FUNCTION":
        name = str(part["function_name"])
        if name.lower() not in FUNCTIONS:
            raise BadInput(f"a filter may not call {name}(); use lakeloop sql on the command line")
    elif kind not in PARTS:
        raise BadInput(
            f"a filter may not contain a {kind.lower().replace('_', ' ')}; use lakeloop sql on the command line"
        )
