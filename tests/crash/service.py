"""Runs the real service as a subprocess that a test can wait for, query, kill and stop."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests import forks
from tests.forks import Forked

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"^lakeloop listens on http://127\.0\.0\.1:(\d+)$", re.M)
START_SECONDS = 60.0
_numbers = itertools.count()


class NotReady(AssertionError):
    """The server ended or did not report that it is ready; the message ends with its output."""


class Service:
    """`lakeloop serve --no-ui` on a free port, leader of a process group of its own; `around` goes before it.

    With `ui` the app is there, too. Without `around` it is forked from a process that has imported it, which costs a
    third of a start, unless `forked` is False.
    """

    process: subprocess.Popen[bytes] | Forked

    def __init__(
        self,
        lake: Path,
        options: Sequence[str] = (),
        around: Sequence[str] = (),
        ui: bool = False,
        forked: bool = True,
    ) -> None:
        self.lake = lake
        self.spool = lake / "spool"
        self.port = 0
        # Of its own: two servers of one lake would each take the other's word that it answers.
        self.log = lake.parent / f"{lake.name}.{next(_numbers)}.log"
        words = ["serve", "--lake", str(lake), *([] if ui else ["--no-ui"]), "--port", "0", *options]
        if forked and not around:
            self.process = Forked(forks.command, tuple(words), self.log)
        else:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [*around, sys.executable, "-m", "search_app.cli.main", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    start_new_session=True,
                )
        self.began = time.monotonic()

    async def ready(self, seconds: float = START_SECONDS) -> Service:
        """Waits until the server is ready and `port` is known. Raises NotReady."""
        while True:
            match_ = READY.search(self.output())
            if match_:
                self.port = int(match_[1])
                return self
            if self.process.poll() is not None or time.monotonic() - self.began > seconds:
                self.kill()
                raise NotReady(f"the server ended with {self.process.returncode}: {self.output()[-2000:]}")
            await asyncio.sleep(0.01)

    def output(self) -> str:
        """The server's output to stderr so far."""
        return self.log.read_text(errors="replace")

    def drainer(self) -> int | None:
        """The process id of its drainer, when one lives."""
        for child in self._children():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if "lake.upkeep.drainer" in child.cmdline():
                    return int(child.pid)
        return None

    def rss(self) -> int:
        """Resident bytes of the server itself, without its children."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def kill(self, whole_group: bool = True) -> None:
        """SIGKILL to the server, with everything it has started or alone; returns when they are gone."""
        others = self._children() if whole_group else []
        with suppress(ProcessLookupError):
            if whole_group:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        psutil.wait_procs(others, timeout=10)

    def _children(self) -> list[psutil.Process]:
        try:
            return list(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    async def stop(self, seconds: float = 20.0) -> float:
        """SIGTERM; returns the seconds it took to end. Raises TimeoutError."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        while self.process.poll() is None:
            if time.monotonic() - started > seconds:
                self.kill()
                raise TimeoutError(f"the server did not end within {seconds:g} s of SIGTERM: {self.output()[-2000:]}")
            await asyncio.sleep(0.01)
        return time.monotonic() - started


def holder(lock: Path) -> int | None:
    """The process that holds a flock on the file, as the kernel lists it: looking disturbs nobody."""
    try:
        inode = lock.stat().st_ino
    except FileNotFoundError:
        return None
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "FLOCK" in words and "->" not in words and words[5].rpartition(":")[2] == str(inode):
            return int(words[4])
    return None


async def wait_until_held(lock: Path, seconds: float, by: int | None = None) -> bool:
    """Waits until somebody (the process `by`) holds the lock; false when nobody did for `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid = holder(lock)
        if pid is not None and by in (None, pid):
            return True
        await asyncio.sleep(0.002)
    return False


def alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
