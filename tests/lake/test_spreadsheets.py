"""No text in a CSV file that lakeloop writes is a formula for a spreadsheet, and lakeloop reads the same text again."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import spreadsheets
from lake.formats import metadata
from lake.prediction_logs.table_rows import csv_rows
from lake.sql import tables

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", "-", "+49 170 1234567", "--1", "'=1+1"]
TEXTS = ["cat", "'", "'cat'", "", "a=b", " =1", "1-2", "ü"]
NUMBERS = ["-1.5", "+1", "1e-7", "-.5", "-2.", "0"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_marked_as_text(text: str) -> None:
    assert spreadsheets.cell(text) == f"'{text}"


@pytest.mark.parametrize("text", [*TEXTS, *NUMBERS])
def test_other_text_and_numbers_stay_as_they_are(text: str) -> None:
    assert spreadsheets.cell(text) == text
    assert spreadsheets.text(text) == text


@given(st.text(st.sampled_from("'=+-@\t\r\n1.e a"), max_size=6))
def test_the_text_of_a_cell_is_what_was_written(text: str) -> None:
    cell = spreadsheets.cell(text)
    assert spreadsheets.text(cell) == text
    assert cell == text or cell[0] == "'"


def cells(written: str) -> list[list[str]]:
    return [*csv.reader(io.StringIO(written, newline=""))]


def test_a_querys_result_as_csv(tmp_path: Path) -> None:
    """Its names, which may come from a link, its text, its lists; a view of strings and a dictionary, too."""
    every = [*FORMULAS, *TEXTS]
    table = pa.table({
        "=name": every, "number": [-1.5] * len(every), "list": [["=1"]] * len(every),
        "view": pa.array(every, pa.string_view()), "word": pa.array(every).dictionary_encode(),
    })  # fmt: skip
    header, *rows = cells(tables.render(table, "csv"))
    assert header[:2] == ["'=name", "number"]
    wanted = [spreadsheets.cell(text) for text in every]
    assert [row[0] for row in rows] == [row[3] for row in rows] == [row[4] for row in rows] == wanted
    assert {(row[1], row[2]) for row in rows} == {("-1.5", '["=1"]')}
    tables.write(table, tmp_path / "result.csv", "csv")
    read = [row for _, row in csv_rows(tmp_path / "result.csv") if not isinstance(row, str)]
    assert [row["=name"] for row in read] == every


def test_a_line_of_an_exports_metadata() -> None:
    values = [*FORMULAS, *NUMBERS, 7]
    assert cells(metadata._csv_line(values).decode()) == [[spreadsheets.cell(str(value)) for value in values]]
