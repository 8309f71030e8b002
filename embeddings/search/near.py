"""Similarity inside SQL: `FROM near('IMAGE_ID', k := 500)`, with SQL's own joins, filters and groups around it.

    SELECT CAST(p.timestamp AS DATE) AS day, count(*), avg(n.similarity)
    FROM near('9f2c…', k := 5000) n JOIN predictions p USING (image_id)
    WHERE p.confidence < 0.5 AND p.camera = 7 GROUP BY day

`near` gives image_id and similarity (cosine, -1 to 1) of the k images most like an image or answer, or like the mean
of several (a list); `near_text` the same for words, with an embedder that knows them. The neighbours are found before
the query runs: their arguments are constants or parameters. They are chosen among all images; conditions come after.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embeddings.embedders import embedder as embedders
from embeddings.search.search import search
from lake.errors import BadInput
from lake.sql import connections, syntax_tree

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import Lake

    Parameters = Sequence[Any] | Mapping[str, Any] | None

NEIGHBOURS = 100
MOST_NEIGHBOURS = 1_000_000
MOST_CALLS = 20
TABLE = "_near"
_WRITTEN = re.compile(r"\bnear(_text)?\b", re.IGNORECASE)
_COLUMNS = pa.schema([("call", pa.string()), ("image_id", pa.string()), ("similarity", pa.float64())])
_CALL = "md5(concat_ws(' ', '{name}', CAST(example AS VARCHAR), CAST(k AS VARCHAR), embedder))"
# How a locked DuckDB, which has no vectors, knows the rows of each call among those found beforehand.
MACROS = {
    name: f"CREATE OR REPLACE TEMP MACRO {name}(example, k := {NEIGHBOURS}, embedder := NULL) AS TABLE "
    f"SELECT found.image_id, found.similarity FROM {TABLE} found WHERE found.call = {_CALL.format(name=name)}"
    for name in ("near", "near_text")
}


def query(lake: Lake, text: str, parameters: Parameters = None) -> pa.Table:
    """`lake.sql` with near() and near_text(). Raises BadInput as they do."""
    return connections.query(lake, text, parameters, **extras(lake, text, parameters))


def extras(
    lake: Lake,
    text: str,
    parameters: Parameters = None,
    *,
    parse: Callable[[str], Any] | None = None,
    model: Callable[[str], Embedder] | None = None,
) -> dict[str, Any]:
    """What a query needs to call near() and near_text(): `tables` and `macros`, as `lake.sql.query` and
    `lake.sql.sandbox` take them. Empty when it calls neither.

    `parse` gives the query's tree as json_serialize_sql does, for texts of strangers; `model` the embedder of a name,
    loaded, for who asks often. Raises BadInput for an argument that is no constant, an unknown example, a k out of
    range, or too many calls.
    """
    if not _WRITTEN.search(text):
        return {}
    tree = (parse or _parsed)(text)
    if tree.get("error"):  # the query itself will say so, with the place
        return {}
    given = parameters if isinstance(parameters, Mapping) else {str(n): v for n, v in enumerate(parameters or (), 1)}
    calls = dict(_asked(name, arguments, given) for name, arguments in _calls(tree))
    if len(calls) > MOST_CALLS:
        raise BadInput(f"the query looks for neighbours of {len(calls)} examples; {MOST_CALLS} are the most")
    parts = [_COLUMNS.empty_table()]
    for call, how in calls.items():
        if "text" in how and model is not None:
            how["model"] = model(embedders.record_of(lake, how["embedder"]).name)
        found = search(lake, **how)
        columns = [pa.repeat(pa.scalar(call), found.num_rows), found["image_id"], found["similarity"]]
        parts.append(pa.table(columns, schema=_COLUMNS))
    return {"tables": {TABLE: pa.concat_tables(parts)}, "macros": MACROS}


def _parsed(text: str) -> Any:
    import duckdb

    with duckdb.connect() as connection:
        return syntax_tree.parsed(connection, text)


def _calls(tree: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every call of near and near_text in a FROM: its name and arguments."""
    for node in syntax_tree.walk(tree):
        if node.get("type") == "TABLE_FUNCTION":
            function = node["function"]
            if function["function_name"].lower() in ("near", "near_text"):
                yield function["function_name"].lower(), function["arguments"]


def _asked(name: str, arguments: list[dict[str, Any]], parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A call as its macro names it, and what to search for."""
    names = ("example", "k", "embedder")
    said: dict[str, Any] = {"k": NEIGHBOURS, "embedder": None}
    for place, argument in enumerate(arguments):
        key = argument["name"].lower() or (names[place] if place < len(names) else "")
        if key not in names:
            raise BadInput(f"{name}() takes an example, k and embedder, not {argument['name'] or 'a fourth'}")
        said[key] = _value(name, argument["expression"], parameters)
    example, k, embedder = said.get("example"), said["k"], said["embedder"]
    several = isinstance(example, list | tuple)
    if not example or not all(isinstance(one, str) for one in (example if several else [example])):
        raise BadInput(
            f"{name}() wants {'words' if name == 'near_text' else 'an image_id or prediction_id, or a list'}"
        )
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST_NEIGHBOURS:
        raise BadInput(f"{name}(): k is {k!r}; it must be from 1 to {MOST_NEIGHBOURS:,}")
    if embedder is not None and not isinstance(embedder, str):
        raise BadInput(f"{name}(): embedder is {embedder!r}; give its name")
    if name == "near_text" and several:
        raise BadInput("near_text() takes one text")
    written = f"[{', '.join(example)}]" if several else example
    words = [name, written, str(k), *([embedder] if embedder is not None else [])]
    call = hashlib.md5(" ".join(words).encode(), usedforsecurity=False).hexdigest()
    what = {"text": example} if name == "near_text" else {"ids": [*example] if several else [example]}
    return call, {**what, "k": k, "embedder": embedder}


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
        return [_value(name, one["expression"], parameters) for one in expression["arguments"]]
    raise BadInput(f"{name}() takes constants and parameters: its neighbours are found before the query runs")
