"""Runs the server's child processes: restarts them when they die, ends them with the server.

A child reports on stdout, one JSON object a line. Its stdin is a pipe that closes with the server, however the server
ends. The module knows nothing of the children's work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

FIRST_BACKOFF_SECONDS = 0.5
MOST_BACKOFF_SECONDS = 30.0
# After a child lived this long, the pause before its restart is short again.
HEALTHY_SECONDS = 60.0
# Waiting requests have priority over the work of children.
NICENESS = 10


class Child:
    """One child process. `on_line` is called with each JSON object it prints, on a thread."""

    def __init__(self, name: str, command: Sequence[str], on_line: Callable[[dict[str, Any]], None]) -> None:
        self.name = name
        self._command = list(command)
        self._on_line = on_line
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"keep {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Asks the process to end (SIGTERM) and kills it after `seconds`."""
        with self._lock:
            self._ending.set()
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._thread.join(1.0)

    def _keep(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while not self._ending.is_set():
            started = time.monotonic()
            try:
                end = f"ended with code {self._run()}"
            except OSError as error:  # no more processes or memory
                end = f"could not be started ({error})"
            if self._ending.is_set():
                return
            if time.monotonic() - started > HEALTHY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            sys.stderr.write(f"the {self.name} {end}; it starts again in {backoff:g} s\n")
            self._ending.wait(backoff)
            backoff = min(MOST_BACKOFF_SECONDS, 2 * backoff)

    def _run(self) -> int | None:
        with self._lock:
            if self._ending.is_set():
                return None
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            # At once, before it has threads: each thread inherits its priority from the thread that starts it.
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
        with self._process as process:  # and then closes its pipes
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    facts = json.loads(line)
                except ValueError:
                    facts = None
                if isinstance(facts, dict):
                    if "error" in facts:
                        sys.stderr.write(f"the {self.name}: {facts['error']}\n")
                    self._on_line(facts)
                else:  # not for the server: pass it on to the operator
                    sys.stderr.buffer.write(line)
        return process.returncode
