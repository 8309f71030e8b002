"""One fault at a time, at every place where it can happen: strace makes the K-th call of a kind fail, or kills there.

The first run is only watched, to learn how many calls of each kind there are; a point is (call, fault, K). K counts in
each thread by itself, so that one point may hit several threads.
"""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.crash import trace
from tests.crash.service import ROOT
from tests.crash.subject import Talk

CALLS = (
    "openat", "pread64", "write", "writev", "pwrite64", "fdatasync", "fsync", "syncfs", "ftruncate", "fallocate",
    "mkdir", "renameat", "renameat2", "rename", "link", "linkat", "unlink", "unlinkat",
)  # fmt: skip
FAULTS = ("error=ENOSPC", "error=EIO", "signal=SIGKILL")
HANG_SECONDS = 30.0  # without a fault it takes less than one; the machine may be loaded


@dataclass(frozen=True)
class Point:
    call: str
    fault: str
    number: int

    def __str__(self) -> str:
        return f"{self.fault.partition('=')[2]} at {self.call} number {self.number}"


@dataclass
class Outcome:
    """What the subject reported under a fault. `hung`: it did not end in time and was killed."""

    acked: dict[str, list[str]] = field(default_factory=dict)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    drained: bool = False
    unopened: str | None = None
    hung: bool = False
    code: int | None = None
    injected: int = 0


class Subject:
    """The process of `subject.py`. Use as a context manager."""

    def __init__(self, work: str, folder: Path) -> None:
        self._folder = folder
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.subject", work, str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )
        self._end = ours
        self._talk = Talk(ours)

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end.close()
        self._process.wait(10)

    def points(self, target: Path) -> list[Point]:
        """Every point of a run on `target`, by watching one without a fault."""
        log = self._folder / "watched"
        outcome = self.run(target, None, log)
        assert not outcome.hung
        counts = Counter((c.pid, c.name) for c in trace.read(log.read_text().splitlines()))
        most = {call: max((n for (_, name), n in counts.items() if name == call), default=0) for call in CALLS}
        return [Point(call, fault, k + 1) for call in CALLS for fault in FAULTS for k in range(most[call])]

    def run(
        self,
        target: Path,
        point: Point | None,
        log: Path | None = None,
        before: Callable[[int], None] = lambda pid: None,
    ) -> Outcome:
        """One run on `target` with the point's fault; `before(its pid)` is done when it is about to work."""
        self._end.settimeout(30.0)
        self._talk.say(str(target))
        ready, pid = self._talk.hear()
        assert ready == "ready"
        log = log or self._folder / "faulted"
        log.unlink(missing_ok=True)
        tracer = self._trace(pid, point, log)
        before(pid)
        outcome = Outcome()
        self._talk.say("go")
        self._end.settimeout(HANG_SECONDS)
        try:
            self._listen(outcome)
        except TimeoutError:
            outcome.hung = True
            subprocess.run(["kill", "-9", str(pid)], check=False)
            self._end.settimeout(30.0)
            self._listen(outcome)
        tracer.wait(10)
        outcome.injected = log.read_text().count("(INJECTED)") + (outcome.code == -signal.SIGKILL)
        return outcome

    def _trace(self, pid: int, point: Point | None, log: Path) -> subprocess.Popen[bytes]:
        assert trace.STRACE is not None
        words = [trace.STRACE, "-f", "-q", "-y", "-p", str(pid), "-o", str(log)]
        if point is None:
            words += ["-e", f"trace={','.join(f'?{call}' for call in CALLS)}"]
        else:
            words += ["-e", f"trace={point.call}", "-e", f"inject={point.call}:{point.fault}:when={point.number}"]
        tracer = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not _traced(pid):
            assert tracer.poll() is None, "strace could not attach"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return tracer

    def _listen(self, outcome: Outcome) -> None:
        while True:
            word, *rest = self._talk.hear()
            if word == "ended":
                (outcome.code,) = rest
                return
            _note(outcome, word, rest)


def _note(outcome: Outcome, word: str, rest: list[Any]) -> None:
    if word == "acked":
        outcome.acked[rest[0]] = rest[1]
    elif word in ("failed", "unclosed"):
        outcome.failed.append((rest[0], rest[-2], rest[-1]))
    elif word == "unopened":
        outcome.unopened = rest[0]
        outcome.failed.append(("", rest[0], rest[1]))
    elif word == "drained":
        outcome.drained = True


def _traced(pid: int) -> bool:
    """Whether every thread of the process has a tracer."""
    calls = [
        re.search(r"TracerPid:\t(\d+)", (task / "status").read_text()) for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return all(match is not None and match[1] != "0" for match in calls)


def sample(points: Iterable[Point], count: int, seed: int) -> list[Point]:
    """About `count` of the points: of every call and fault the first, then others at random."""
    points = list(points)
    if count >= len(points):
        return points
    first = [p for p in points if p.number == 1]
    rest = [p for p in points if p.number > 1]
    random.Random(seed).shuffle(rest)
    random.Random(seed).shuffle(first)
    return (first + rest)[:count]
