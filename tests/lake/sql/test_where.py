"""A filter passes the same rows in Lance and in DuckDB, nulls included."""

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake import open_lake
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.sql import where
from tests.conftest import MakeLake
from tests.lake.prediction_rows import add

COLUMNS = {"n": "int", "heat": "float", "Camera": "string", "order": "int"}
LABELS = [None, "", "a", "b", "B", "it's", "a%", "é"]
NUMBERS = [None, -5, -1, 0, 1, 2, 2**53 + 1, -(2**63), 2**63 - 1]
FLOATS = [None, 0.0, 0.1, 0.25, 0.5, 1.0, 0.30000000000000004]


@pytest.fixture(scope="module")
def lk(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """Every label, number and float beside every kind of other, nulls among them; 130 rows."""
    lake = open_lake.create(str(tmp_path_factory.mktemp("where") / "lake"), columns=COLUMNS)
    rows: list[dict[str, Any]] = []
    for i in range(130):
        rows.append({
            "label": LABELS[i % len(LABELS)], "n": NUMBERS[i % len(NUMBERS)], "heat": FLOATS[i % 5],
            "confidence": FLOATS[i % len(FLOATS)], "Camera": LABELS[i // 3 % len(LABELS)], "order": NUMBERS[i // 2 % 6],
        })  # fmt: skip
    add(lake, rows[:70])
    add(lake, rows[70:])
    return lake


def passing(lk: OpenLake, text: str) -> tuple[set[str], set[str] | None]:
    """prediction_ids that pass in DuckDB; and in Lance, or None if Lance does not evaluate it."""
    checked = where.check(lk, text)
    duck = lk.sql(f"SELECT prediction_id FROM samples WHERE ({text}\n)")["prediction_id"].to_pylist()
    lance = None
    if checked.lance is not None:
        lance = set(lk.scan("samples", ["prediction_id"], checked.lance)["prediction_id"].to_pylist())
    return set(duck), lance


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


WORDS = st.sampled_from([v for v in LABELS if v is not None]).map(text)
WHOLE = st.sampled_from([str(v) for v in NUMBERS if v is not None and v > -(2**63)] + ["9223372036854775808"])
DECIMAL = st.sampled_from(
    [str(v) for v in FLOATS if v is not None] + ["0", "1", "-0.0", "1e-3", "0.1000000000000000000001"]
)
LITERALS = {"label": WORDS, "CAMERA": WORDS, "n": WHOLE, '"order"': WHOLE, "confidence": DECIMAL, "heat": DECIMAL}
COMPARISONS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])


@st.composite
def leaves(draw: st.DrawFn) -> str:
    column = draw(st.sampled_from(list(LITERALS)))
    values = draw(st.lists(LITERALS[column], min_size=2, max_size=4))
    kind = draw(st.sampled_from(["compare", "flipped", "in", "between", "null"]))
    no = draw(st.sampled_from(["", "NOT "]))
    if kind == "compare":
        return f"{column} {draw(COMPARISONS)} {values[0]}"
    if kind == "flipped":
        return f"{values[0]} {draw(COMPARISONS)} {column}"
    if kind == "in":
        null = draw(st.sampled_from(["", "", "", ", NULL"]))
        return f"{column} {no}IN ({', '.join(values)}{null})"
    if kind == "between":
        return f"{column} {no}BETWEEN {values[0]} AND {values[1]}"
    return f"{column} IS {no}NULL"


FILTERS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda f: f"NOT ({f})"),
    ),
    max_leaves=5,
)


def test_lance_passes_exactly_the_rows_duckdb_passes_and_evaluates_most_filters(lk: OpenLake) -> None:
    """With three values of truth: NOT (n > 1) passes no row whose n is null, in both."""
    evaluated_by = {"lance": 0, "duckdb": 0}

    @given(FILTERS)
    @settings(max_examples=100)
    def check(filter: str) -> None:
        duck, lance = passing(lk, filter)
        evaluated_by["duckdb" if lance is None else "lance"] += 1
        assert lance is None or lance == duck

    check()
    assert evaluated_by["lance"] > 4 * evaluated_by["duckdb"] > 0


@pytest.mark.parametrize(
    ("filter", "lance"),
    [
        ("label = 'cat'", "(label = 'cat')"),
        ("'cat' = LABEL", "(label = 'cat')"),
        ("label IN ('a', 'b')", "((label = 'a') OR (label = 'b'))"),
        ("0.5 > confidence", "(confidence < 0.5)"),
        ("n BETWEEN 1 AND 2", "((n >= 1) AND (n <= 2))"),
        ("label IS NOT NULL AND n = 1", "((label IS NOT NULL) AND (n = 1))"),
        ("label = 'a' -- only", "(label = 'a')"),
    ],
)
def test_a_filter_that_means_the_same_in_both_goes_to_lance(lk: OpenLake, filter: str, lance: str) -> None:
    assert where.check(lk, filter).lance == lance


@pytest.mark.parametrize(
    "filter",
    [
        "label LIKE 'a%'",
        "lower(label) = 'b'",
        "n + 1 = 2",
        "n > 0.5",
        "label = Camera",
        "label IN ('a', NULL)",
        "label IS DISTINCT FROM 'a'",
        "n > 9223372036854775807000",
        "samples.n = 1",
        "image_id IN (SELECT image_id FROM labels_current)",
        "true",
        "len(scores) > 0",
        "timestamp > '2024-01-01'",
        "CASE WHEN n = 1 THEN true ELSE false END",
    ],
)
def test_every_other_filter_goes_to_duckdb(lk: OpenLake, filter: str) -> None:
    checked = where.check(lk, filter)
    assert checked.lance is None
    rows = lk.scan("samples", ["prediction_id"])
    rows = lk.dataset("samples").scanner(columns=["prediction_id"], with_row_id=True).to_table()
    names = dict(zip(rows["_rowid"].to_pylist(), rows["prediction_id"].to_pylist(), strict=True))
    assert rows.num_rows == len(names)
    assert {names[i] for i in where.row_ids(lk, checked)} == passing(lk, filter)[0]


@pytest.mark.parametrize(
    "filter",
    [
        "",
        "n = 1; DROP VIEW answers",
        "n = 1;",
        "n = 1) UNION SELECT prediction_id FROM samples WHERE (true",
        "n = 1) ORDER BY (n",
        "n = 1) GROUP BY prediction_id HAVING (true",
        "n = 1) QUALIFY (row_number() OVER () = 1",
        "n = 1) LIMIT (1",
        "n = 1 /*",
        "n = 1))",
        "n = $1",
        "SELECT 1",
        "n = (",
        "no_such_column = 1",
        "count(*) > 1",
        "row_number() OVER () = 1",
        "read_text('/etc/passwd') IS NULL",
        "EXISTS (FROM '/etc/passwd')",
        "n, n",
    ],
)
def test_a_filter_that_is_not_one_expression_over_predictions_is_refused(lk: OpenLake, filter: str) -> None:
    with pytest.raises(BadInput, match="the filter"):
        where.check(lk, filter)


@pytest.mark.parametrize(("filter", "kind"), [("n", "BIGINT"), ("label", "VARCHAR"), ("1", "INTEGER")])
def test_a_filter_that_is_not_boolean_is_refused(lk: OpenLake, filter: str, kind: str) -> None:
    with pytest.raises(BadInput, match=f"gives .*{kind}.*, not true or false"):
        where.check(lk, filter)


def test_a_cast_that_fails_on_some_row_is_bad_input(lk: OpenLake) -> None:
    with pytest.raises(BadInput, match="Conversion Error"):
        where.row_ids(lk, where.check(lk, "label::INT = 1"))


def test_a_filter_names_its_images_once(make_lake: MakeLake, tmp_path: Path) -> None:
    lk = make_lake()
    add(
        lk,
        [
            {"image_id": "b", "label": "x"},
            {"image_id": "a", "label": "x"},
            {"image_id": "b", "label": "x"},
            {"label": "y"},
        ],
    )
    assert where.images(lk, "label = 'x' -- both") == ["a", "b"]


def test_a_long_filter_works(lk: OpenLake) -> None:
    many = " OR ".join(f"n = {i}" for i in range(500))
    nested = functools.reduce(lambda inner, i: f"(n = {i} OR {inner})", range(60), "n = 1")
    for filter in (many, nested):
        duck, lance = passing(lk, filter)
        assert lance == duck
