"""Filters: a URL, chips and one SQL predicate say the same; what a URL says wrongly is left out."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as some

import lake
from lake.sql import where as lake_where
from search_app.ui.components.filters import Filters, command
from tests.search_app.shapes import Shapes

ALL = Filters(
    slice="night@2",
    node="a1b2/0.3",
    labels=("cat", "it's"),
    models=("resnet 1.0", "vit"),
    confidence=(0.2, 0.5),
    since=dt.date(2026, 9, 1),
    until=dt.date(2026, 9, 30),
    sql="camera = 3",
)


def test_without_filters_there_is_no_predicate() -> None:
    assert Filters().where() is None
    assert Filters().chips() == []


def test_values_of_one_kind_are_alternatives_and_kinds_must_all_hold() -> None:
    filters = Filters(labels=("cat", "dog"), confidence=(0.0, 0.5))
    assert filters.where() == "(label = 'cat' OR label = 'dog') AND (confidence <= 0.5)"


def test_the_last_day_is_included() -> None:
    assert Filters(until=dt.date(2026, 9, 30)).where() == "timestamp < TIMESTAMPTZ '2026-10-01 00:00:00+00'"


def test_a_url_brings_every_filter_back() -> None:
    assert Filters.from_params(ALL.to_params()) == ALL


def test_removing_a_filter_chip_removes_its_predicate() -> None:
    chips = {chip.text: chip for chip in [*ALL.scope(), *ALL.chips()]}
    assert ALL.without(chips["label = cat"]).labels == ("it's",)
    assert ALL.without(chips["slice night v2"]).slice == ""
    left = ALL
    for chip in chips.values():
        left = left.without(chip)
    assert left == Filters()


@pytest.mark.parametrize("text", ["1-0", "0-1", "0.5", "-1-2", "nan-1", "a-b", ""])
def test_a_confidence_that_makes_no_sense_is_left_out(text: str) -> None:
    assert Filters.from_params({"conf": [text]}).confidence is None


@given(some.dictionaries(some.sampled_from(sorted(ALL.to_params())), some.lists(some.text(max_size=20), max_size=3)))
def test_every_url_can_be_read(params: dict[str, list[str]]) -> None:
    filters = Filters.from_params(params)
    assert Filters.from_params(filters.to_params()) == filters


def test_the_predicate_is_one_the_lake_takes(shapes: Shapes) -> None:
    opened = lake.open(shapes.uri)
    checked = lake_where.check(opened, ALL.where() or "")
    assert opened.sql(f"SELECT count(*) AS n FROM samples WHERE {checked.sql}")["n"][0].as_py() == 0


def test_a_trailing_comment_in_the_sql_swallows_nothing(shapes: Shapes) -> None:
    where = Filters(labels=("circle",), sql="confidence > 0.5 -- sure ones").where() or ""
    counted = lake.open(shapes.uri).sql(f"SELECT count(*) AS n FROM samples WHERE ({where}) AND false")
    assert counted["n"][0].as_py() == 0


def test_the_command_can_be_pasted_into_a_shell() -> None:
    assert command("search", "label = 'it''s'") == """lakeloop search --where 'label = '"'"'it'"'"''"'"'s'"'"''"""
