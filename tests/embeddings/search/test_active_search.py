"""Active search finds a rare kind by looking at few others, the same way every time, and says how many are left."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.search.active_search import ActiveSearch
from embeddings.vectors import whitening


def kinds(count: int, rare: int, seed: int = 0, apart: float = 3.0, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of common kinds and of a rare one, in random order, and which are of the rare one."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, apart, (6, dim))
    which = np.concatenate([rng.integers(0, 5, count - rare), np.full(rare, 5)])
    which = rng.permutation(which)
    vectors = centres[which] + rng.normal(0, 4.0, (count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), which == 5


def begun(vectors: np.ndarray, kind: np.ndarray) -> ActiveSearch:
    search = ActiveSearch(whitening.fit(vectors).transform(vectors))
    search.mark(np.flatnonzero(kind)[:1], 1)
    return search


def turn(search: ActiveSearch, kind: np.ndarray, size: int = 24) -> int:
    page = search.page(size)
    search.mark(page[kind[page]], 1)
    search.mark(page[~kind[page]], -1)
    return len(page)


def looks(vectors: np.ndarray, kind: np.ndarray, share: float = 0.9) -> int:
    search, looked = begun(vectors, kind), 0
    while (search.marks > 0).sum() < share * kind.sum():
        looked += turn(search, kind)
    return looked


@pytest.mark.parametrize("seed", range(3))
def test_a_rare_kind_is_found_by_looking_at_a_small_part(seed: int) -> None:
    vectors, kind = kinds(6_000, 40, seed)
    looked = looks(vectors, kind)
    nearest = np.argsort(-(vectors @ vectors[np.flatnonzero(kind)[0]]))
    by_nearness = np.flatnonzero(kind[nearest])[35] + 1
    assert looked < by_nearness / 2, f"{looked} looks, {by_nearness} by nearness alone"
    assert looked < 6_000 * 0.1


def test_marks_on_a_page_change_what_comes_next_and_nothing_comes_twice() -> None:
    vectors, kind = kinds(300, 20)
    search = begun(vectors, kind)
    seen: set[int] = set(np.flatnonzero(search.marks).tolist())
    while True:
        page = search.page(24)
        assert (search.page(24) == page).all(), "the same until marks change"
        if not len(page):
            break
        assert not seen & set(page.tolist())
        seen |= set(page.tolist())
        turn(search, kind)
    assert seen == set(range(300))


def test_removed_marks_leave_no_trace() -> None:
    vectors, kind = kinds(500, 20)
    search = begun(vectors, kind)
    turn(search, kind)
    before = search.scores().copy()
    page = search.page(24)
    turn(search, kind)
    assert not np.allclose(search.scores(), before)
    search.mark(page, 0)
    assert (search.scores() == before).all()
    assert (search.page(24) == page).all()


def test_ties_come_in_the_order_of_rows() -> None:
    vectors = np.tile(np.eye(4, dtype=np.float32)[:2], (50, 1))
    search = ActiveSearch(whitening.fit(vectors).transform(vectors))
    search.mark([0], 1)
    assert search.page(5).tolist() == [2, 4, 6, 8, 10]


@given(count=st.integers(1, 40), equal=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_points_give_finite_scores_and_full_pages(count: int, equal: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(1 if equal else count, 8)).astype(np.float32)
    vectors = np.repeat(vectors, count, axis=0) if equal else vectors
    search = ActiveSearch(whitening.fit(vectors).transform(vectors))
    assert len(search.page(24)) == min(24, count)  # nothing is marked yet: in the order of the places
    search.mark([0], 1)
    assert np.isfinite(search.scores()).all()
    assert len(search.page(24)) == min(24, count - 1)
    search.mark(search.page(24)[:3], -1)
    left = search.remaining()
    if left is not None:
        assert 0 <= left.low <= left.high
        assert np.isfinite([left.expected, left.next_page]).all()


def test_there_is_no_estimate_before_a_yes_and_a_no() -> None:
    vectors, kind = kinds(300, 20)
    search = begun(vectors, kind)
    assert search.remaining() is None
    search.mark(np.flatnonzero(~kind)[:1], -1)
    assert search.remaining() is not None


def test_the_interval_covers_the_true_number_most_of_the_time() -> None:
    inside = errors = total = 0
    for seed in range(6):
        vectors, kind = kinds(4_000, 60, seed, apart=2.0)
        search = begun(vectors, kind)
        for number in range(40):
            turn(search, kind)
            left = search.remaining()
            true = int((kind & (search.marks == 0)).sum())
            if number % 8 == 7 and left is not None:
                total += 1
                inside += left.low <= true <= left.high
                errors += abs(left.expected - true) > 3 + 2 * true
    assert total >= 24
    assert inside >= 0.7 * total, f"{inside} of {total}"
    assert errors <= 0.3 * total


def test_whitened_directions_vary_alike() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(5_000, 16)) * np.linspace(5, 0.5, 16)).astype(np.float32)
    points = whitening.fit(vectors, 16).transform(vectors)
    spread = points.std(axis=0)
    assert spread[0] / spread[-1] < 6 < vectors.std(axis=0)[0] / vectors.std(axis=0)[-1]
    correlations = np.corrcoef(points.T) - np.eye(16)
    assert np.abs(correlations).max() < 1e-3
