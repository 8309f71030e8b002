"""When a canary is rolled back: by simulation, with the counts after every single observation."""

from __future__ import annotations

import random

import pytest

from lake.analytics.statistics import always_valid
from training.inference.canary_evidence import Evidence, differ, percentile
from training.registry.canary import Limits
from training.tasks.task import Prediction

YES, NO = Prediction("x", "yes"), Prediction("x", "no")
LIMITS = Limits()


def stopped_at(
    rng: random.Random, images: int, disagreement: float = 0.0, errors: float = 0.0, slower: float = 1.0
) -> int | None:
    """After how many images a canary with these true rates is rolled back; None: not within `images`."""
    evidence = Evidence(LIMITS)
    for n in range(images):
        failed = rng.random() < errors
        evidence.add_results(not failed, failed)
        evidence.add_comparison(str(n), YES, NO if rng.random() < disagreement else YES)
        if slower != 1.0 or n < 300:  # the percentiles are what a simulation takes its time for
            evidence.add_times(slower * rng.lognormvariate(-3, 0.3), rng.lognormvariate(-3, 0.3))
        if evidence.objection() is not None:
            return n + 1
    return None


def test_a_canary_exactly_at_its_limits_is_seldom_rolled_back_however_often_it_is_judged() -> None:
    """At the limit is the worst case. 5 % at most by construction; of 200, 18 or more happen once in 100 drawings."""
    rng = random.Random(1)
    alarms = [
        stopped_at(rng, 500, disagreement=LIMITS.disagreement, errors=LIMITS.errors) is not None for _ in range(200)
    ]
    assert sum(alarms) < 18


@pytest.mark.parametrize(
    ("rates", "images"),
    [({"disagreement": 0.6}, 200), ({"errors": 0.1}, 300), ({"errors": 1.0}, 31), ({"slower": 3.0}, 120)],
)
def test_a_bad_canary_is_rolled_back_soon(rates: dict[str, float], images: int) -> None:
    rng = random.Random(2)
    assert None not in [stopped_at(rng, images, **rates) for _ in range(20)]


def test_nothing_is_decided_before_the_minimum_and_the_reason_has_the_numbers() -> None:
    evidence = Evidence(LIMITS)
    evidence.add_results(0, failed=LIMITS.minimum - 1)
    assert evidence.objection() is None
    evidence.add_results(0, failed=1)
    assert evidence.objection() == ("it failed to predict 100.0% (77.8% to 100.0%) of 30 images; the limit is 1.0%")


def test_an_image_that_is_sent_again_is_no_new_evidence() -> None:
    evidence = Evidence(LIMITS)
    for _ in range(100):
        evidence.add_comparison("the same", YES, NO)
    assert evidence.objection() is None
    assert evidence.facts()["disagreement"]["n"] == 1


def test_the_slow_canary_is_named_with_both_times() -> None:
    evidence = Evidence(LIMITS)
    for _ in range(2 * LIMITS.minimum):
        evidence.add_times(0.03, 0.01)
    assert evidence.latency_ratio() == pytest.approx(3.0)
    assert "3.00 times the promoted version's (30 ms against 10 ms, 30 measured)" in str(evidence.objection())
    assert percentile([*range(1, 101)]) == 95


def test_what_differs_is_what_shadow_disagreements_counts() -> None:
    assert differ(YES, NO)
    assert not differ(YES, Prediction("other", "yes"))


def test_the_interval_holds_at_all_looks_at_once() -> None:
    """Of 200 series of 400 trials, at most 5 % ever leave it: 18 or more happen once in 100 drawings."""
    rng, left = random.Random(3), 0
    for _ in range(200):
        hits = 0
        for n in range(1, 401):
            hits += rng.random() < 0.2
            if n % 20 == 0:
                rate = always_valid(hits, n)
                assert rate.low is not None
                assert rate.high is not None
                if not rate.low <= 0.2 <= rate.high:
                    left += 1
                    break
    assert left < 18
