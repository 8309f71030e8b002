"""Groups that fail: every combination is counted as by hand, the planted one comes first, and chance stays silent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from embeddings.discovery import subgroups
from embeddings.discovery.scan_statistic import DIRECTION, score
from embeddings.discovery.subgroup_table import MIN_SUPPORT
from tests.conftest import Say

PAIR = ((0, 1), (1, 0))


def _metadata(seed: int, n: int) -> np.ndarray:
    """Five dimensions of 4, 3, 5, 6 and 2 values; one answer in ten has none of the last."""
    rng = np.random.default_rng(seed)
    codes = np.column_stack([rng.integers(0, values, n) for values in (4, 3, 5, 6, 2)])
    codes[rng.random(n) < 0.1, 4] = -1
    return codes


def _errors(seed: int, planted: np.ndarray, most: float = 0.5, usual: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(1_000 + seed).random(len(planted)) < np.where(planted, most, usual)).astype(float)


def _pair(codes: np.ndarray) -> np.ndarray:
    return np.logical_and.reduce([codes[:, dimension] == value for dimension, value in PAIR])


@given(some.integers(0, 2**32 - 1), some.integers(30, 120), some.integers(1, 3))
def test_every_combination_with_enough_predictions_is_counted(seed: int, n: int, conditions: int) -> None:
    codes, errors = _metadata(seed, n), np.random.default_rng(seed).random(n).round(2)
    expected = {}
    for level in range(1, conditions + 1):
        for dimensions in itertools.combinations(range(codes.shape[1]), level):
            for values in {tuple(row) for row in codes[:, dimensions].tolist() if -1 not in row}:
                inside = (codes[:, dimensions] == values).all(axis=1)
                # A combination counts when all it is made of does.
                if inside.sum() >= MIN_SUPPORT and all(
                    (codes[:, group] == value).sum() <= n - MIN_SUPPORT
                    for group, value in zip(dimensions, values, strict=True)
                ):
                    key = tuple(zip(dimensions, values, strict=True))
                    expected[key] = (int(inside.sum()), pytest.approx(float(errors[inside].sum())))
    result = {
        group.conditions: (group.size, group.errors) for group in subgroups.all_subgroups(codes, errors, conditions)
    }
    assert result == expected


def test_the_score_is_the_likelihood_ratio() -> None:
    # 8 of 10 wrong inside, 2 of 90 outside, 10 of 100 in all.
    inside = 8 * np.log(0.8 / 0.1) + 2 * np.log(0.2 / 0.9)
    outside = 2 * np.log((2 / 90) / 0.1) + 88 * np.log((88 / 90) / 0.9)
    result = score(np.array([8.0, 1.0, 0.0]), np.array([10.0, 10.0, 10.0]), 10, 100)
    assert result.tolist() == pytest.approx([inside + outside, 0, 0])


def test_a_planted_pair_comes_first_and_chance_reports_nothing(say: Say) -> None:
    first = silent = 0
    for seed in range(10):
        codes = _metadata(seed, 900)
        result = subgroups.search(codes, _errors(seed, _pair(codes)), seed=seed, permutations=150)
        first += bool(result.failures) and result.failures[0].group.conditions == PAIR
        nothing = subgroups.search(codes, _errors(seed, np.zeros(900, bool)), seed=seed, permutations=150)
        silent += not nothing.failures
    say(f"discovery: a planted pair came first in {first} of 10, nothing was told in {silent} of 10 without one")
    assert first >= 9
    assert silent >= 9


def test_an_explained_failure_is_reported_once() -> None:
    codes = _metadata(0, 3_000)
    pair = _pair(codes)
    # A copy of the first dimension under another name, and a dimension that says whether the pair is met.
    codes = np.column_stack([codes, codes[:, 0], pair.astype(int)])
    result = subgroups.search(codes, _errors(0, pair), permutations=150)
    assert [group.group.conditions for group in result.failures] == [((6, 1),)]
    assert (result.failures[0].members == pair).all()
    # A whole value that fails is told as itself, not as its worst part.
    whole = codes[:, 2] == 3
    result = subgroups.search(codes, _errors(1, whole), permutations=150)
    assert [group.group.conditions for group in result.failures] == [((2, 3),)]
    # Two failures are both told, the graver first.
    result = subgroups.search(codes[:, :5], _errors(2, pair | whole, 0.6), permutations=150)
    assert [group.group.conditions for group in result.failures] == [((2, 3),), PAIR]


def _looks(seed: int, n: int = 900, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Points of which one in eight stand aside, and who they are."""
    rng = np.random.default_rng(seed)
    aside = rng.random(n) < 0.125
    points = rng.normal(size=(n, dim))
    points[aside, 3] += 4
    return points, aside


def test_an_unnamed_subgroup_is_found_along_a_direction(say: Say) -> None:
    first = silent = 0
    for seed in range(10):
        points, aside = _looks(seed)
        codes = _metadata(seed, len(points))
        result = subgroups.search(codes, _errors(seed, aside), points, seed=seed, permutations=150)
        if result.failures and result.failures[0].group.conditions[0][0] == DIRECTION:
            first += aside[result.failures[0].members].mean() >= 0.5
        nothing = subgroups.search(codes, _errors(seed, aside, 0.1), points, seed=seed, permutations=150)
        silent += not nothing.failures
    say(f"discovery: a kind that no column names came first in {first} of 10, nothing was told in {silent} of 10")
    assert first >= 9
    assert silent >= 9


def test_a_named_subgroup_is_preferred_to_a_direction_it_explains() -> None:
    points, aside = _looks(0)
    codes = np.column_stack([_metadata(0, len(points)), aside.astype(int)])
    result = subgroups.search(codes, _errors(0, aside), points, permutations=150)
    assert [group.group.conditions for group in result.failures] == [((5, 1),)]
    points[:40] = np.nan  # answers whose image has no vector yet take part all the same
    assert subgroups.search(codes, _errors(0, aside), points, permutations=150).failures


def test_equal_seeds_give_equal_results_and_degenerate_input_none() -> None:
    codes = _metadata(3, 400)
    errors = _errors(3, _pair(codes))
    group, other = (subgroups.search(codes, errors, seed=5, permutations=99) for _ in range(2))
    assert [(f.group, f.p) for f in group.failures] == [(f.group, f.p) for f in other.failures]
    for none in (np.zeros(400), np.ones(400)):
        assert subgroups.search(codes, none, permutations=99).failures == []
    assert subgroups.search(codes[:10], errors[:10], permutations=99).compared == 0
    assert subgroups.search(np.zeros((400, 0), int), errors, permutations=99).failures == []


@pytest.mark.soak
def test_false_alarms_stay_below_the_level(say: Say) -> None:
    alarms = 0
    for seed in range(400):
        points, _ = _looks(seed, 400)
        codes = _metadata(seed, 400)
        alarms += bool(
            subgroups.search(codes, _errors(seed, np.zeros(400, bool)), points, seed=seed, permutations=200).failures
        )
    say(f"discovery: {alarms} of 400 data sets without a failure raised an alarm; 1 % are 4")
    assert alarms <= 10  # at 1 %, more in 1 of 300 runs
