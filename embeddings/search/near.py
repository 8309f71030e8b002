"""Similarity inside SQL: `FROM near('IMAGE_ID', k := 500)`, with SQL's own joins, filters and groups.

    SELECT CAST(p.timestamp AS DATE) AS day, count(*), avg(n.similarity)
    FROM near('9f2c…', k := 5000) n JOIN samples p USING (image_id)
    WHERE p.confidence < 0.5 AND p.camera = 7 GROUP BY day

`near` returns image_id and similarity (cosine, -1 to 1) of the k images most similar to an image or prediction, or to
the mean of several (a list). `near_text` does the same for a text, with an embedder of images and text. The neighbours
are found before the query runs, so the arguments must be constants or parameters. They are chosen among all images; the
query's conditions apply afterwards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embeddings.embedders import embedder as embedders
from embeddings.search.search import search
from lake import nesting
from lake.errors import BadInput
from lake.sql import connections, syntax_tree
from lake.sql.sandbox.results import Preparation

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import Lake

    Parameters = Sequence[Any] | Mapping[str, Any] | None
    Call = dict[str, Any]

DEFAULT_K = 100
MAX_K = 1_000_000
MAX_CALLS = 20
TABLE = "_near"
_ARGUMENTS = ("example", "k", "embedder")
_NAMES = re.compile(r"\bnear(_text)?\b", re.IGNORECASE)
_COLUMNS = pa.schema([("call", pa.string()), ("image_id", pa.string()), ("similarity", pa.float64())])
_CALL = "md5(concat_ws(' ', '{name}', CAST(example AS VARCHAR), CAST(k AS VARCHAR), embedder))"
# Lets a locked DuckDB, which has no vectors, select each call's rows from the neighbours that were found beforehand.
MACROS = {
    name: f"CREATE OR REPLACE TEMP MACRO {name}(example, k := {DEFAULT_K}, embedder := NULL) AS TABLE "
    f"SELECT n.image_id, n.similarity FROM {TABLE} n WHERE n.call = {_CALL.format(name=name)}"
    for name in ("near", "near_text")
}


def query(lake: Lake, text: str, parameters: Parameters = None) -> pa.Table:
    """The result of a query that may call near() and near_text(). Raises BadInput as `preparation` says."""
    prepared = preparation(lake, text, parameters)
    if prepared is None:
        return connections.query(lake, text, parameters)
    tables, macros = prepared.make(syntax_tree.table_calls(_parsed(text), prepared.names), lambda: None)
    return connections.query(lake, text, parameters, tables, macros)


def preparation(
    lake: Lake, text: str, parameters: Parameters = None, model: Callable[[str], Embedder] | None = None
) -> Preparation | None:
    """What a pool of `lake.sql.sandbox` needs to run a query that calls near() or near_text(); None for others.

    `model` returns the loaded embedder of a name, for callers that query often. The query raises BadInput if an
    argument is not a constant, for an unknown example, a k out of range, or too many calls.
    """
    if not _NAMES.search(text):
        return None
    values = (
        parameters
        if isinstance(parameters, Mapping)
        else {str(number): value for number, value in enumerate(parameters or (), 1)}
    )

    def make(calls: list[Call], go_on: Callable[[], None]) -> tuple[dict[str, pa.Table], dict[str, str]]:
        if not calls:
            return {}, {}
        searches = dict(_search_arguments(call["function_name"], call["arguments"], values) for call in calls)
        if len(searches) > MAX_CALLS:
            raise BadInput(f"the query searches for {len(searches)} examples; at most {MAX_CALLS} are allowed")
        parts = [_COLUMNS.empty_table()]
        for call, arguments in searches.items():
            go_on()
            if "text" in arguments and model is not None:
                arguments["model"] = model(embedders.record_of(lake, arguments["embedder"]).name)
            rows = search(lake, **arguments, go_on=go_on)
            columns = [pa.repeat(pa.scalar(call), rows.num_rows), rows["image_id"], rows["similarity"]]
            parts.append(pa.table(columns, schema=_COLUMNS))
        go_on()
        return {TABLE: pa.concat_tables(parts)}, MACROS

    return Preparation(tuple(MACROS), make)


def _parsed(text: str) -> Any:
    import duckdb

    nesting.check(text)
    with duckdb.connect() as connection:
        return syntax_tree.parsed(connection, text)


def _search_arguments(
    name: str, arguments: list[dict[str, Any]], parameters: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The key by which the macro selects the call's rows, and the arguments of `search`."""
    values: dict[str, Any] = {"k": DEFAULT_K, "embedder": None}
    for position, argument in enumerate(arguments):
        key = argument["name"].lower() or (_ARGUMENTS[position] if position < len(_ARGUMENTS) else "")
        if key not in _ARGUMENTS:
            raise BadInput(f"{name}() takes an example, k and embedder, not {argument['name'] or 'a fourth argument'}")
        values[key] = _value(name, argument["expression"], parameters)
    example, k, embedder = values.get("example"), values["k"], values["embedder"]
    several = isinstance(example, list | tuple)
    if not example or not all(isinstance(part, str) for part in (example if several else [example])):
        wanted = "a text" if name == "near_text" else "an image_id or prediction_id, or a list of them"
        raise BadInput(f"{name}() needs {wanted}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise BadInput(f"{name}(): k is {k!r}; it must be from 1 to {MAX_K:,}")
    if embedder is not None and not isinstance(embedder, str):
        raise BadInput(f"{name}(): embedder is {embedder!r}; give its name")
    if name == "near_text" and several:
        raise BadInput("near_text() takes one text, not a list")
    written = f"[{', '.join(example)}]" if several else example
    words = [name, written, str(k), *([embedder] if embedder is not None else [])]
    call = hashlib.md5(" ".join(words).encode(), usedforsecurity=False).hexdigest()
    query = {"text": example} if name == "near_text" else {"ids": [*example] if several else [example]}
    return call, {**query, "k": k, "embedder": embedder}


def _value(name: str, expression: dict[str, Any], parameters: Mapping[str, Any]) -> Any:
    kind = expression.get("type")
    if kind == "VALUE_PARAMETER":
        identifier = expression["identifier"]
        if identifier not in parameters:
            raise BadInput(f"{name}(): no value for the parameter ${identifier}")
        return parameters[identifier]
    if kind == "VALUE_CONSTANT":
        literal = expression.get("literal") or {}
        text = str(literal.get("text"))
        return {"STRING": str, "INTEGER": int}.get(literal.get("kind", ""), lambda _: None)(text)
    if expression.get("function_name") == "list_value":
        return [_value(name, item["expression"], parameters) for item in expression["arguments"]]
    raise BadInput(f"{name}() takes constants and parameters only: its neighbours are found before the query runs")
