"""Pages by cursor, over any list with a stable order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_app.api.paging import make_cursor, page, read_cursor
from search_app.api.problems import Problem

keys = st.lists(st.tuples(st.text(max_size=3), st.integers(0, 3)), unique=True, max_size=30).map(sorted)


@given(keys, st.integers(1, 7))
def test_the_pages_are_the_list(items: list[tuple[str, int]], limit: int) -> None:
    seen: list[tuple[str, int]] = []
    cursor = None
    while True:
        part, cursor = page(items, lambda item: item, cursor, limit)
        assert len(part) <= limit
        seen += part
        if cursor is None:
            break
    assert seen == items


def test_a_page_continues_where_the_last_one_ended_whatever_was_added_before() -> None:
    _, cursor = page(["b", "d", "f"], lambda item: (item,), None, 2)
    assert page(["a", "b", "c", "e", "f"], lambda item: (item,), cursor, 2) == (["e", "f"], None)


@pytest.mark.parametrize("cursor", ["!", "ü", "e30", make_cursor(()), "W1tdXQ", make_cursor((1,)), "WzFd" * 400])
def test_a_cursor_of_another_list_is_refused(cursor: str) -> None:
    with pytest.raises(Problem, match="not one of this list"):
        page(["a", "b"], lambda item: (item,), cursor, 2)


@given(st.lists(st.one_of(st.text(), st.integers()), min_size=1))
def test_a_cursor_keeps_its_key(key: list[str | int]) -> None:
    assert read_cursor(make_cursor(tuple(key))) == tuple(key)
