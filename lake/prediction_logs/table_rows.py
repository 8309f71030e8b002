"""Rows of CSV, JSON Lines, JSON and Parquet files as mappings, each with its place in the file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from lake import spreadsheets
from lake.errors import BadInput
from lake.prediction_logs import text_files
from lake.prediction_logs.columns import understood

Row = tuple[str, "Mapping[str, Any] | str"]
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_NUL = "the line has a NUL character; if the file is UTF-16 without a byte order mark: --encoding utf-16-le"
_JSON_CHARACTERS = 1 << 20


class CsvForm(NamedTuple):
    """How a CSV file is written. `spaced`: a space follows each separator."""

    encoding: str
    separator: str
    spaced: bool = False


def csv_form(path: Path, encoding: str | None = None, separator: str | None = None) -> CsvForm:
    """The form of a CSV file, of which the whole text is checked. Raises BadInput.

    The separator is the one that splits the header into most columns of known names, or else into most columns; Excel's
    first line `sep=;` says it.
    """
    name = text_files.checked(path, encoding)
    with text_files.opened(path, name, newline="") as file:
        head = file.readline(text_files.CHUNK).lstrip("\ufeff")
    if separator is None:
        separator = _separator_line(head) or _found_separator(path, head)
    columns = _split(head, separator)[1:]
    return CsvForm(name, separator, bool(columns) and all(column.startswith(" ") for column in columns))


def _found_separator(path: Path, head: str) -> str:
    columns = {separator: _split(head, separator) for separator in SEPARATORS}
    rank = {s: (sum(map(understood, names)), len(names)) for s, names in columns.items()}
    first, second = sorted(rank, key=lambda s: rank[s], reverse=True)[:2]
    if len(columns[first]) > 1 and rank[first] == rank[second]:
        raise BadInput(
            f"{path}: {SEPARATORS[first]} or {SEPARATORS[second]} may separate the columns of the header "
            f"{head.strip()[:200]!r}; name it: --separator {SEPARATORS[first]}"
        )
    return first if len(columns[first]) > 1 else ","


def _split(head: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(head), delimiter=separator), [])
    except csv.Error:
        return []


def csv_rows(path: Path, form: CsvForm | None = None) -> Iterator[Row]:
    """The rows of a CSV file. Raises BadInput if it has no header, or its text cannot be read."""
    form = form or csv_form(path)
    csv.field_size_limit(text_files.MOST_ROW)
    with text_files.opened(path, form.encoding, newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=form.separator, skipinitialspace=form.spaced, strict=True)
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
                if lines.number > 1 or _separator_line(lines.read[0]) is None:
                    header = _header(path, values)
            elif any("\0" in line for line in lines.read):
                yield f"{path}:{lines.number}", _NUL
            elif len(values) > len(header):
                yield f"{path}:{lines.number}", "more values than columns"
            elif 0 < len(values) < len(header):
                yield f"{path}:{lines.number}", f"the line has {len(values)} of {len(header)} values"
            elif values:
                yield f"{path}:{lines.number}", dict(zip(header, values, strict=True))
        if not header:
            raise BadInput(f"{path} has no header line")


def _separator_line(line: str) -> str | None:
    text = line.lstrip("\ufeff").strip("\r\n").strip('"')
    return text[4] if len(text) == 5 and text.lower().startswith("sep=") else None


def _header(path: Path, values: list[str]) -> list[str]:
    """The columns' names. Raises BadInput if one is there twice; those without a name get their number."""
    header = [value.lstrip("\ufeff") if place == 0 else value for place, value in enumerate(values)]
    if any("\0" in name for name in header):
        raise BadInput(f"{path}:1: {_NUL}")
    unnamed = [place for place, name in enumerate(header) if not name.strip()]
    for place in unnamed[1:]:
        header[place] = f"column {place + 1}"
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BadInput(f"{path} has the column {twice[0]!r:.80} twice; rename one of them")
    return header


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


def json_lines(path: Path, encoding: str | None = None) -> Iterator[Row]:
    with text_files.opened(path, text_files.checked(path, encoding)) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.lstrip("\ufeff")
            if not line.strip():
                continue
            source = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
                yield source, f"broken JSON: {error}"
                continue
            yield source, row if isinstance(row, dict) else "the line is not a JSON object"


def holds_json_rows(path: Path) -> bool:
    """Whether a file is a JSON array of objects, or of nothing, by its first characters."""
    return re.match(r"\s*\[\s*[{\]]", text_files.beginning(path)) is not None


def holds_log_rows(path: Path) -> bool:
    """Whether a file is a JSON array whose first object names its image as the lake does."""
    return re.match(r'\s*\[\s*\{[^{}]*?"image_id"\s*:\s*"[0-9a-fA-F]{64}"', text_files.beginning(path)) is not None


def json_array(path: Path, encoding: str | None = None) -> Iterator[Row]:
    """The objects of a JSON array, one at a time; a place is the number of the row. Ends at the first broken one."""
    with text_files.opened(path, text_files.checked(path, encoding, lines=False)) as file:
        array = _Array(file)
        number = 0
        try:
            array.expect("[")
            while not (number == 0 and array.next() == "]"):
                number += 1
                row = array.value()
                yield f"{path}:{number}", row if isinstance(row, dict) else "the row is not a JSON object"
                if array.next() != ",":
                    break
                array.expect(",")
            array.expect("]")
            if array.next():
                raise ValueError("more text after the array")
        except (ValueError, RecursionError) as error:
            reason = (
                f"broken JSON: {error}; the rows from here on were not read" if number else f"no JSON array: {error}"
            )
            yield f"{path}:{max(number, 1)}", reason


class _Array:
    """The text of a JSON array, of which no more is in memory than a row needs."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            rest = self._text[self._at : self._at + 64].lstrip(" \t\r\n\ufeff")
            if rest:
                return rest[0]
            self._at = min(self._at + 64, len(self._text))
            if self._at == len(self._text) and not self._read():
                return ""

    def expect(self, character: str) -> None:
        if self.next() != character:
            raise ValueError(f"{character!r} expected, not {self.next()!r}")
        self._at = self._text.index(character, self._at) + 1

    def value(self) -> Any:
        """The value that begins here. Raises ValueError if there is none."""
        first = self.next()
        self._at = self._text.index(first, self._at) if first else self._at
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            except ValueError:
                if self._ended or len(self._text) - self._at > text_files.MOST_ROW:
                    raise
            self._read()

    def _read(self) -> bool:
        """Reads as much again as is left, so that a long row is tried few times."""
        rest = self._text[self._at :]
        more = self._file.read(max(_JSON_CHARACTERS, len(rest)))
        self._ended = not more
        self._text, self._at = rest + more, 0
        return bool(more)


def parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise BadInput(f"{path} has the column {twice[0]!r:.80} twice; rename one of them")
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
