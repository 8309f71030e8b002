"""The arithmetic of two models on the same images: exact where it says so, at every n."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Say
from training.metrics import paired_tests


def chances(n: int, fall: float, rate: float) -> np.ndarray:
    """Chance of each (broken, repaired), (n + 1, n + 1), when models disagree on `rate` and the true fall is `fall`."""
    out = np.zeros((n + 1, n + 1))
    log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    shares = np.clip([(rate + fall) / 2, (rate - fall) / 2, 1 - rate], 1e-300, 1)
    for b in range(n + 1):
        c = np.arange(n - b + 1)
        logs = log[n] - log[b] - log[c] - log[n - b - c]
        out[b, : n - b + 1] = np.exp(
            logs + b * np.log(shares[0]) + c * np.log(shares[1]) + (n - b - c) * np.log(shares[2])
        )
    return out


def test_mcnemar_by_hand() -> None:
    assert paired_tests.fall_p(5, 0) == pytest.approx(1 / 32)
    assert paired_tests.fall_p(2, 1) == pytest.approx(4 / 8)
    assert paired_tests.fall_p(0, 0) == 1.0
    assert paired_tests.fall_p(0, 5) == pytest.approx(1.0)


def test_without_any_disagreement_the_rule_of_three_holds() -> None:
    """No change on n images excludes a fall of m when (1 - m)^n is 5 %: 3 / n, and never zero."""
    assert paired_tests.upper_bound(0, 0, 100) == pytest.approx(1 - 0.05 ** (1 / 100), abs=1e-3)
    assert paired_tests.beyond_p(0, 0, 58, 0.05) > 0.05 >= paired_tests.beyond_p(0, 0, 60, 0.05)


def test_in_large_samples_it_is_the_textbook_bound() -> None:
    n, b, c = 20_000, 1_100, 1_000
    wald = (b - c) / n + 1.645 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    assert paired_tests.upper_bound(b, c, n) == pytest.approx(wald, abs=3e-4)


@settings(max_examples=12)
@given(st.integers(1, 40), st.data())
def test_the_bound_lies_above_what_was_seen_and_grows_with_broken_images(n: int, data: st.DataObject) -> None:
    broken = data.draw(st.integers(0, n - 1))
    repaired = data.draw(st.integers(0, n - 1 - broken))
    bound = paired_tests.upper_bound(broken, repaired, n)
    assert bound >= (broken - repaired) / n
    assert bound <= paired_tests.upper_bound(broken + 1, repaired, n) + 2e-4


@pytest.mark.parametrize(("n", "margin"), [(10, 0.1), (20, 0.05), (30, 0.2), (52, 0.05)])
def test_a_fall_of_the_margin_is_excluded_in_at_most_five_per_cent(n: int, margin: float, say: Say) -> None:
    """Not simulated: every outcome with its chance, at every rate of disagreement. At 52 the score test gives 6.9 %."""
    passes = np.zeros((n + 1, n + 1), bool)
    for disagreed in range(n + 1):  # of as many disagreements, those with few broken images pass: halving finds how few
        low, high = -1, disagreed
        while low < high:
            b = (low + high + 1) // 2
            low, high = (b, high) if paired_tests.beyond_p(b, disagreed - b, n, margin) <= 0.05 else (low, b - 1)
        passes[np.arange(low + 1), disagreed - np.arange(low + 1)] = True
    worst = max(chances(n, margin, rate)[passes].sum() for rate in np.linspace(margin, min(1, margin + 0.5), 30))
    say(f"gate: passed though the fall is the margin, n = {n}, margin {margin}: {100 * worst:.2f} % at most")
    assert 0 < worst <= 0.05


def test_balanced_accuracy_bound_of_small_classes(say: Say) -> None:
    rng, passed, trials = np.random.default_rng(0), 0, 250
    sizes, falls, rates, margin = (12, 40), (0.2, 0.0), (0.25, 0.1), 0.1  # the mean fall is the margin
    for _ in range(trials):
        cells = []
        for size, fall, rate in zip(sizes, falls, rates, strict=True):
            b, c, _ = rng.multinomial(size, [(rate + fall) / 2, (rate - fall) / 2, 1 - rate])
            cells.append((int(b), int(c), size))
        passed += paired_tests.upper_bound_of_classes(cells) <= margin
    say(f"gate: balanced accuracy, fall = margin, classes of 12 and 40: passed in {100 * passed / trials:.1f} %")
    assert passed / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_balanced_accuracy_falls_are_false_alarms_in_five_per_cent_at_most() -> None:
    rng, trials = np.random.default_rng(1), 400
    alarms = 0
    for trial in range(trials):
        cells = [(int(b := rng.binomial(d := rng.binomial(size, 0.2), 0.5)), int(d - b), size) for size in (15, 80)]
        alarms += paired_tests.fall_p_of_classes(cells, trial) <= 0.05
    assert alarms / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert paired_tests.fall_p_of_classes([(5, 0, 10)]) == pytest.approx(1 / 32, rel=0.15)


@pytest.mark.parametrize(("fall", "rate", "margin"), [(0.0, 0.06, 0.03), (0.05, 0.1, 0.02)])
def test_that_many_images_decide_four_times_in_five(fall: float, rate: float, margin: float) -> None:
    n = paired_tests.images_needed(fall, math.sqrt(rate - fall**2), margin, 0.05)
    assert n is not None
    rng, decided = np.random.default_rng(2), 0
    for _ in range(200):
        b, c, _ = (int(x) for x in rng.multinomial(n, [(rate + fall) / 2, (rate - fall) / 2, 1 - rate]))
        decided += paired_tests.fall_p(b, c) <= 0.05 or paired_tests.beyond_p(b, c, n, margin) <= 0.05
    assert decided >= 144  # 80 % of 200 are 160
