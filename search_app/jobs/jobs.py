"""Long work of the app in a process of its own: minutes of it hold up no server, and it can be cancelled.

    job = jobs.Job("search_app.jobs.export_job", uri, {"name": "rainy@2", "format": "coco", "out": "/data/rainy"})
    job.share      0 to 1
    job.told       what else it says of itself while it works, by name
    job.made       at the end what came of it; or
    job.error      why nothing did
    job.cancel()

The module named is run as a program; it calls `work(main)`, and says on stdout, one JSON object a line, how far it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from lake.errors import LakeloopError

# Requests that wait come before it, as with every child of a server.
NICENESS = 10

# The error of a job that was cancelled.
CANCELLED = "cancelled"


class Tell(Protocol):
    """Called with a share of 0 to 1, and whatever else a page should know by now; plain JSON."""

    def __call__(self, share: float, **told: Any) -> None: ...


class Job:
    """One piece of work on its way: `module` run with the lake's URI and `how`, a JSON object."""

    def __init__(self, module: str, uri: str, how: dict[str, Any]) -> None:
        self.how = how
        self.share = 0.0
        self.told: dict[str, Any] = {}
        self.made: Any = None
        self.error: str | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, uri, json.dumps(how)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        self._listener = threading.Thread(target=self._listen, name=module, daemon=True)
        self._listener.start()

    @property
    def done(self) -> bool:
        return self.made is not None or self.error is not None

    def wait(self, seconds: float) -> None:
        """Returns at its end, or after this long."""
        self._listener.join(seconds)

    def cancel(self) -> None:
        """Ends it. What is not resumable is lost."""
        self._process.terminate()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                facts = json.loads(line)
                self.share = facts.get("share", self.share)
                self.told = self.told | facts.get("told", {})
                self.error = facts.get("error")
                self.made = facts.get("made")
        code = self._process.wait()
        if not self.done:
            self.error = CANCELLED if code == -15 else f"the process that did it ended with code {code}"


def work(main: Callable[[str, dict[str, Any], Tell], Any]) -> None:
    """The program's side: calls `main(uri, how, tell)` and says its progress and what it returned."""
    os.nice(NICENESS)
    said = -1

    def tell(share: float, **told: Any) -> None:
        nonlocal said
        if told or int(100 * share) > said:
            said = int(100 * share)
            _say(share=share, told=told)

    try:
        made = main(sys.argv[1], json.loads(sys.argv[2]), tell)
    except (LakeloopError, OSError) as error:
        _say(error=str(error))
    else:
        _say(made=made)


def _say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
