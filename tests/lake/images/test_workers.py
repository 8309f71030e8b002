"""A pool of workers returns results in order, takes a bounded number of tasks, and outlives its workers."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.images.workers import WorkerDied, WorkerPool

pytestmark = pytest.mark.slow

DEADLY = "tests.lake.worker_functions:double_or_die"


@pytest.fixture(scope="module")
def doublers() -> Iterator[WorkerPool]:
    with WorkerPool("tests.lake.worker_functions:double", 3) as pool:
        yield pool


def test_results_come_in_the_order_of_the_tasks(doublers: WorkerPool) -> None:
    assert list(doublers.map(((n,), f"task {n}") for n in range(20))) == [(2 * n, f"task {n}") for n in range(20)]


def test_no_tasks_no_results(doublers: WorkerPool) -> None:
    assert list(doublers.map([])) == []


def test_one_task_now(doublers: WorkerPool) -> None:
    assert doublers.run(21) == 42


@given(tasks=st.integers(0, 25), ahead=st.integers(0, 6), slow=st.integers(1, 4))
@settings(max_examples=15)
def test_tasks_are_drawn_only_a_little_ahead_of_results(
    doublers: WorkerPool, tasks: int, ahead: int, slow: int
) -> None:
    """At most workers + ahead tasks are out, so that a slow consumer holds up the reading of files."""
    drawn = given_back = 0

    def source() -> Iterator[tuple[tuple[int], int]]:
        nonlocal drawn
        for n in range(tasks):
            drawn += 1
            assert drawn - given_back <= 3 + ahead
            yield (3 * slow * n,), n

    for result, n in doublers.map(source(), ahead=ahead):
        assert (result, n) == (6 * slow * given_back, given_back)
        given_back += 1
    assert drawn == given_back == tasks


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("exit", "crashed"), ("kill", "signal 9"), ("raise", "ran out of memory or crashed"), ("eat", "out of memory")],
)
def test_a_workers_death_is_the_result_of_its_task_alone(ending: str, reason: str) -> None:
    with WorkerPool(DEADLY, 2) as pool:
        results = [r for r, _ in pool.map(((n, ending if n in (1, 4) else ""), None) for n in range(7))]
    assert [r for r in results if not isinstance(r, WorkerDied)] == [0, 4, 6, 10, 12]
    assert isinstance(results[1], WorkerDied)
    assert isinstance(results[4], WorkerDied)
    assert reason in results[1].reason


def test_a_task_that_takes_too_long_is_given_up() -> None:
    with WorkerPool(DEADLY, 1, timeout=1.0) as pool:
        results = [r for r, _ in pool.map(((n, "sleep" if n == 1 else ""), None) for n in range(3))]
    assert results == [0, WorkerDied("took longer than 1 s"), 4]


def test_every_worker_dying_at_once_is_survived() -> None:
    with WorkerPool(DEADLY, 2) as pool:
        assert all(isinstance(r, WorkerDied) for r, _ in pool.map(((n, "exit"), None) for n in range(4)))
        assert pool.run(4, "") == 8


def test_a_worker_is_another_process_with_one_thread() -> None:
    with WorkerPool("tests.lake.worker_functions:environment", 1) as pool:
        threads, process = pool.run()
    assert threads == "1"
    assert process != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
