"""Values of rows and events: one form for each class, every digit of a number, moments in the unit that was meant."""

import datetime as dt
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.errors import BadInput
from lake.prediction_logs import texts
from lake.prediction_logs.numbers import CLAMPED, COMMA, Numbers, whole
from lake.prediction_logs.times import parse_time, unlikely


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", "1.000"])
def test_a_class_has_one_form_whatever_type_its_column_has(value: Any) -> None:
    assert texts.class_name("label", value) == "1"


@pytest.mark.parametrize("name", ["cat ", "Cat", "1.5", "v1.0", "01", "1.", "True", "-"])
def test_other_classes_stay_as_they_are_written(name: str) -> None:
    assert texts.class_name("label", name) == name


@pytest.mark.parametrize("value", ["a\ud800", "\udc00"])
def test_half_a_surrogate_pair_is_refused_by_name(value: str) -> None:
    with pytest.raises(BadInput, match=r"label has \\ud[0-9a-f]{3}, half a surrogate pair, at character"):
        texts.sound("label", value)
    assert texts.sound("label", "\U0001f600 Größe") == "\U0001f600 Größe"


@pytest.mark.parametrize(("value", "clamped"), [(1.0000001192092896, 1.0), (-1e-9, 0.0), ("1.00005", 1.0)])
def test_a_probability_a_hair_outside_is_clamped_and_counted(value: Any, clamped: float) -> None:
    numbers = Numbers()
    assert numbers.fraction("confidence", value) == clamped
    assert math.copysign(1, clamped) == 1
    assert numbers.converted == [CLAMPED]


@pytest.mark.parametrize(
    ("value", "guess"),
    [(87, "percentage.*--confidence-scale 100"), ("87%", "percentage"), (4.7, "logit"), (-2, "logit"),
     (1.0002, "1.0002, not between 0 and 1"), (250, "logit")],
)  # fmt: skip
def test_a_percentage_or_a_logit_is_refused_with_the_guess(value: Any, guess: str) -> None:
    with pytest.raises(BadInput, match=guess):
        Numbers().fraction("confidence", value)


def test_percentages_are_read_when_the_caller_says_so() -> None:
    numbers = Numbers(100)
    assert [numbers.fraction("confidence", v) for v in (87, "87%", "87.5 %", 100.0)] == [0.87, 0.87, 0.875, 1.0]
    with pytest.raises(BadInput, match="confidence is 101, not between 0 and 100"):
        numbers.fraction("confidence", 101)


def test_a_decimal_comma_is_read_where_a_comma_separates_nothing() -> None:
    numbers = Numbers(comma=True)
    assert (numbers.fraction("confidence", "0,125"), numbers.number("latency_ms", "12,5")) == (0.125, 12.5)
    assert numbers.converted == [COMMA, COMMA]
    with pytest.raises(BadInput, match="a decimal comma, or a thousand"):
        numbers.number("latency_ms", "1,250")
    with pytest.raises(BadInput, match="not a number"):
        Numbers().number("latency_ms", "12,5")


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from([int, str, "{}.0".format, "{}e0".format, Decimal]))
def test_a_whole_number_keeps_every_digit(number: int, written: Any) -> None:
    assert whole("n", written(number)) == number


def test_a_float_beyond_its_digits_is_no_whole_number() -> None:
    assert whole("n", 2.0**53) == 2**53
    with pytest.raises(BadInput, match="a float without its last digits"):
        whole("n", 1009513310189256287.0)


@pytest.mark.parametrize("written", [int, float, str])
@pytest.mark.parametrize(
    ("digits", "moment"),
    [
        (20260115, "2026-01-15"),
        (2026011510, "2026-01-15T10"),
        (202601151030, "2026-01-15T10:30"),
        (20260115103059, "2026-01-15T10:30:59"),
        (1768435200, "2026-01-15"),
        (1768435200000, "2026-01-15"),
        (1768435200000000, "2026-01-15"),
        (1768435200000000000, "2026-01-15"),
        (20261399, "1970-08-23T12:09:59"),  # no calendar day
        (0, "1970-01-01"),
    ],
)
def test_digits_are_a_calendar_day_or_a_count_since_1970(digits: int, moment: str, written: Any) -> None:
    assert parse_time("t", written(digits)) == dt.datetime.fromisoformat(moment).replace(tzinfo=dt.UTC)


def test_every_microsecond_is_kept() -> None:
    moment = dt.datetime(2026, 1, 15, 10, 30, 59, 123456, tzinfo=dt.UTC)
    digits = int(moment.timestamp()) * 1_000_000 + 123456
    assert parse_time("t", str(digits)) == parse_time("t", digits * 1000 + 7) == moment


@pytest.mark.parametrize("value", ["1e21", "1_700_000_000", "15.01.2026", math.inf, True])
def test_other_moments_are_refused(value: Any) -> None:
    with pytest.raises(BadInput, match=r"t is .*, not an ISO 8601 time, digits of a calendar day"):
        parse_time("t", value)


def test_moments_that_a_wrong_unit_gives_are_unlikely() -> None:
    now = dt.datetime.now(dt.UTC)
    moments = [dt.datetime(1970, 8, 23, tzinfo=dt.UTC), now + dt.timedelta(days=2), now, now + dt.timedelta(hours=9)]
    assert [unlikely(moment) for moment in moments] == ["in 1970", "in the future", None, None]
