"""An attempt of a job in this process: its heartbeat and progress, its end as a row, and a request to cancel it.

The heartbeat is a thread, so work that does not report anything is alive as long as its process is.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lake.access import audit
from lake.errors import LakeloopError
from lake.jobs import live_state, record
from lake.jobs.job import Job, Starter
from lake.jobs.live_state import BEAT_SECONDS, Claim, LiveState, Progress

if TYPE_CHECKING:
    from lake.storage.store import Lake

# Progress is written at most this often, and a request to cancel is seen within it.
LOOK_SECONDS = 0.25
# Work that does not end within this time of a request to cancel is ended.
CANCEL_SECONDS = 10.0

Display = Callable[[Progress], None]


class Work:
    """What the function of a kind reports to while it works; this one keeps no record."""

    def __init__(self, lake: Lake, by: Starter, display: Display | None = None) -> None:
        self.lake = lake
        self.by = by
        self.made: dict[str, Any] = {}  # what an earlier attempt of the same job noted
        self._display = display
        self._progress = Progress()

    def progress(self, done: float, total: float | None = None, unit: str = "", stage: str = "", **facts: Any) -> None:
        """Sets the progress: `done` of `total` units, the stage in words, other plain values. Costs no commit."""
        self._progress = Progress(done, total, unit, stage, facts)
        if self._display is not None:
            self._display(self._progress)

    def counter(self, unit: str, total: int | None = None, stage: str = "") -> Callable[[int], None]:
        """A function for work that reports how much it has just done."""
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            self.progress(done, total, unit, stage)

        self.progress(0, total, unit, stage)
        return add

    def note(self, **made: Any) -> None:
        """Records what the work has made so far, for another attempt to continue it. One commit."""
        self.made |= made

    def log(self, text: str) -> None:
        """Writes a line on stderr: the terminal of a command, or the job's log."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def audit(self, action: str, target: str | None, detail: dict[str, Any] | None = None) -> None:
        """Writes a row of the audit log in the name of who started the work. On a read-only lake it only says so."""
        who = {"user": self.by.user, "key_id": self.by.key_id}
        if not audit.record_if_writable(self.lake, action, target, **who, detail=detail):
            self.log(f"lakeloop: the lake can only be read: {action} is not in its audit log")


class RunningJob(Work):
    """Use it as a context manager around the work, in the main thread. It takes over the claim and releases it.

    It records that the job runs and, at the end, done with `result`, failed with the error, or cancelled if somebody
    asked for that or the work was interrupted. Errors go on to the caller. `display` gets each new progress.
    """

    def __init__(
        self, lake: Lake, job: Job, claim: Claim, display: Display | None = None, live: LiveState | None = None
    ) -> None:
        super().__init__(lake, job.starter, display)
        self.job = job
        self.made = dict(job.result or {})
        self.result: dict[str, Any] = {}
        self.cancelled_by: str | None = None
        self._claim = claim
        self._live = live or live_state.of(lake)
        self._notes = 0
        self._begun = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of job {job.id}", daemon=True)

    def note(self, **made: Any) -> None:
        super().note(**made)
        self._notes += 1
        self.job = record.noted(self.lake, self.job, self._notes, made)

    def begin(self) -> None:
        """Records that the job runs: what entering the block does, if it was not done before."""
        self.job = record.started(self.lake, self.job)
        self._begun = True

    def __enter__(self) -> RunningJob:
        if not self._begun:
            self.begin()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            record.ended(self.lake, self.job, "done", result=self.result)
        elif self.cancelled_by is not None:
            record.ended(self.lake, self.job, "cancelled", message=f"cancelled by {self.cancelled_by}")
        elif isinstance(error, KeyboardInterrupt):
            if not self.job.detached:  # a worker that is asked to end leaves its job to the next one
                record.ended(self.lake, self.job, "cancelled", message="interrupted")
        else:
            record.ended(self.lake, self.job, "failed", error=sentence(error))
        if not (isinstance(error, KeyboardInterrupt) and self.job.detached and self.cancelled_by is None):
            self._live.release(self._claim)
        self._live.close()

    def _beat(self) -> None:
        written: Progress | None = None
        beaten = 0.0
        while not self._stop.wait(LOOK_SECONDS if beaten else 0):
            now, progress = time.monotonic(), self._progress
            try:
                if progress is not written or now - beaten > BEAT_SECONDS:
                    mine, cancel = self._live.beat(self._claim, progress)
                    if not mine:
                        sys.stderr.write(f"another worker has job {self.job.id}; this one ends\n")
                        os._exit(3)
                    written, beaten = progress, now
                else:
                    cancel = self._live.cancel_request(self._claim)
            except OSError as error:  # a full disk must not end the work
                sys.stderr.write(f"the heartbeat of job {self.job.id} could not be written: {error}\n")
                beaten = now
                continue
            if cancel is not None:
                return self._cancel(cancel)

    def _cancel(self, by: str) -> None:
        """Interrupts the work, as Ctrl-C does; ends the process if the work does not end."""
        self.cancelled_by = by
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        deadline = time.monotonic() + CANCEL_SECONDS
        while not self._stop.wait(BEAT_SECONDS):
            self._live.beat(self._claim, self._progress)
            if time.monotonic() > deadline:
                record.ended(self.lake, self.job, "cancelled", message=f"cancelled by {by}")
                self._live.release(self._claim)
                if os.getpgid(0) == os.getpid():
                    os.killpg(0, signal.SIGKILL)
                os._exit(130)


def sentence(error: BaseException) -> str:
    """Why a job failed, for a person."""
    if isinstance(error, MemoryError):
        return "it needed more memory than it may use"
    if isinstance(error, (LakeloopError, OSError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def foreground(lake: Lake, kind: str, arguments: Mapping[str, Any], display: Display | None = None) -> RunningJob:
    """A job that this process does now, in the name of its user. Raises OSError if it cannot be recorded."""
    live = live_state.of(lake)
    job = record.new(kind, arguments, Starter(user=audit.os_user()), detached=False)
    claim = live.claim(job.id, job.attempt, queued=False)
    assert claim is not None, "nobody knows the job yet"
    return RunningJob(lake, job, claim, display, live)
