"""The process that starts waiting jobs and notices dead workers: `python -m search_app.jobs.supervisor URI`.

It runs while jobs wait or run, and for some seconds more: `ensure` starts one when there is none. Several may run on
one lake; a claim gives each job to one of them. It does no work itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from lake.jobs import current, live_state, processes, record
from lake.jobs.current import DIED
from lake.jobs.job import Job
from lake.jobs.live_state import Claim, LimitReached, LiveJob
from lake.without_pandas import start_without_pandas
from search_app.jobs import kinds

if TYPE_CHECKING:
    from pathlib import Path

    from lake.storage.store import Lake

LOOK_SECONDS = 0.5
# A server looks this often whether a job needs a supervisor.
WATCH_SECONDS = 2.0
IDLE_SECONDS = 10.0
FAILING_SECONDS = 60.0
MOST_AT_ONCE = 1
# A dead worker's job that can resume is taken over until it had this many attempts.
MOST_ATTEMPTS = 3
# A log keeps its newest half when it is longer.
LONGEST_LOG = 1 << 20
_log = logging.getLogger(__name__)


class Worker(Protocol):
    """A started process, as of `subprocess.Popen`."""

    def poll(self) -> int | None: ...


Start = Callable[["Lake", Claim, "float | None", "Path"], Worker]


def start_worker(lake: Lake, claim: Claim, memory_gb: float | None, log: Path) -> Worker:
    """Starts the worker of a claimed job, in a session of its own."""
    words = [lake.uri, claim.job, str(claim.attempt), claim.token, "" if memory_gb is None else repr(memory_gb)]
    return _spawn("search_app.jobs.worker", words, log)


class Supervisor:
    """`step` looks once. `start` starts a worker."""

    def __init__(self, lake: Lake, start: Start = start_worker) -> None:
        self.lake = lake
        self.live = live_state.of(lake)
        self.token = uuid.uuid4().hex
        self._start = start
        self._workers: dict[str, tuple[Claim, Worker]] = {}

    def run(self, stop: threading.Event, idle_seconds: float = IDLE_SECONDS) -> None:
        """Looks until `stop` is set or nothing has waited or run for `idle_seconds`.

        Raises what has failed at every look of `FAILING_SECONDS`.
        """
        busy = looked = time.monotonic()
        while not stop.is_set():
            try:
                self.live.supervise(self.token)
                waiting = self.step()
            except Exception as error:  # of the lake, or of starting a process: the next look may succeed
                if time.monotonic() - looked > FAILING_SECONDS:
                    raise
                _log.warning("the jobs of %s could not be looked after: %s", self.lake.uri, error)
                stop.wait(LOOK_SECONDS)
                continue
            looked = time.monotonic()
            if waiting:
                busy = looked
            elif time.monotonic() - busy > idle_seconds:
                self.live.retire(self.token)
                # A job that was recorded before the retirement has seen a supervisor, and started none.
                if not any(job.detached for job in current.unfinished(self.lake)):
                    return
                busy = time.monotonic()
            stop.wait(LOOK_SECONDS)
        self.live.retire(self.token)

    def step(self) -> bool:
        """Takes care of dead workers, then starts waiting jobs in order. Returns whether any job waits or runs here."""
        unfinished, live = current.unfinished(self.lake), self.live.jobs()
        exits = self._exits()
        jobs = [job for job in unfinished if job.detached]
        for job in unfinished:
            if not job.detached and job.died:
                self._end_command(job, live.get(job.id))
        for job in jobs:
            if job.died or (job.state == "waiting" and job.id in exits):
                self._bury(job, live.get(job.id), exits.get(job.id))
            elif job.id in live:
                _shorten(live_state.log_file(self.lake, job.id))
        limits = self.live.settings()
        for job in jobs:
            if job.state == "waiting" and job.id not in exits and not self._take(job, limits):
                break
        return bool(jobs)

    def _take(self, job: Job, limits: dict[str, float]) -> bool:
        """Starts the job unless another process has it. Returns False if enough jobs run already."""
        most = int(limits.get("most", MOST_AT_ONCE))
        try:
            claim = self.live.claim(job.id, job.attempt, queued=True, most=most)
        except LimitReached:
            return False
        if claim is None:
            return True
        try:
            fresh = current.get(self.lake, job.id)
            if (fresh.state, fresh.attempt) != ("waiting", job.attempt):  # another process has done it meanwhile
                self.live.release(claim)
                return True
            log = live_state.log_file(self.lake, job.id)
            self._workers[job.id] = claim, self._start(self.lake, claim, limits.get("memory_gb"), log)
        except Exception:
            self.live.release(claim)  # else nobody could start the job as long as this process runs
            raise
        return True

    def _exits(self) -> dict[str, str]:
        """How the workers ended that this process started and that left their claim behind, by job."""
        exits = {}
        for job_id, (claim, worker) in [*self._workers.items()]:
            code = worker.poll()
            if code is not None:
                del self._workers[job_id]
                exits[claim.token] = job_id, _ending(code)
        # The job may have another claim: that of its next attempt, which another process works on.
        left = {job.claim.token for job in self.live.jobs().values()} if exits else set()
        return dict(ended for token, ended in exits.items() if token in left)

    def _bury(self, job: Job, dead: LiveJob | None, how: str | None) -> None:
        """Ends an attempt whose worker died: its job is queued again if it can resume, else it has failed."""
        if dead is not None and dead.process != processes.own():  # a worker that never began has the claim of this one
            processes.kill(dead.process)  # it may hang
        reason = f"{DIED}: {how}" if how else DIED
        if dead is not None and dead.cancelled_by is not None:
            record.ended(self.lake, job, "cancelled", message=f"cancelled by {dead.cancelled_by}")
        elif job.kind in kinds.KINDS and kinds.KINDS[job.kind].resumes and job.takeovers + 1 < MOST_ATTEMPTS:
            record.begin_again(self.lake, job, f"{reason}; another worker continues its job", takeover=True)
        else:
            record.ended(self.lake, job, "failed", error=reason)
        if dead is not None:
            self.live.release(dead.claim)

    def _end_command(self, job: Job, dead: LiveJob | None) -> None:
        """Records that a command was killed. A command that is only stopped (Ctrl-Z) may go on."""
        if dead is None or processes.running(dead.process) is False:
            record.ended(self.lake, job, "failed", error="the command was killed")
            if dead is not None:
                self.live.release(dead.claim)


def ensure(lake: Lake) -> None:
    """Starts a supervisor of the lake if none runs. It outlives this process. Call it after a job was recorded.

    Where the lake's limit is no job at once, none is started: `serve --jobs 0` leaves the work to others.
    """
    live = live_state.of(lake)
    try:
        if not live.supervised() and live.settings().get("most", MOST_AT_ONCE):
            live.folder.mkdir(parents=True, exist_ok=True)
            _spawn("search_app.jobs.supervisor", [lake.uri], live.folder / "supervisor.log")
    finally:
        live.close()


async def watch(lake: Lake) -> None:
    """Sees to it that jobs that wait are started and dead workers are noticed, as long as a server runs."""
    while True:
        try:
            if await asyncio.to_thread(_unattended, lake):
                await asyncio.to_thread(ensure, lake)
        except Exception as error:  # object stores fail in many ways, and the next look may succeed
            _log.warning("the jobs of %s could not be looked at: %s", lake.uri, error)
        await asyncio.sleep(WATCH_SECONDS)


def _unattended(lake: Lake) -> bool:
    """Whether a job needs a supervisor."""
    return any(job.detached and (job.died or job.state == "waiting") for job in current.unfinished(lake))


def _spawn(module: str, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    _shorten(log)
    _spawned[:] = [process for process in _spawned if process.poll() is None]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _spawned.append(process)
    return process


_spawned: list[subprocess.Popen[bytes]] = []  # they may outlive this process, and are asked for their end while it runs


def _shorten(log: Path) -> None:
    with suppress(OSError):
        if log.stat().st_size > LONGEST_LOG:
            with open(log, "r+b") as file:
                file.seek(-LONGEST_LOG // 2, os.SEEK_END)
                newest = file.read()
                file.truncate(0)
                file.seek(0)
                file.write(newest)


def _ending(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"


def main(arguments: Any = None) -> int:
    import lake

    start_without_pandas()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Supervisor(lake.open(sys.argv[1])).run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
