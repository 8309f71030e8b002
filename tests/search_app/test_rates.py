"""Rates with their uncertainty, on counts a reader can check."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from search_app.ui.rates import Rate, balanced, images, verdict, wilson


def test_wilson_agrees_with_the_published_example() -> None:
    rate = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (rate.low, rate.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_nothing_counted_is_no_rate() -> None:
    assert wilson(0, 0) == Rate(None, None, None, 0)
    assert wilson(0, 0).percent() == "–"


@given(some.integers(1, 10_000).flatmap(lambda n: some.tuples(some.integers(0, n), some.just(n))))
def test_the_interval_holds_the_share_and_stays_in_bounds(counts: tuple[int, int]) -> None:
    rate = wilson(*counts)
    assert rate.low is not None
    assert rate.high is not None
    assert rate.value is not None
    assert 0 <= rate.low <= rate.value + 1e-12
    assert rate.value - 1e-12 <= rate.high <= 1


def test_balanced_accuracy_counts_every_class_alike() -> None:
    # 90 of 90 good cells right, 2 of 10 defective ones.
    judged = verdict({("good", "good"): 90, ("bad", "bad"): 2, ("bad", "good"): 8})
    assert judged.accuracy.value == 0.92
    assert judged.balanced_accuracy.value == 0.6
    assert (judged.commoner_class, judged.commoner.value) == ("good", 0.9)


def test_one_class_balances_to_its_own_recall() -> None:
    alone = balanced([wilson(7, 10), wilson(0, 0)])
    assert (alone.value, alone.low, alone.high) == pytest.approx(
        (wilson(7, 10).value, wilson(7, 10).low, wilson(7, 10).high)
    )


def test_no_labels_give_empty_verdicts() -> None:
    assert verdict({}).balanced_accuracy.n == 0


def test_one_image_is_not_plural() -> None:
    assert (images(1), images(1_234)) == ("1 image", "1,234 images")
