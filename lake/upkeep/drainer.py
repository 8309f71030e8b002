"""The process that drains a spool for a server: looks often, drains in big steps, keeps the lake in shape.

A process of its own, because decoding and commits would take the interpreter
from requests that wait for their acknowledgement. It says what it did on stdout, one JSON object a line. It ends when
its server does: at SIGTERM after draining what it can in the time it is given, or at the end of its stdin at once.
What it leaves is safe in the spool.
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
from lake.spool.drain import Drainer, DrainReport, Sampling
from lake.spool.spool import Spool
from lake.storage import opening
from lake.upkeep import maintenance

if TYPE_CHECKING:
    from lake.storage.store import Lake

# An event is searchable within five seconds of its acknowledgement; a commit a second is what that costs at a trickle.
WAIT_SECONDS = 1.0
FULL_EVENTS = 512
POLL_SECONDS = 0.2
# So often it looks although nothing waits: for segments that were in use when their events were drained.
TIDY_SECONDS = 5.0
UPKEEP_SECONDS = 60.0
UPKEEP_MOST_SECONDS = 120.0
MOST_BACKOFF_SECONDS = 15.0
# What another try may cure: the disk, the network, another writer.
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
    asked, orphaned = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server; it says when to end
    threading.Thread(target=_watch_parent, args=(asked, orphaned), daemon=True).start()
    spool = Spool(a.spool)
    with Drainer(opening.open(a.uri), spool, Sampling(a.keep_share, a.keep_below), a.workers) as drainer:
        threading.Thread(target=_upkeep, args=(drainer.lake, asked), daemon=True).start()
        _run(drainer, asked)
        if not orphaned.is_set():
            _finish(drainer, time.monotonic() + a.last_seconds)
    spool.close()
    return 0


def _run(drainer: Drainer, asked: threading.Event) -> None:
    backoff = tidied = 0.0
    while not asked.wait(backoff or POLL_SECONDS):
        try:
            if due(drainer.spool) or time.monotonic() - tidied > TIDY_SECONDS:
                tidied = time.monotonic()
                while not asked.is_set() and _said(drainer.batch()):
                    pass
            backoff = 0.0
        except TRANSIENT as error:
            backoff = min(MOST_BACKOFF_SECONDS, max(0.5, 2 * backoff))
            _say({"error": str(error), "again_in": backoff})


def _upkeep(lake: Lake, asked: threading.Event) -> None:
    """Thousands of small commits a day are merged while draining goes on."""
    while not asked.wait(UPKEEP_SECONDS):
        try:
            if maintenance.due(lake):
                maintenance.maintain(lake, thorough=False, seconds=UPKEEP_MOST_SECONDS, stop=asked.is_set)
        except LakeBusy:
            continue  # another process is at it
        except TRANSIENT as error:
            _say({"error": f"maintenance: {error}"})


def due(spool: Spool) -> bool:
    """Whether enough waits, or something for long enough."""
    depth = spool.depth()
    if depth.events == 0:
        return False
    return depth.age() >= WAIT_SECONDS or depth.events >= FULL_EVENTS


def _finish(drainer: Drainer, deadline: float) -> None:
    try:
        while time.monotonic() < deadline and _said(drainer.batch()):
            pass
    except TRANSIENT as error:
        _say({"error": str(error)})


def _said(report: DrainReport | None) -> bool:
    """Tells of a batch; whether there was one."""
    if report is None or not report.events:
        return False
    _say(report.as_dict())
    return True


def _say(facts: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)


def _watch_parent(asked: threading.Event, orphaned: threading.Event) -> None:
    # Not through sys.stdin: its lock, held by a thread that waits, ends the interpreter with an error.
    while os.read(0, 1024):
        pass
    orphaned.set()
    asked.set()


if __name__ == "__main__":
    sys.exit(main())
