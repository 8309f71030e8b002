"""A pool of workers returns results in order, takes a bounded number of tasks, and outlives its workers."""

import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.images import messages
from lake.images.workers import WorkerDied, WorkerPool
from tests.lake.worker_functions import Code

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


def test_an_answer_is_never_run(tmp_path: Path) -> None:
    """A worker that a hostile image has taken over answers with code, by the pool's own means or past them."""
    ran = tmp_path / "ran"
    code = pickle.dumps(Code(str(ran)))
    with WorkerPool("tests.lake.worker_functions:double_or_answer_with_code", 1) as pool:
        results = [result for result, _ in pool.map(((n, str(ran) if n == 1 else ""), None) for n in range(3))]
    assert (results[0], results[2]) == (0, 4)
    assert isinstance(results[1], WorkerDied)
    with WorkerPool("tests.lake.worker_functions:double_or_write", 1, timeout=2) as pool:
        result = pool.run(1, struct.pack("!i", len(code)) + code)  # the frame of multiprocessing's pipes
    assert isinstance(result, WorkerDied)
    assert not ran.exists()


HEAD = messages.HEAD.pack


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (HEAD(1 << 40, 2), "no valid answer"),
        (HEAD(messages.HEAD.size + 4, 1 << 40), "no valid answer"),
        (HEAD(1, 0), "no valid answer"),
        (HEAD(messages.HEAD.size + 3, 3) + b'"2"', "no valid answer"),
        (HEAD(messages.HEAD.size + 100, 10) + b"1234", "took longer than 1 s"),
    ],
    ids=["huge", "huge structure", "smaller than its head", "another type", "half of it"],
)
def test_a_worker_that_answers_with_something_else_is_replaced(message: bytes, reason: str) -> None:
    with WorkerPool("tests.lake.worker_functions:double_or_write", 1, timeout=1.0) as pool:
        died = pool.run(1, message)
        assert isinstance(died, WorkerDied)
        assert reason in died.reason
        assert pool.run(3, b"") == 6


def test_a_worker_that_reads_no_task_does_not_hold_the_pool() -> None:
    """It answers, and then takes nothing: the next task, more than the pipe holds, goes to another worker."""
    message = b"".join(messages.pack(2))
    with WorkerPool("tests.lake.worker_functions:double_or_write", 1, timeout=1.0) as pool:
        assert pool.run(1, message) == 2
        assert isinstance(pool.run(1, bytes(4 << 20)), WorkerDied)
        assert pool.run(3, b"") == 6
