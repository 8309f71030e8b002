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
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embeddings.search import search
from lake import sql
from lake.errors import BadInput

if TYPE_CHECKING:
    from lake.store import Lake

NEIGHBOURS = 100
MOST_NEIGHBOURS = 1_000_000
TABLE = "_near"
_COLUMNS = pa.schema([("call", pa.string()), ("image_id", pa.string()), ("similarity", pa.float64())])
_CALL = "md5(concat_ws(' ', '{name}', CAST(example AS VARCHAR), CAST(k AS VARCHAR), embedder))"
# How a locked DuckDB, which has no vectors, knows the rows of each call among those found beforehand.
MACROS = tuple(
    f"CREATE OR REPLACE TEMP MACRO {name}(example, k := {NEIGHBOURS}, embedder := NULL) AS TABLE "
    f"SELECT found.image_id, found.similarity FROM {TABLE} found WHERE found.call = {_CALL.format(name=name)}"
    for name in ("near", "near_text")
)


def query(lake: Lake, text: str, parameters: Sequence[Any] | dict[str, Any] | None = None) -> pa.Table:
    """`lake.sql` with near() and near_text(). Raises BadInput as they do."""
    return sql.query(lake, text, parameters, tables(lake, text, parameters), MACROS)


def tables(lake: Lake, text: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> dict[str, pa.Table]:
    """What MACROS read: the neighbours of every example in the query. Empty when it has none.

    Raises BadInput for an argument that is no constant, an unknown example, or a k out of range.
    """
    import duckdb

    if "near" not in text.lower():
        return {}
    with duckdb.connect() as connection:
        said = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchone()
    assert said is not None
    tree = json.loads(said[0])
    if tree.get("error"):  # the query itself will say so, with the place
        return {}
    given = parameters if isinstance(parameters, Mapping) else {str(n): v for n, v in enumerate(parameters or (), 1)}
    calls = {}
    for name, arguments in _calls(tree):
        call, how = _asked(name, arguments, given)
        calls[call] = how
    parts = []
    for call, how in calls.items():
        found = search(lake, **how)
        columns = [pa.repeat(pa.scalar(call), found.num_rows), found["image_id"], found["similarity"]]
        parts.append(pa.table(columns, schema=_COLUMNS))
    return {TABLE: pa.concat_tables([_COLUMNS.empty_table(), *parts])} if calls else {}


def _calls(tree: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every call of near and near_text in a FROM: its name and arguments."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if one.get("type") == "TABLE_FUNCTION":
                function = one["function"]
                if function["function_name"].lower() in ("near", "near_text"):
                    yield function["function_name"].lower(), function["arguments"]
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


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
