"""What to write instead of SQL that is refused: statements, functions and catalogues of other databases."""

from __future__ import annotations

import re

ONE_SELECT = "SQL takes one SELECT statement here: the lake is changed by its commands only"

_CATALOGUE = "SHOW TABLES lists the tables, DESCRIBE t the columns of one, SELECT column_name FROM (DESCRIBE t) as rows"
_VALUES = "use a parameter instead: $name in the query, and its value beside it (--param name=value)"
_EXPORT = "lakeloop sql writes files with --format csv or parquet and --out FILE; HTTP returns JSON or Arrow"
_INGEST = "a query reads the tables of the lake only; lakeloop ingest FILE brings data in"
_STATEMENTS = {
    "explain": "a plan would tell about the server; the result of a query says how many seconds it took",
    "pivot": "PIVOT needs its values here: PIVOT t ON label IN ('cat', 'dog') USING count(*)",
    "pragma": _CATALOGUE,
    "call": _CATALOGUE,
    "set": _VALUES,
    "reset": "the settings of queries are fixed",
    "create": "name a step of the query with WITH step AS (SELECT ...), or save it: lakeloop query save",
    "insert": "lakeloop ingest and lakeloop labels import add rows",
    "update": "a newer label or review takes the place of an older one: lakeloop labels import",
    "delete": "lakeloop forget and lakeloop retain remove data",
    "copy": _EXPORT,
    "export": _EXPORT,
    "attach": _INGEST,
    "install": _INGEST,
    "load": _INGEST,
    "begin": "a query sees every table at one version already",
}
_FUNCTIONS = (
    (r"(duckdb|pragma|pg)_(?!secrets|settings).*|sql_auto_complete|current_(schemas?|database|catalog)", _CATALOGUE),
    (r"read_.*|.*_scan|glob|sniff_csv|parquet_.*", _INGEST),
    (r"getvariable|query|query_table", _VALUES),
    (r"setseed", "USING SAMPLE 10 (reservoir, 7) and hash(image_id) choose the same rows each time"),
    (r"width_bucket", "use floor((x - low) / step), or equi_width_bins(low, high, n, true) for the edges"),
    (r"version|pragma_version", "lakeloop --version and GET /v1/status tell the version of lakeloop"),
    (r"nextval|currval", "use row_number() OVER (ORDER BY ...)"),
)
# Atomic: a text of many comments must not be divided into comments in every possible way.
_WORD = re.compile(r"(?>\s|--[^\n]*|/\*(?>.*?\*/))*+([a-z]+)", re.DOTALL | re.IGNORECASE)


def statement(text: str) -> str:
    """The refusal of a text that is not one SELECT, with what to write instead if that is known."""
    first = _WORD.match(text)
    word = first[1].lower() if first else ""
    if word in ("with", "select", "from"):  # only a PIVOT without values makes several statements of one
        word = "pivot" if re.search(r"\bpivot\b", text, re.IGNORECASE) else word
    instead = _STATEMENTS.get(word)
    if instead is None and ";" in text.rstrip("; \n\t"):
        instead = "send several one after the other"
    return f"{ONE_SELECT}; {instead}" if instead else ONE_SELECT


def function(name: str) -> str:
    """The refusal of a call of this function."""
    refusal = f"the function {name[:100]}() cannot be used here; a query may call only functions that compute"
    for pattern, instead in _FUNCTIONS:
        if re.fullmatch(pattern, name[:100], re.IGNORECASE):
            return f"{refusal}; {instead}"
    return refusal


def table(name: str) -> str:
    """The refusal of a table that is not the lake's."""
    instead = _CATALOGUE if re.match(r"(\w+\.)?(information_schema|pg_\w+|duckdb_\w+|sqlite_\w+)", name) else None
    if instead is None and re.search(r"\.\w{2,8}\Z", name):
        instead = _INGEST
    return f"no table {name[:200]!r} here; {instead or 'SHOW TABLES lists the tables'}"
