"""Results of every type can be printed and written: as text, JSON, CSV and Parquet, with all their digits."""

import contextlib
import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.sql import tables
from lake.sql.sandbox import pool

MANY_TYPES = """
SELECT INTERVAL '14 months 3 days 4.5 seconds' AS span, 'ab'::BLOB AS bytes, '101'::BIT AS bits,
       340282366920938463463374607431768211455::UHUGEINT AS huge, 12345678901234567890123::VARINT AS endless,
       18446744073709551615::UBIGINT AS most, -9007199254740993 AS least, sum(9007199254740993) AS total,
       9007199254740991 AS held, 0.10::DECIMAL(10, 2) AS tenth, 12345678901234567.25::DECIMAL(20, 2) AS money,
       [INTERVAL 1 DAY] AS spans, ['101'::BIT] AS lists, {'a': 9007199254740993} AS nested, 'x'::ENUM('x') AS enum,
       NULL AS nothing, TIME '10:00:00' AS clock, true AS yes, DATE '2026-01-15' AS day
"""
VALUES = {
    "span": "P14M3DT4.5S",
    "bytes": "6162",
    "bits": "101",
    "huge": "340282366920938463463374607431768211455",
    "endless": "12345678901234567890123",
    "most": "18446744073709551615",
    "least": "-9007199254740993",
    "total": "9007199254740993",
    "held": 9007199254740991,
    "tenth": 0.1,
    "money": "12345678901234567.25",
    "spans": ["P1D"],
    "lists": ["101"],
    "nested": {"a": "9007199254740993"},
    "enum": "x",
    "nothing": None,
    "clock": "10:00:00",
    "yes": True,
    "day": "2026-01-15",
}


def test_a_number_that_javascript_would_change_is_text_in_json(lk: OpenLake) -> None:
    assert json.loads(tables.render(lk.sql(MANY_TYPES), "json")) == [VALUES]


def test_the_sandbox_says_the_same(lk: OpenLake) -> None:
    with contextlib.closing(pool.shared(lk).open(MANY_TYPES, format="json")) as stream:
        assert json.loads(b"[" + b"".join(stream) + b"]") == [[*VALUES.values()]]


def test_csv_and_text_keep_every_digit(lk: OpenLake) -> None:
    (row,) = csv.DictReader(io.StringIO(tables.render(lk.sql(MANY_TYPES), "csv")))
    assert row["least"] == "-9007199254740993"
    assert (row["span"], row["bytes"], row["bits"], row["huge"]) == ("P14M3DT4.5S", "6162", "101", VALUES["huge"])
    assert (row["spans"], row["nothing"], row["yes"], row["money"]) == ('["P1D"]', "", "true", VALUES["money"])
    assert "18446744073709551615" in tables.text(lk.sql(MANY_TYPES))


def test_parquet_has_text_for_what_it_cannot_hold(lk: OpenLake, tmp_path: Path) -> None:
    tables.write(lk.sql(MANY_TYPES), tmp_path / "x.parquet", "parquet")
    (row,) = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert (row["span"], row["spans"], row["least"]) == ("P14M3DT4.5S", '["P1D"]', -9007199254740993)


def test_two_columns_of_one_name_are_written_where_the_format_has_them(lk: OpenLake, tmp_path: Path) -> None:
    doubled = lk.sql("SELECT 1 AS a, 2 AS a")
    assert tables.render(doubled, "csv") == "a,a\n1,2"
    for format in ("json", "parquet"):
        with pytest.raises(BadInput, match="two columns are called 'a'; rename one with AS"):
            tables.write(doubled, tmp_path / "x", format)


@pytest.mark.parametrize("format", ["table", "json", "csv"])
def test_a_time_beyond_pythons_is_named(lk: OpenLake, format: str) -> None:
    result = lk.sql("SELECT [t] AS late FROM (SELECT 'infinity'::TIMESTAMP AS t)")
    with pytest.raises(BadInput, match=r"column 'late' has a time outside .* CAST\(late AS VARCHAR\)"):
        tables.render(result, format)
