"""The scanner that bounds SQL before it is parsed reads brackets, quotations and comments as DuckDB does."""

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import nesting
from lake.errors import BadInput
from lake.sql.where import conjunction, predicate

BALANCED = [
    "true", "a[1] = {'b': (2)}['b']", "a = '('", "a = ')'", "a = 'it''s ('", 'a = "("', "a = `(`", "a = '\\'",
    "e'\\'(' = a", "$$(($$ = a", "$x$ ' $$ ( $x$ = a", "true -- (", "true -- '\n AND (false)", "/* ( /* ( */ */ true",
]  # fmt: skip
UNBALANCED = {
    "true) OR (true": "closes none", "(true": "is not closed", "(a]": "closes none", "'a": "has no end",
    "a = '\\'(\\''": "closed|no end", '"a': "has no end", "`a": "has no end", "/* /* */ true": "has no end",
    "$x$ ' $y$ = a": "has no end", "a$$b (": "is not closed", "'a' -- '\n) OR (true": "closes none",
    "e'\\' = ') OR (true": "no end|closes none",
}  # fmt: skip
# Pieces of text at which a scanner and a parser could differ.
PIECES = ["(", ")", "[", "]", "'", "''", '"', "`", "\\", "--", "\n", "\r", "/*", "*/", "$$", "$a$", "e'", " ", "1", "true", "=", "OR", "a"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("text", BALANCED)
def test_what_is_balanced_passes(text: str) -> None:
    nesting.check_expression(text)
    assert conjunction(text, "true") is not None


@pytest.mark.parametrize("text", UNBALANCED)
def test_what_could_leave_its_brackets_joins_no_filter(text: str) -> None:
    for join in (nesting.check_expression, predicate, lambda text: conjunction("label = 'a'", text)):
        with pytest.raises(BadInput, match=f"is not one expression: .*({UNBALANCED[text]})"):
            join(text)


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_text_that_passes_leaves_the_brackets_around_it(text: str) -> None:
    try:
        nesting.check_expression(text)
        with duckdb.connect() as connection:
            rows = connection.sql(f"SELECT a FROM (SELECT true AS a) WHERE ({text}\n) AND false").fetchall()
    except (BadInput, duckdb.Error):
        return
    assert rows == []


@pytest.mark.parametrize("opening", ["(", "[", "{'a': ", "abs(", "CASE WHEN (", "'(' = ("])
def test_depth_is_counted_in_every_kind_of_bracket(opening: str) -> None:
    nesting.check(opening * nesting.MOST_DEPTH)
    with pytest.raises(BadInput, match="nested too deeply"):
        nesting.check(opening * (nesting.MOST_DEPTH + 1))


def test_brackets_side_by_side_and_in_quotations_are_not_deep() -> None:
    nesting.check("(1), " * 10_000)
    nesting.check("'" + "(" * 10_000 + "'")
    nesting.check("-- " + "(" * 10_000)


def test_a_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(BadInput, match="1,000,001 characters; the limit is 1,000,000"):
        nesting.check("a" * 1_000_001)
