"""The process that does one attempt of one job: `python -m search_app.jobs.worker URI JOB ATTEMPT TOKEN`.

A supervisor claims the job and starts it. It is in a session of its own, so it outlives the server, and it records the
end of the job itself. What it prints goes into the job's log.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from lake.errors import LakeloopError
from lake.jobs import current, live_state
from lake.jobs.live_state import Claim
from lake.jobs.running_job import RunningJob
from lake.without_pandas import start_without_pandas
from search_app.jobs import kinds

if TYPE_CHECKING:
    from lake.storage.store import Lake

# Requests that wait and commands of people come first.
NICENESS = 10


def work(lake: Lake, claim: Claim) -> int:
    """Does the attempt. Returns 0 if it is done or no longer wanted, 1 if it failed or was cancelled."""
    live = live_state.of(lake)
    mine, _ = live.beat(claim, live_state.Progress())  # from now on the claim is this process's
    job = current.get(lake, claim.job)
    # Its supervisor died and another one took the job, or it was cancelled between its choice and its claim.
    if not mine or job.state != "waiting" or job.attempt != claim.attempt:
        live.release(claim)
        return 0
    running = RunningJob(lake, job, claim, live=live)
    try:
        with running:
            try:
                kind = kinds.get(job.kind)
                running.result = kind.result(kind.run(lake, job.arguments, running))
            except BaseException as error:
                running.log(_report(error))  # before the end is recorded: whoever reads that it failed finds it
                raise
    except (Exception, KeyboardInterrupt):
        return 1
    return 0


def _report(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "ended on request"
    if isinstance(error, (LakeloopError, OSError)):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def become_worker(memory_gb: float | None) -> None:
    """Lowers this process's priority and limits the memory of it and of each process it starts."""
    os.nice(NICENESS)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if memory_gb is not None:
        # RLIMIT_AS counts what is only reserved, which for torch and DuckDB is many times what they use.
        limit = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # SIGTERM ends the work in order, and the job waits for the next worker; a request to cancel comes as SIGINT.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def main() -> int:
    uri, job, attempt, token, memory_gb = sys.argv[1:]
    become_worker(float(memory_gb) if memory_gb else None)
    logging.basicConfig(level=logging.WARNING)
    import lake

    start_without_pandas()
    return work(lake.open(uri), Claim(job, int(attempt), token, queued=True))


if __name__ == "__main__":
    sys.exit(main())
