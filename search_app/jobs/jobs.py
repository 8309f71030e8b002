"""Runs long work of the app in a process of its own, with progress and cancelling.

    job = jobs.Job("search_app.jobs.export_job", uri, {"name": "rainy@2", "format": "coco", "out": "/data/rainy"})
    job.share      progress, 0 to 1
    job.details    other facts that the program reports while it runs, by name
    job.result     what the program returned; None until it ends, or if it failed
    job.error      why it failed
    job.cancel()

The module runs as a program. It calls `work(main)` and writes its progress to stdout, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from lake.errors import LakeloopError

# Waiting requests come first, as with every child process of a server.
NICENESS = 10

# The error of a cancelled job.
CANCELLED = "cancelled"


class ReportProgress(Protocol):
    """Takes the share that is done, 0 to 1, and details for the page as plain JSON values."""

    def __call__(self, share: float, **details: Any) -> None: ...


class Job:
    """A running program: `module`, called with the lake's URI and `parameters`, a JSON object."""

    def __init__(self, module: str, uri: str, parameters: dict[str, Any]) -> None:
        self.parameters = parameters
        self.share = 0.0
        self.details: dict[str, Any] = {}
        self.result: Any = None
        self.error: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, uri, json.dumps(parameters)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._listener = threading.Thread(target=self._listen, name=module, daemon=True)
        self._listener.start()

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None

    def wait(self, seconds: float) -> None:
        """Returns when the job ends, at the latest after `seconds`."""
        self._listener.join(seconds)

    def cancel(self) -> None:
        """Ends the process. The docstring of each program says whether it can resume."""
        self._process.terminate()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                self.share = message.get("share", self.share)
                self.details = self.details | message.get("details", {})
                self.error = message.get("error")
                self.result = message.get("result")
        code = self._process.wait()
        if not self.done:
            self.error = CANCELLED if code == -signal.SIGTERM else f"the process ended with exit code {code}"


def work(main: Callable[[str, dict[str, Any], ReportProgress], Any]) -> None:
    """The program's side: calls `main(uri, parameters, progress)`, and writes its progress and its result."""
    os.nice(NICENESS)
    percent = -1

    def progress(share: float, **details: Any) -> None:
        nonlocal percent
        if details or int(100 * share) > percent:
            percent = int(100 * share)
            _write(share=share, details=details)

    try:
        result = main(sys.argv[1], json.loads(sys.argv[2]), progress)
    except (LakeloopError, OSError) as error:
        _write(error=str(error))
    else:
        _write(result=result)


def _write(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
