"""A kind of job for tests: it counts, in a file and in its notes, and can fail in every way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lake.jobs import running_job
from lake.jobs.live_state import Claim
from lake.jobs.running_job import Work
from lake.open_lake import OpenLake
from lake.storage.store import Lake
from search_app.jobs import kinds, worker
from search_app.jobs.arguments import Argument
from search_app.jobs.kinds import Kind
from search_app.jobs.supervisor import IDLE_SECONDS, Start, Supervisor
from tests.forks import Forked

ARGUMENTS = {
    "file": Argument("text", "where each step adds a line"),
    "to": Argument("integer", "the number of steps"),
    "pause": Argument("number", "seconds of a step"),
    "fails": Argument("text", "how it fails", choices=("memory", "stubborn", "bug")),
}
KINDS = [
    Kind("count", "Counting", __name__, "read", ARGUMENTS, resumes=True),
    Kind("count_once", "Counting", __name__, "read", ARGUMENTS),
]


def add_kinds() -> None:
    kinds.KINDS.update((kind.name, kind) for kind in KINDS)


def count(lake: Lake, arguments: Mapping[str, Any], work: Work) -> int:
    path = Path(arguments["file"])
    work.log(f"counting to {arguments.get('to', 1)}")
    for step in range(work.made.get("step", 0), arguments.get("to", 1)):
        with path.open("a") as file:
            file.write(f"{step}\n")
        work.note(step=step + 1)
        work.progress(step + 1, arguments.get("to", 1), "steps")
        time.sleep(arguments.get("pause", 0))
    if arguments.get("fails") == "memory":
        bytearray(8 << 30)
    if arguments.get("fails") == "bug":
        raise ValueError("a bug")
    while arguments.get("fails") == "stubborn":
        with suppress(KeyboardInterrupt):
            time.sleep(60)
    return arguments.get("to", 1)


count_once = count


def count_check(lake: Lake, arguments: Mapping[str, Any]) -> None:
    pass


count_once_check = count_check


def count_result(report: int) -> dict[str, Any]:
    return {"counted": report}


count_once_result = count_result


def start(lake: Lake, claim: Claim, memory_gb: float | None, log: Path) -> Forked:
    """Starts a worker as the supervisor does, without a new interpreter."""
    return Forked(_work, (lake.uri, claim, memory_gb), log)


def _work(uri: str, claim: Claim, memory_gb: float | None) -> None:
    import sys

    from lake import open_lake

    add_kinds()
    running_job.CANCEL_SECONDS = 0.5
    worker.become_worker(memory_gb)
    sys.exit(worker.work(open_lake.open(uri), claim))


class InThread:
    """A worker in a thread of this process: what it does to the record is the same, and it costs no new process."""

    def __init__(self, lk: Lake, claim: Claim, *_: object) -> None:
        self._thread = threading.Thread(target=worker.work, args=(lk, claim), daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else 0


@contextmanager
def supervised(lk: OpenLake, *starts: Start, idle_seconds: float = IDLE_SECONDS) -> Iterator[None]:
    """Supervisors run meanwhile: one for each way to start a worker, by default one that starts processes."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=Supervisor(lk, start_worker).run, args=(stop, idle_seconds))
        for start_worker in starts or [start]
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
