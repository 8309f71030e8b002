"""Rows of CSV, JSON Lines and Parquet files as mappings, each with its place in the file."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lake import spreadsheets
from lake.errors import BadInput

# A row may carry masks as RLE text: far beyond csv's 128 KiB.
_CSV_FIELD_BYTES = 64 << 20


def _encoding(path: Path) -> str:
    """UTF-16 if the file starts with its byte order mark (spreadsheets' "Unicode text"), else UTF-8."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    csv.field_size_limit(_CSV_FIELD_BYTES)
    with path.open(newline="", encoding=_encoding(path), errors="replace") as file:
        lines = _Lines(line.replace("\0", "�") for line in file)
        reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header: list[str] | None = None
        while True:
            lines.read.clear()
            try:
                values = next(reader, None)
            except csv.Error as error:
                lines.put_back()
                yield f"{path}:{lines.number}", f"broken CSV: {error}"
                continue
            if values is None:
                break
            values = [*map(spreadsheets.text, values)]
            if header is None:
                header = values
            elif len(values) > len(header):
                yield f"{path}:{lines.number}", "more values than columns"
            elif values:
                yield f"{path}:{lines.number}", dict(zip(header, values, strict=False))
        if not header:
            raise BadInput(f"{path} has no header line")


class _Lines:
    """The lines of a file. Lines can be put back: otherwise a stray quote would consume the rows after it."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._pending: deque[str] = deque()
        self.read: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._pending.popleft() if self._pending else next(self._lines)
        self.read.append(line)
        self.number += 1
        return line

    def put_back(self) -> None:
        """Puts back every line that was read since `read` was cleared, except the first."""
        rest = self.read[1:]
        self._pending.extendleft(reversed(rest))
        self.number -= len(rest)


def json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    with path.open(encoding=_encoding(path), errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            source = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
                yield source, f"broken JSON: {error}"
                continue
            yield source, row if isinstance(row, dict) else "the line is not a JSON object"


def parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=2_048):
                for row in as_dicts(batch):
                    number += 1
                    yield f"{path}:{number}", row
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path} is not a readable Parquet file: {error}") from error


def as_dicts(batch: Any) -> Iterator[Mapping[str, Any] | str]:
    """Rows as Python values; for a row with a value that Python cannot hold (year 10000), the reason."""
    import pyarrow as pa

    # Arrow converts nanoseconds only if pandas is installed.
    fields = [
        f.with_type(pa.timestamp("us", f.type.tz)) if pa.types.is_timestamp(f.type) and f.type.unit == "ns" else f
        for f in batch.schema
    ]
    batch = batch.cast(pa.schema(fields), safe=False)
    try:
        yield from batch.to_pylist(maps_as_pydicts="lossy")
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist(maps_as_pydicts="lossy")
            except (ValueError, OverflowError) as error:
                yield f"a value cannot be read: {error}"
