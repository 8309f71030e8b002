"""Processes a server keeps beside itself: the drainer, the embedder. Started again when they die, told when to end.

A child says what it does on stdout, one JSON object a line; its stdin is a pipe that ends with the server, however the
server ends. It knows nothing of what children do.
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
# A child that lived this long is started again at once.
HEALTHY_SECONDS = 60.0
# Requests that wait come before everything a child does.
NICENESS = 10


class Child:
    """One process, for as long as the server lives. `heard` is called with each line it says, on a thread."""

    def __init__(self, name: str, command: Sequence[str], heard: Callable[[dict[str, Any]], None]) -> None:
        self.name = name
        self._command = list(command)
        self._heard = heard
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"keep {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Asks it to end (SIGTERM), and ends it when it takes longer."""
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
                end = f"ended with code {self._live()}"
            except OSError as error:  # no process or memory to be had
                end = f"could not be started ({error})"
            if self._ending.is_set():
                return
            if time.monotonic() - started > HEALTHY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            sys.stderr.write(f"the {self.name} {end}; it starts again in {backoff:g} s\n")
            self._ending.wait(backoff)
            backoff = min(MOST_BACKOFF_SECONDS, 2 * backoff)

    def _live(self) -> int | None:
        with self._lock:
            if self._ending.is_set():
                return None
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            # At once, before it has threads: each has a priority of its own, inherited from the one that starts it.
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
        with self._process as process:  # and then closes its pipes
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    said = json.loads(line)
                except ValueError:
                    said = None
                if isinstance(said, dict):
                    if "error" in said:
                        sys.stderr.write(f"the {self.name}: {said['error']}\n")
                    self._heard(said)
                else:  # not for us, but for somebody
                    sys.stderr.buffer.write(line)
        return process.returncode
