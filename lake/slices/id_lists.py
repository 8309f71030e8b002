"""Ids for a slice, from a list, from a CSV, or from the result of a query."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from lake.errors import BadInput
from lake.sql.sandbox.pool import Pool

if TYPE_CHECKING:
    from lake.storage.store import Lake


def listed(text: str, name: str) -> list[str]:
    """The ids in a list, or in the column image_id, prediction_id or id of a CSV. `name`: the file, for errors.

    Raises BadInput for a CSV without such a column.
    """
    header, _, rest = text.lstrip().partition("\n")
    separator = next((sign for sign in (",", ";", "\t") if sign in header), ",")
    columns = [cell.strip().lower() for cell in next(csv.reader([header.strip()], delimiter=separator), [])]
    for column in ("image_id", "prediction_id", "id"):
        if column in columns:
            rows = csv.reader(rest.splitlines(), delimiter=separator)
            place = columns.index(column)
            return [row[place].strip() for row in rows if len(row) > place and row[place].strip()]
    if len(columns) > 1:
        raise BadInput(f"{name} has no column image_id or prediction_id; its columns are {', '.join(columns):.200}")
    return [word.strip("\"'") for word in text.split()]


def queried(lake: Lake, query: str) -> list[str]:
    """The distinct values of the column image_id of a query's result. Raises as `Pool.run`, BadInput without it."""
    queries = Pool(lake)
    try:
        result = queries.run(query, max_rows=None)
    finally:
        queries.close()
    names = result.table.column_names
    if names.count("image_id") != 1:
        raise BadInput(f"--sql needs a result with one column image_id; its columns are {', '.join(names):.200}")
    if result.truncated:
        raise BadInput("the result of --sql is larger than 256 MiB; select only image_id")
    return [str(i) for i in dict.fromkeys(result.table["image_id"].to_pylist()) if i is not None]
