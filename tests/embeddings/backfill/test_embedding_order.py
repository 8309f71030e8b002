"""The orders mean what they say, and taking a few at a time is taking all in that order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from embeddings.backfill.embedding_order import ORDERS, Order, first
from lake.storage.image_keys import keys_of
from lake.storage.missing_vectors import UNREADABLE, WAITING, WITHOUT_BYTES, Gaps
from tests.lake.prediction_rows import image


def gaps(rows: list[tuple[int, int, int]]) -> Gaps:
    """(image, arrived, state) of each row, in the order of the table."""
    names = pa.chunked_array([pa.array([image(i) for i, _, _ in rows], pa.string())])
    return Gaps(
        None,
        names,
        keys_of(names),
        np.array([arrived for _, arrived, _ in rows], np.int64),
        np.arange(len(rows), dtype=np.uint64),
        np.array([state for _, _, state in rows], np.uint8),
    )


states = st.sampled_from([WAITING, WAITING, UNREADABLE, WITHOUT_BYTES])
tables = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), states), max_size=40)
given_up = st.sets(st.integers(0, 12), max_size=3)


@given(tables, given_up)
def test_oldest_first_is_the_order_of_arrival(rows: list[tuple[int, int, int]], failed: set[int]) -> None:
    waits = [r for r in sorted(rows, key=lambda r: r[1]) if r[2] == WAITING and r[0] not in failed]
    expected = list(dict.fromkeys(image(i) for i, _, _ in waits))
    assert first(gaps(rows), "oldest", excluded={image(i) for i in failed}) == expected


@given(tables)
def test_newest_first_is_the_reverse_order_of_arrival(rows: list[tuple[int, int, int]]) -> None:
    waits = [r for r in reversed(sorted(rows, key=lambda r: r[1])) if r[2] == WAITING]
    assert first(gaps(rows), "newest") == list(dict.fromkeys(image(i) for i, _, _ in waits))


@given(tables, st.sampled_from(ORDERS), st.integers(0, 15), given_up)
def test_the_first_few_are_the_first_of_all(
    rows: list[tuple[int, int, int]], order: Order, most: int, failed: set[int]
) -> None:
    excluded = {image(i) for i in failed}
    whole = first(gaps(rows), order, excluded=excluded)
    assert first(gaps(rows), order, most, excluded=excluded) == whole[:most]
    assert sorted(whole) == sorted({image(i) for i, _, s in rows if s == WAITING} - excluded)


def test_a_sample_depends_only_on_image_and_seed() -> None:
    rows = [(i, i, WAITING) for i in range(200)]
    drawn = first(gaps(rows), "sampled", seed=1)
    assert first(gaps(rows[::-1]), "sampled", seed=1) == drawn
    few = [r for r in rows if r[0] % 3]
    chosen = {image(i) for i, _, _ in few}
    assert first(gaps(few), "sampled", seed=1) == [i for i in drawn if i in chosen]
    assert first(gaps(rows), "sampled", seed=2) != drawn


def test_a_sample_is_unbiased() -> None:
    """Of two groups that came one after the other, a tenth of all holds each by its share, whatever the seed."""
    rows = [(i, i, WAITING) for i in range(4000)]
    early = {image(i) for i in range(1000)}
    shares = [np.mean([i in early for i in first(gaps(rows), "sampled", 400, seed=s)]) for s in range(20)]
    # One share's deviation is sqrt(1/4 * 3/4 / 400) = 0.022; that of the mean of 20 is 0.005.
    assert abs(np.mean(shares) - 0.25) < 0.015
    assert np.std(shares) < 0.05
