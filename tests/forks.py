"""Processes forked from one that has imported the server and the app: the import is most of a start.

What runs is a process like any other: a session of its own, its output in a file, its work begun after the fork.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")


class Forked:
    """`function(*arguments)` in a forked process, with what Popen offers of it. Output goes to the end of `log`."""

    def __init__(self, function: Callable[..., object], arguments: tuple[Any, ...], log: Path) -> None:
        _context.set_forkserver_preload(["tests.preloaded"])  # for the first process
        log.touch()
        request = (function, arguments, str(log), dict(os.environ))
        self._process = _context.Process(target=_run, args=request)
        self._process.start()
        self.pid = int(self._process.pid or 0)
        while self.poll() is None and os.getpgid(self.pid) != self.pid:  # until then its group is not its own
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def command(*words: str) -> object:
    """`lakeloop WORDS...`, to its exit."""
    sys.argv = ["lakeloop", *words]
    from search_app.cli.main import entry

    return entry()


def _run(function: Callable[..., object], arguments: tuple[Any, ...], log: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    function(*arguments)
