"""Rates with their uncertainty and tests of many things at once, on numbers a reader finds in the books."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lake.analytics.statistics import (
    Rate,
    balanced,
    difference,
    holm,
    mcnemar,
    more_errors,
    performance,
    wilson,
)

COUNTS = some.integers(1, 10_000).flatmap(lambda n: some.tuples(some.integers(0, n), some.just(n)))
PS = some.lists(some.floats(0, 1), max_size=30)


def test_wilson_agrees_with_the_published_example() -> None:
    rate = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (rate.low, rate.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_the_interval_of_a_difference_agrees_with_the_published_example() -> None:
    apart = difference(56, 70, 48, 80)  # Newcombe 1998, II, table II, (a) by method 10: 0.0524 to 0.3339
    assert (apart.value, apart.low, apart.high) == (
        pytest.approx(0.2),
        pytest.approx(0.0524, abs=5e-5),
        pytest.approx(0.3339, abs=5e-5),
    )
    assert difference(1, 2, 0, 0) == Rate(None, None, None, 0)


def test_without_a_count_there_is_no_rate() -> None:
    assert wilson(0, 0) == Rate(None, None, None, 0)


@given(COUNTS)
def test_the_interval_contains_the_share_and_stays_in_bounds(counts: tuple[int, int]) -> None:
    rate = wilson(*counts)
    assert rate.low is not None
    assert rate.high is not None
    assert rate.value is not None
    assert 0 <= rate.low <= rate.value + 1e-12
    assert rate.value - 1e-12 <= rate.high <= 1


def test_balanced_accuracy_counts_every_class_alike() -> None:
    # 90 of 90 good cells right, 2 of 10 defective ones.
    judged = performance({("good", "good"): 90, ("bad", "bad"): 2, ("bad", "good"): 8})
    assert judged.accuracy.value == 0.92
    assert judged.balanced_accuracy.value == 0.6
    assert (judged.majority_class, judged.majority_baseline.value) == ("good", 0.9)


def test_one_class_balances_to_its_own_recall() -> None:
    alone = balanced([wilson(7, 10), wilson(0, 0)])
    assert (alone.value, alone.low, alone.high) == pytest.approx(
        (wilson(7, 10).value, wilson(7, 10).low, wilson(7, 10).high)
    )


def test_no_labels_give_empty_verdicts() -> None:
    assert performance({}).balanced_accuracy.n == 0


def test_mcnemar_is_the_binomial_of_the_changed() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar(5, 5) == 1
    assert mcnemar(3, 9_000) == mcnemar(9_000, 3) < 1e-300


def test_fishers_exact_test_agrees_with_the_tea_tasting() -> None:
    assert more_errors(3, 4, 1, 4) == pytest.approx(17 / 70)  # Fisher 1935: three of the four cups, or all of them
    assert more_errors(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert more_errors(0, 4, 4, 4) == pytest.approx(1)
    assert more_errors(0, 0, 1, 2) == 1


def test_holms_correction_agrees_with_a_hand_calculation() -> None:
    ps = [0.01, 0.04, 0.03, 0.005]
    assert holm(ps) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(PS)
def test_holms_correction_only_raises_p_and_keeps_the_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert all(p <= more + 1e-12 and more <= 1 for p, more in zip(ps, adjusted, strict=True))
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    assert [adjusted[index] for index in order] == sorted(adjusted)
