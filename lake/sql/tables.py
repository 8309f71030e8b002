"""Writes Arrow tables as JSON values, aligned text, CSV or Parquet.

JSON has no NaN or infinity (null replaces them) and no times (ISO 8601, UTC).
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


def rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as values that JSON has. Raises BadInput if two columns have the same name."""
    names = table.column_names
    repeated = next((n for n in names if names.count(n) > 1), None)
    if repeated is not None:
        raise BadInput(f"two columns are called {repeated!r}; rename one with AS")
    return [{k: plain(v) for k, v in row.items()} for row in table.to_pylist()]


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
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
        whole = value == value.to_integral_value() and value.as_tuple().exponent == 0
        return int(value) if whole else float(value)
    if isinstance(value, str | int | bool) or value is None:
        return value
    return str(value)


def render(table: pa.Table, format: str) -> str:
    """The table as text: `table`, `json` or `csv`."""
    if format == "json":
        return json.dumps(rows(table), ensure_ascii=False)
    if format == "csv":
        import polars as pl

        frame = pl.from_arrow(_flat(table))
        assert isinstance(frame, pl.DataFrame)
        return frame.rename(spreadsheets.cell).write_csv().rstrip("\n")
    return text(table)


def write(table: pa.Table, path: Path, format: str) -> None:
    """Writes a file; it appears complete or not at all."""
    unfinished = path.with_name(path.name + ".part")
    try:
        if format == "parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, unfinished)
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
    columns = [[_cell(v.as_py(), widest) for v in shown.column(i)] for i in range(len(names))]
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
    text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)
    text = printable(text)
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text):
        return text[:12] + "…"
    return text if len(text) <= widest else text[: widest - 1] + "…"


def _is_text(type_: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_number(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _flat(table: pa.Table) -> pa.Table:
    """CSV has no nesting: lists and structs become JSON text. Text that begins like a formula is marked as text."""
    import pyarrow as pa

    for i, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [
                None if v is None else json.dumps(plain(v), ensure_ascii=False) for v in table.column(i).to_pylist()
            ]
        elif _is_text(field.type):
            texts = [None if v is None else spreadsheets.cell(v) for v in table.column(i).to_pylist()]
        else:
            continue
        table = table.set_column(i, field.name, pa.array(texts, pa.string()))
    return table
