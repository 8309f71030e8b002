"""Workers are processes: none is lost, none runs twice, a dead one is noticed and its job continued or told failed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from lake.jobs import current, live_state, record
from lake.jobs.job import Job, Starter
from lake.open_lake import OpenLake
from lake.storage.store import Lake
from search_app.jobs import supervisor, worker
from search_app.jobs.supervisor import Start, Supervisor
from tests.search_app.jobs import counting

ANNA = Starter(user="anna")
PATIENCE = 60.0
NOTICED = 15.0


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    counting.add_kinds()
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.02)


def until(lk: OpenLake, job: Job, reached: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + PATIENCE
    while not reached(found := current.get(lk, job.id)):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def finished(job: Job) -> bool:
    return job.finished and not job.died


def counted(job: Job) -> bool:
    return bool(job.progress and job.progress.done)


def worker_of(lk: OpenLake, job: Job) -> int:
    live = live_state.of(lk)
    try:
        return live.jobs()[job.id].process.pid
    finally:
        live.close()


@pytest.mark.parametrize(
    ("start", "count"), [(counting.InThread, 20), pytest.param(counting.start, 50, marks=pytest.mark.soak)]
)
def test_queued_at_once_each_job_runs_once_and_in_order(lk: OpenLake, tmp_path: Path, start: Start, count: int) -> None:
    """Two supervisors share the queue; at most one job runs at a time."""

    def submit(number: int) -> Job:
        return record.submit(lk, "count", {"file": str(tmp_path / "steps"), "to": 1}, ANNA)

    with ThreadPoolExecutor(4) as threads:
        jobs = [*threads.map(submit, range(count))]
    with counting.supervised(lk, start, start):
        for job in jobs:
            assert until(lk, job, finished).result == {"step": 1, "counted": 1}
    rows = lk.sql("SELECT job, state, changed_at FROM jobs WHERE result IS NULL OR state = 'done' ORDER BY changed_at")
    states = {(row["job"], row["state"]): row["changed_at"] for row in rows.to_pylist()}
    assert rows.num_rows == len(states) == 3 * count  # no state twice
    queue = sorted(jobs, key=lambda job: (job.created_at, job.id))
    assert all(states[a.id, "done"] < states[b.id, "running"] for a, b in pairwise(queue))
    assert (tmp_path / "steps").read_text() == "0\n" * count


def test_a_killed_workers_job_is_continued(lk: OpenLake, tmp_path: Path) -> None:
    file = tmp_path / "steps"
    job = record.submit(lk, "count", {"file": str(file), "to": 4, "pause": 0.25}, ANNA)
    with counting.supervised(lk):
        until(lk, job, counted)
        os.killpg(worker_of(lk, job), signal.SIGKILL)
        killed = time.monotonic()
        told = until(lk, job, lambda job: job.attempt == 2 or job.died)
        assert time.monotonic() - killed < NOTICED
        assert "the worker died" in f"{told.error} {told.message}"
        done = until(lk, job, finished)
    assert (done.state, done.attempt, done.result) == ("done", 2, {"step": 4, "counted": 4})
    assert sorted({*file.read_text().split()}) == ["0", "1", "2", "3"]
    message = lk.sql("SELECT message FROM jobs WHERE state = 'waiting' AND attempt = 2")["message"][0].as_py()
    assert message.endswith("; another worker continues its job")


def test_what_cannot_resume_is_said_to_have_failed(lk: OpenLake, tmp_path: Path) -> None:
    """By whoever lists the jobs, and by a supervisor that did not start the worker. Work that ignores a request to
    end is ended.
    """
    job = record.submit(lk, "count_once", {"file": str(tmp_path / "steps"), "fails": "stubborn"}, ANNA)
    with counting.supervised(lk):
        until(lk, job, counted)
    os.killpg(worker_of(lk, job), signal.SIGKILL)
    seen = until(lk, job, lambda job: job.died)
    assert (seen.state, seen.error) == ("failed", "the worker died")
    with counting.supervised(lk):
        assert until(lk, job, finished).error == "the worker died"
        again = record.retry(lk, job.id, ANNA)
        assert (again.state, again.attempt) == ("waiting", 2)
        until(lk, job, lambda job: job.state == "running")
        assert not record.cancel(lk, job.id, Starter(user="ben")).finished
        ended = until(lk, job, finished)
    assert (ended.state, ended.message) == ("cancelled", "cancelled by ben")


class Killed:
    """A worker that ended before it did anything."""

    def poll(self) -> int:
        return -signal.SIGKILL


def test_a_job_that_kills_every_worker_is_given_up_and_the_supervisor_ends(lk: OpenLake, tmp_path: Path) -> None:
    job = record.submit(lk, "count", {"file": str(tmp_path / "steps")}, ANNA)
    supervising = Supervisor(lk, lambda *_: Killed())
    live = live_state.of(lk)
    live.supervise("another")
    supervising.run(threading.Event(), 0.2)
    assert live.supervised()
    live.retire("another")
    assert not live.supervised()
    live.close()
    ended = current.get(lk, job.id)
    assert (ended.state, ended.attempt) == ("failed", supervisor.MOST_ATTEMPTS)
    assert ended.error == "the worker died: it was ended by SIGKILL"


def test_the_next_attempt_is_not_taken_for_the_last_one(lk: OpenLake, tmp_path: Path) -> None:
    """A worker gave its claim back and exits slowly; meanwhile another process took the job's next attempt."""
    job = record.submit(lk, "count", {"file": str(tmp_path / "steps")}, ANNA)
    supervising = Supervisor(lk, lambda *_: Killed())
    supervising.step()
    live = live_state.of(lk)
    live.release(live.jobs()[job.id].claim)
    record.ended(lk, record.started(lk, job), "failed", error="no")
    record.retry(lk, job.id, ANNA)
    again = live.claim(job.id, 2, queued=True)
    supervising.step()
    assert live.jobs()[job.id].claim == again
    live.close()
    assert current.get(lk, job.id).attempt == 2


def test_a_worker_without_its_claim_leaves_the_job_alone(lk: OpenLake, tmp_path: Path) -> None:
    job = record.submit(lk, "count", {"file": str(tmp_path / "steps")}, ANNA)
    live = live_state.of(lk)
    lost = live.claim(job.id, 1, queued=True)
    assert lost is not None
    live.release(lost)
    taken = live.claim(job.id, 1, queued=True)
    assert worker.work(lk, lost) == 0
    assert current.get(lk, job.id).state == "waiting"
    assert live.jobs()[job.id].claim == taken
    live.close()


def test_a_worker_that_cannot_be_started_is_tried_again(lk: OpenLake, tmp_path: Path) -> None:
    """A fault that passes ends no supervisor: without a server nobody would start another one."""
    job = record.submit(lk, "count", {"file": str(tmp_path / "steps")}, ANNA)
    claims = []

    def start(lake: Lake, claim: live_state.Claim, memory_gb: float | None, log: Path) -> counting.InThread:
        claims.append(claim)
        if len(claims) == 1:
            raise OSError("no process is left")
        return counting.InThread(lake, claim)

    with counting.supervised(lk, start):
        assert until(lk, job, finished).state == "done"
    assert len(claims) == 2


def test_a_fault_that_stays_ends_the_supervisor(lk: OpenLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FAILING_SECONDS", 0.1)
    record.submit(lk, "count", {"file": str(tmp_path / "steps")}, ANNA)

    def start(*_: object) -> counting.InThread:
        raise OSError("no process is left")

    with pytest.raises(OSError, match="no process is left"):
        Supervisor(lk, start).run(threading.Event())


def test_a_worker_has_a_limit_of_memory_a_low_priority_and_a_log(lk: OpenLake, tmp_path: Path) -> None:
    live_state.of(lk).set_limits(2, 1.5)
    jobs = [
        record.submit(lk, "count", {"file": str(tmp_path / "steps"), "fails": fails, "pause": 0.5}, ANNA)
        for fails in ("memory", "bug")
    ]
    with counting.supervised(lk):
        until(lk, jobs[0], counted)
        assert os.getpriority(os.PRIO_PROCESS, worker_of(lk, jobs[0])) == 10
        assert until(lk, jobs[0], finished).error == "it needed more memory than it may use"
        assert until(lk, jobs[1], finished).error == "ValueError: a bug"
    log = live_state.log_file(lk, jobs[1].id).read_text()
    assert log.startswith("counting to 1\n")
    assert "ValueError: a bug" in log


def test_a_log_keeps_its_newest_half(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"old" + b"." * supervisor.LONGEST_LOG + b"new")
    supervisor._shorten(log)
    assert log.stat().st_size == supervisor.LONGEST_LOG // 2
    assert log.read_bytes().endswith(b".new")
