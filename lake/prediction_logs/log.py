"""One prediction log: what the caller said about it, its columns, its rows, and what is odd in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.prediction_logs import prediction_rows, text_files
from lake.prediction_logs.columns import NAMES, LogColumns
from lake.prediction_logs.notes import LogNotes
from lake.prediction_logs.numbers import Numbers
from lake.prediction_logs.table_rows import (
    SEPARATORS,
    Row,
    csv_form,
    csv_rows,
    json_array,
    json_lines,
    parquet_rows,
)

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz")
# The columns of JSON and Parquet logs are those of so many rows; a later one must not contradict them.
LOOK_AHEAD = 1_000


def suffix(path: Path) -> str:
    """The suffix of a log, in lower case, with the one before `.gz`."""
    parts = [part.lower() for part in path.suffixes[-2:]]
    return "".join(parts) if parts[-1:] == [".gz"] else "".join(parts[-1:])


@dataclass(frozen=True)
class LogOptions:
    """What the caller says about a log; by default all is found out.

    `columns`: field -> its column, or None for a field that no column holds. `separator`: one character.
    `confidence_scale`: what confidences and scores are divided by: 100 for percentages.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    encoding: str | None = None
    separator: str | None = None
    confidence_scale: float = 1.0

    @staticmethod
    def parsed(
        map: Sequence[str] = (),
        truth: str | None = None,
        encoding: str | None = None,
        separator: str | None = None,
        confidence_scale: float | None = None,
    ) -> LogOptions:
        """From the words of a command line: FIELD=COLUMN, where COLUMN may be `none`. Raises BadInput."""
        columns: dict[str, str | None] = {}
        for said in [*map, *([f"truth={truth}"] if truth is not None else [])]:
            name, equals, column = said.partition("=")
            if not equals or not column or name not in NAMES:
                raise BadInput(f"--map {said!r:.80}: write FIELD=COLUMN, with a field of {', '.join(NAMES)}")
            if name in columns:
                raise BadInput(f"--map names two columns for {name}: {columns[name]} and {column}")
            if column != "none" and column in columns.values():
                raise BadInput(f"--map gives the column {column!r:.80} to two fields")
            columns[name] = None if column == "none" else column
        if encoding is not None:
            encoding = text_files.known_encoding(encoding)
        if separator is not None:
            names = {name: character for character, name in SEPARATORS.items()} | {"\\t": "\t"}
            separator = names.get(separator, separator)
            if len(separator) != 1 or separator in '"\r\n' or separator.isalnum():
                raise BadInput(
                    f"--separator is {separator!r:.80}; it must be one of {', '.join(names)}, or one character"
                )
        scale = 1.0 if confidence_scale is None else confidence_scale
        if not 0 < scale <= 1e9:
            raise BadInput(f"--confidence-scale is {scale:g}; it must be above 0, for example 100 for percentages")
        return LogOptions(columns, encoding, separator, scale)


class PredictionLog:
    """A log file. Making one reads its text once and its first rows. Raises BadInput for a file that is refused."""

    def __init__(self, path: Path, options: LogOptions, typed: Collection[str]) -> None:
        self.path = path
        self.options = options
        self.columns = LogColumns(typed, options.columns)
        self.notes = LogNotes()
        self._comma = False
        kind = suffix(path).removesuffix(".gz")
        is_csv = kind in (".csv", ".tsv")
        if options.separator is not None and not is_csv:
            raise BadInput(f"--separator is for CSV files, and {path} is none")
        if options.encoding is not None and kind == ".parquet":
            raise BadInput(f"--encoding is for text files, and {path} is a Parquet file")
        if is_csv:
            form = csv_form(path, options.encoding, options.separator)
            self._comma = form.separator != ","
            self._rows = csv_rows(path, form)
        elif kind == ".parquet":
            self._rows = parquet_rows(path)
        else:
            self._rows = (json_array if kind == ".json" else json_lines)(path, options.encoding)
        self._fixed = is_csv or kind == ".parquet"
        self._first = list(itertools.islice(self._rows, 1 if self._fixed else LOOK_AHEAD))
        for _, row in self._first:
            if not isinstance(row, str):
                self.columns.add(row)
        self.columns.check(str(path), (*prediction_rows.CONTENT, "mask"))

    def rows(self) -> Iterator[Row]:
        """The rows, each with its place, or with the reason why it cannot be read."""
        for source, row in itertools.chain(self._first, self._rows):
            try:
                if not isinstance(row, str):
                    self.columns.of(row)
            except BadInput as error:
                row = str(error)
            yield source, row

    def read_row(
        self, values: Mapping[str, Any], promoted: Mapping[str, pa.DataType], read_file: Callable[[str], bytes]
    ) -> prediction_rows.PredictionRow:
        """The checked row, as `prediction_rows.read_row`. A row with a truth and no prediction has no model."""
        numbers = Numbers(self.options.confidence_scale, comma=self._comma)
        row = prediction_rows.read_row(values, promoted, read_file, self.columns.fields, numbers)
        if not prediction_rows.has_content(row) and prediction_rows.has_prediction(row):
            if row.confidence is not None or not (row.truth is not None or "label" in self.options.columns):
                said = "a confidence" if row.confidence is not None else f"the model {row.model!r:.80}"
                raise BadInput(f"the row has {said} and no prediction: no label, scores, boxes or masks")
            row.model = row.model_version = row.task = None
        return row

    def lines(self) -> list[str]:
        """What a reader of the report should know: how the columns were read, and what is odd in them."""
        return [*self.columns.lines(), *self.notes.lines()]
