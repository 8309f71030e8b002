"""Writes Arrow tables as JSON values, aligned text, CSV or Parquet.

JSON has no NaN or infinity (null replaces them) and no times (ISO 8601, UTC). JavaScript reads its numbers as floats
of 64 bits, so a number that one of them cannot hold is the text of its digits.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake import spreadsheets
from lake.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

# JavaScript's Number.MAX_SAFE_INTEGER: from the next whole number on, a float of 64 bits skips some.
MOST_WHOLE = 2**53 - 1


def rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as values that JSON has. Raises BadInput if two columns have the same name."""
    check_names(table)
    names = table.column_names
    columns = [[plain(v) for v in values(table.column(i), names[i])] for i in range(len(names))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def check_names(table: pa.Table) -> None:
    """Raises BadInput if two columns have the same name."""
    names = table.column_names
    repeated = next((n for n in names if names.count(n) > 1), None)
    if repeated is not None:
        raise BadInput(f"two columns are called {repeated!r}; rename one with AS")


def values(column: pa.ChunkedArray | pa.Array, name: str) -> list[Any]:
    """The column's values. Raises BadInput if one is a time that Python has not, such as the year 12000 or infinity."""
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError) as error:
        raise BadInput(
            f"the column {name!r} has a time outside the years 1 to 9999; write it as text: CAST({name} AS VARCHAR)"
        ) from error


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers that JavaScript would change are text, spans of time ISO 8601 (`P14M3DT4.5S`)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= MOST_WHOLE else str(value)
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if _is_span(value):
        return _span(value)
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dt.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(dt.UTC)
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, decimal.Decimal):  # DuckDB's type for sums of integers
        if value.as_tuple().exponent == 0:
            return plain(int(value))
        return float(value) if decimal.Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, str | bool) or value is None:
        return value
    return str(value)


def _is_span(value: Any) -> bool:
    return hasattr(value, "months") and hasattr(value, "nanoseconds")  # Arrow's MonthDayNano, which is a tuple, too


def _span(value: Any) -> str:
    """`P14M3DT4.5S`: months, days and seconds, each with its sign, because none of them is a multiple of another."""
    parts = [f"{value.months}M" if value.months else "", f"{value.days}D" if value.days else ""]
    seconds = decimal.Decimal(value.nanoseconds) / 10**9
    parts += [f"T{seconds.normalize():f}S"] if seconds else []
    return "P" + ("".join(parts) or "T0S")


def render(table: pa.Table, format: str) -> str:
    """The table as text: `table`, `json` or `csv`."""
    if format == "json":
        return json.dumps(rows(table), ensure_ascii=False)
    if format == "csv":
        return _csv(table)
    return text(table)


def write(table: pa.Table, path: Path, format: str) -> None:
    """Writes a file; it appears complete or not at all."""
    unfinished = path.with_name(path.name + ".part")
    try:
        if format == "parquet":
            import pyarrow.parquet as pq

            pq.write_table(_storable(table), unfinished)
        else:
            unfinished.write_text(render(table, format) + "\n", encoding="utf-8")
        unfinished.rename(path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def text(table: pa.Table, widest: int = 48) -> str:
    """Aligned columns for a terminal, numbers to the right, at most 1,000 rows; long ids are cut."""
    shown = table.slice(0, 1_000)
    names = table.column_names
    columns = [[_cell(v, widest) for v in values(shown.column(i), names[i])] for i in range(len(names))]
    numeric = [_is_number(table.schema.field(i).type) for i in range(len(names))]
    widths = [max([len(n), *map(len, c)]) for n, c in zip(names, columns, strict=True)]

    def line(cells: list[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True))
        return "  ".join(padded).rstrip()

    lines = [line(names), line(["─" * w for w in widths])]
    lines += [line([c[i] for c in columns]) for i in range(shown.num_rows)]
    rest = table.num_rows - shown.num_rows
    lines.append(f"({table.num_rows:,} rows{', the first 1,000 shown' if rest else ''})")
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text with a mark for each character that a terminal would obey instead of showing it."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _cell(value: Any, widest: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, dt.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    value = value if isinstance(value, int) else plain(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = printable(text)
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text):
        return text[:12] + "…"
    return text if len(text) <= widest else text[: widest - 1] + "…"


def _is_number(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _csv(table: pa.Table) -> str:
    """CSV has one form of text and no nesting: what is not a number or a time becomes text, as JSON has it.

    Text that begins like a formula is marked as text. Two columns may have one name.
    """
    import csv
    import io

    import polars as pl
    import pyarrow as pa

    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(map(spreadsheets.cell, table.column_names))
    columns: list[Any] = []
    for column, field in zip(table.columns, table.schema, strict=True):
        if not (_is_number(field.type) or pa.types.is_boolean(field.type) or pa.types.is_temporal(field.type)) or (
            pa.types.is_interval(field.type)
        ):
            column = pa.array([_csv_cell(value) for value in values(column, field.name)], pa.string())
        columns.append(column)
    frame = pl.from_arrow(pa.table(columns, [str(i) for i in range(len(columns))]))
    assert isinstance(frame, pl.DataFrame)
    return (header.getvalue() + frame.write_csv(include_header=False)).rstrip("\n")


def _csv_cell(value: Any) -> str | None:
    if isinstance(value, str):
        return spreadsheets.cell(value)
    value = plain(value)
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)


def _storable(table: pa.Table) -> pa.Table:
    """Parquet has no spans of time: they become text. Raises BadInput if two columns have the same name."""
    import pyarrow as pa

    check_names(table)
    for i, field in enumerate(table.schema):
        if "interval" in str(field.type):
            texts = [_csv_cell(value) for value in values(table.column(i), field.name)]
            table = table.set_column(i, field.name, pa.array(texts, pa.string()))
    return table
