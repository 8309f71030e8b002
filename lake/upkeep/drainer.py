"""The process that drains a server's spool: it looks often, drains in big batches, and maintains the lake.

It is a separate process, because decoding and commits would take the interpreter from requests that wait for their
acknowledgement. It reports on stdout, one JSON object a line. It ends with its server: at SIGTERM after draining for
some seconds more, or at once when its stdin closes. Events that remain are safe in the spool.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import LakeBusy, LakeloopError
from lake.spool.batch import DrainReport
from lake.spool.drain import Drainer, Sampling
from lake.spool.spool import Spool
from lake.storage import opening
from lake.upkeep import maintenance
from lake.without_pandas import start_without_pandas

if TYPE_CHECKING:
    from lake.storage.store import Lake

# An event is searchable within five seconds of its acknowledgement; a commit a second is what that costs at a trickle.
WAIT_SECONDS = 1.0
FULL_EVENTS = 512
POLL_SECONDS = 0.2
# It also looks this often when nothing waits: for segments that were in use when their events were drained.
TIDY_SECONDS = 5.0
UPKEEP_SECONDS = 60.0
UPKEEP_MOST_SECONDS = 120.0
MOST_BACKOFF_SECONDS = 15.0
# Errors that another try may cure: of the disk, the network, another writer.
TRANSIENT = (LakeloopError, OSError, MemoryError, sqlite3.Error)


def arguments(uri: str, spool: Path, sampling: Sampling, workers: int = 1) -> list[str]:
    """The command that starts a drainer."""
    words = [sys.executable, "-m", "lake.upkeep.drainer", uri, str(spool), "--workers", str(workers)]
    return [*words, "--keep-share", repr(sampling.share), "--keep-below", repr(sampling.below_confidence)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="lake.upkeep.drainer")
    parser.add_argument("uri")
    parser.add_argument("spool", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep-share", type=float, default=1.0)
    parser.add_argument("--keep-below", type=float, default=0.0)
    parser.add_argument("--last-seconds", type=float, default=4.0, help="of draining after SIGTERM")
    a = parser.parse_args()
    start_without_pandas()
    stop, orphaned = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then sends SIGTERM
    threading.Thread(target=_watch_parent, args=(stop, orphaned), daemon=True).start()
    spool = Spool(a.spool)
    with Drainer(opening.open(a.uri), spool, Sampling(a.keep_share, a.keep_below), a.workers) as drainer:
        threading.Thread(target=_upkeep, args=(drainer.lake, stop), daemon=True).start()
        _run(drainer, stop)
        if not orphaned.is_set():
            _finish(drainer, time.monotonic() + a.last_seconds)
    spool.close()
    return 0


def _run(drainer: Drainer, stop: threading.Event) -> None:
    backoff = tidied = 0.0
    while not stop.wait(backoff or POLL_SECONDS):
        try:
            if due(drainer.spool) or time.monotonic() - tidied > TIDY_SECONDS:
                tidied = time.monotonic()
                while not stop.is_set() and _reported(drainer.batch()):
                    pass
            backoff = 0.0
        except TRANSIENT as error:
            backoff = min(MOST_BACKOFF_SECONDS, max(0.5, 2 * backoff))
            _print({"error": str(error), "again_in": backoff})


def _upkeep(lake: Lake, stop: threading.Event) -> None:
    """Merges the thousands of small commits of a day while draining goes on."""
    while not stop.wait(UPKEEP_SECONDS):
        try:
            if maintenance.due(lake):
                maintenance.maintain(lake, thorough=False, seconds=UPKEEP_MOST_SECONDS, stop=stop.is_set)
        except LakeBusy:
            continue  # another process is maintaining the lake
        except TRANSIENT as error:
            _print({"error": f"maintenance: {error}"})


def due(spool: Spool) -> bool:
    """Whether enough events wait, or one has waited long enough."""
    depth = spool.depth()
    if depth.events == 0:
        return False
    return depth.age() >= WAIT_SECONDS or depth.events >= FULL_EVENTS


def _finish(drainer: Drainer, deadline: float) -> None:
    try:
        while time.monotonic() < deadline and _reported(drainer.batch()):
            pass
    except TRANSIENT as error:
        _print({"error": str(error)})


def _reported(report: DrainReport | None) -> bool:
    """Prints the report of a batch; returns whether there was one."""
    if report is None or not report.events:
        return False
    _print(report.as_dict())
    return True


def _print(facts: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the server is gone
        os._exit(0)


def _watch_parent(stop: threading.Event, orphaned: threading.Event) -> None:
    # Not through sys.stdin: its lock, held by a waiting thread, ends the interpreter with an error.
    while os.read(0, 1024):
        pass
    orphaned.set()
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
