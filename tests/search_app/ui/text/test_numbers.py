"""How numbers are written."""

from __future__ import annotations

from lake.analytics.statistics import wilson
from search_app.ui.text.numbers import count, images, interval, percent, share, span


def test_a_rate_is_written_with_its_interval_and_n() -> None:
    rate = wilson(1_000, 1_203)
    assert percent(rate) == "83.1\N{NO-BREAK SPACE}%"
    assert span(rate) == "81 to 85\N{NO-BREAK SPACE}%"
    assert interval(rate) == "80.9–85.1\N{NO-BREAK SPACE}%, n 1,203"


def test_without_a_count_a_rate_is_a_dash() -> None:
    assert (percent(wilson(0, 0)), span(wilson(0, 0)), interval(wilson(0, 0))) == ("–", "–", "n 0")
    assert (share(None), count(None)) == ("–", "–")


def test_one_image_is_written_in_the_singular() -> None:
    assert (images(1), images(1_234)) == ("1 image", "1,234 images")
