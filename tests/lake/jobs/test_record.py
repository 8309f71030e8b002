"""The record of jobs: each change of state once, progress that costs no commit, claims that only one process gets."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lake.errors import BadInput
from lake.jobs import current, live_state, record, running_job
from lake.jobs.job import Job, Starter
from lake.open_lake import OpenLake
from lake.storage.store import Lake
from lake.upkeep import maintenance
from tests.conftest import MakeLake

ANNA, PEER = Starter(user="anna"), Starter(key_id="k1")


def seen_with(lk: OpenLake, running: running_job.RunningJob, done: int) -> Job:
    """The job as others see it, as soon as they see this progress."""
    deadline = time.monotonic() + 60
    while not ((seen := current.get(lk, running.job.id)).progress and seen.progress.done == done):
        assert time.monotonic() < deadline, seen
        time.sleep(0.02)
    return seen


def test_a_command_costs_two_commits_however_often_it_reports(lk: OpenLake) -> None:
    before = lk.version("jobs")
    with running_job.foreground(lk, "count", {"to": 200}) as job:
        began, during = time.thread_time(), lk.version("jobs")
        for done in range(200):
            job.progress(done, 200, "steps", "counting", epoch=done // 50)
            time.sleep(0.004)
        assert time.thread_time() - began < 1  # a processor could do two hundred a second
        assert lk.version("jobs") == during
        seen = seen_with(lk, job, 199)
        assert seen.progress is not None
        assert (seen.state, seen.progress.done, seen.progress.stage) == ("running", 199, "counting")
        assert seen.progress.facts == {"epoch": 3}
        assert seen.seconds is not None
        assert seen.seconds_left == pytest.approx(seen.seconds / 199, rel=0.5)
        job.result = {"sum": 7}
    assert lk.version("jobs") == before + 2
    ended = current.get(lk, job.job.id)
    assert (ended.state, ended.result, ended.progress) == ("done", {"sum": 7}, None)
    assert lk.sql("SELECT state FROM jobs ORDER BY changed_at")["state"].to_pylist() == ["running", "done"]


def test_the_view_says_what_the_list_says(lk: OpenLake) -> None:
    jobs = [record.submit(lk, "count", {"to": n}, ANNA) for n in range(3)]
    record.started(lk, jobs[1])
    record.ended(lk, jobs[1], "failed", error="no")
    record.retry(lk, jobs[1].id, PEER)
    record.cancel(lk, jobs[2].id, ANNA)
    listed = {job.id: (job.state, job.attempt, job.message) for job in current.list(lk)}
    assert [*listed] == [job.id for job in reversed(jobs)]
    assert listed[jobs[0].id] == ("waiting", 1, None)
    assert listed[jobs[1].id] == ("waiting", 2, "started again by key k1")
    assert listed[jobs[2].id] == ("cancelled", 1, "cancelled by anna")
    rows = lk.sql("SELECT job, state, attempt, message FROM jobs_current").to_pylist()
    assert {row["job"]: (row["state"], row["attempt"], row["message"]) for row in rows} == listed
    assert [place.id for place in current.places(lk)] == [*listed]
    assert [job.id for job in current.list(lk, states=["cancelled"], kinds=["count"])] == [jobs[2].id]


def test_the_list_is_the_same_after_maintenance(lk: OpenLake) -> None:
    """Also long arguments, which the list leaves out."""
    jobs = [record.submit(lk, "count", {"n": n, "long": "x" * 9_000 * (n % 2)}, ANNA) for n in range(6)]
    before = current.list(lk)
    assert [job.arguments for job in before[:2]] == [{}, {"n": 4, "long": ""}]
    maintenance.maintain(lk)
    record.started(lk, jobs[5])
    assert current.list(lk)[1:] == before[1:]
    assert (current.get(lk, jobs[5].id).state, current.get(lk, jobs[5].id).arguments) == ("running", jobs[5].arguments)


def test_an_attempt_ends_once(lk: OpenLake) -> None:
    job = record.started(lk, record.submit(lk, "count", {}, ANNA))
    assert record.ended(lk, job, "done", result={"n": 1})
    assert not record.ended(lk, job, "failed", error="too late")
    assert not record.begin_again(lk, job, "it died", takeover=True)
    assert current.get(lk, job.id[:6]).state == "done"
    with pytest.raises(BadInput, match="is done already"):
        record.cancel(lk, job.id, ANNA)
    with pytest.raises(BadInput, match="is done; only a failed or cancelled job"):
        record.retry(lk, job.id, ANNA)
    with pytest.raises(BadInput, match="no job 'xyz'; the lake has"):
        current.get(lk, "xyz")


def test_a_result_that_is_too_long_ends_the_job_too(lk: OpenLake) -> None:
    with running_job.foreground(lk, "count", {}) as job:
        job.note(step=1)
        job.result = {"lines": "x" * record.LONGEST_RESULT}
    ended = current.get(lk, job.job.id)
    assert (ended.state, ended.result, live_state.of(lk).jobs()) == ("failed", {"step": 1}, {})
    assert "its result has more than 1,048,576 bytes" in str(ended.error)


def test_the_same_request_is_one_job(lk: OpenLake) -> None:
    first = record.submit(lk, "count", {"to": 1}, PEER, request="r1")
    assert record.submit(lk, "count", {"to": 1}, PEER, request="r1") == first
    assert record.submit(lk, "count", {"to": 1}, ANNA, request="r1").id != first.id
    with pytest.raises(BadInput, match="another request: job " + first.id):
        record.submit(lk, "count", {"to": 2}, PEER, request="r1")
    with pytest.raises(BadInput, match="at most 65,536"):
        record.submit(lk, "count", {"to": "x" * 70_000}, PEER)


def test_of_many_that_claim_a_job_one_gets_it(lk: OpenLake) -> None:
    def take(number: int) -> object:
        live = live_state.of(lk)
        try:
            return live.claim(f"job{number % 5}", 1, queued=True)
        finally:
            live.close()

    with ThreadPoolExecutor(8) as threads:
        claims = [claim for claim in threads.map(take, range(40)) if claim is not None]
    assert len(claims) == 5
    live = live_state.of(lk)
    with pytest.raises(live_state.LimitReached):
        live.claim("job9", 1, queued=True, most=5)
    assert live.claim("job9", 1, queued=False, most=6) is not None
    live.close()


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_without_its_file_a_job_goes_on(lk: OpenLake, damage: str) -> None:
    with running_job.foreground(lk, "count", {}) as job:
        time.sleep(2 * running_job.LOOK_SECONDS)
        file = live_state.of(lk).folder / live_state.FILE
        if damage == "lost":
            for path in file.parent.glob(f"{file.name}*"):
                path.unlink()
        else:
            file.write_bytes(b"no database" * 1000)
        assert current.get(lk, job.job.id).state == "running"
        job.progress(3, 4)
        seen = seen_with(lk, job, 3)
        assert (seen.state, seen.progress and seen.progress.done) == ("running", 3)
    assert current.get(lk, job.job.id).state == "done"


def test_a_request_to_cancel_interrupts_the_work(lk: OpenLake) -> None:
    job = running_job.foreground(lk, "count", {})

    def work() -> None:
        threading.Timer(0.1, lambda: record.cancel(lk, job.job.id, ANNA)).start()
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt), job:
        work()
    ended = current.get(lk, job.job.id)
    assert (ended.state, ended.message) == ("cancelled", "cancelled by anna")


def test_a_job_that_ends_while_it_is_looked_at_is_not_dead(lk: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row says running when it is read, and its claim is gone when the heartbeats are read."""
    monkeypatch.setattr(live_state, "SILENT_SECONDS", 0.0)
    looks = (
        lambda name: current.get(lk, name).state,
        lambda name: current.list(lk, kinds=[name])[0].state,
        lambda name: current.places(lk, states=["failed"], kinds=[name]) or "done",
    )
    heartbeats = current._heartbeats
    for number, look in enumerate(looks):
        job = running_job.foreground(lk, f"count{number}", {})
        job.begin()

        def after_its_end(lake: Lake, rows: Any, job: running_job.RunningJob = job) -> Any:
            monkeypatch.setattr(current, "_heartbeats", heartbeats)
            with job:
                pass
            return heartbeats(lake, rows)

        monkeypatch.setattr(current, "_heartbeats", after_its_end)
        assert look(job.job.id if number == 0 else job.job.kind) == "done"


def test_an_error_is_the_jobs_and_the_callers(lk: OpenLake) -> None:
    for error, said in ((BadInput("no such slice"), "no such slice"), (ValueError("1"), "ValueError: 1")):
        with pytest.raises(type(error)), running_job.foreground(lk, "count", {}) as job:
            raise error
        assert (current.get(lk, job.job.id).state, current.get(lk, job.job.id).error) == ("failed", said)


def test_jobs_of_a_lake_of_the_release_before(make_lake: MakeLake) -> None:
    """A lake without the table gets it when it is opened."""
    import shutil

    import lake

    lk = make_lake()
    assert lk.folder is not None
    shutil.rmtree(lk.folder / "jobs.lance")
    lk.delete("migrations", "number = 8")
    assert current.list(lake.open(lk.uri)) == []
