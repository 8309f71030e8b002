"""The demo's live stream: the newest solar cells reach a running server through `lake.client`, two a second.

`Replay` is the server's side, which starts the process; `python -m search_app.demo.replay URL LAKE` is the process. It
begins once the Overview is open somewhere, so that whoever looks sees them arrive, or after a minute. Stopped anywhere
it goes on at the next start. It ends with a person's checks and with clusters of everything that came.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lake.client import Client
from search_app.demo import stream
from search_app.demo.stream import Saying
from search_app.server.child_processes import NICENESS

if TYPE_CHECKING:
    from lake.client import Refusal
    from lake.storage.store import Lake

PER_SECOND = 2.0
LONGEST_SECONDS = 1.5  # between two cells
WATCHER_SECONDS = 60.0
LOOK_SECONDS = 0.5
# For draining and embedding sixty cells behind everything else that goes on.
PATIENCE_SECONDS = 600.0


class Replay:
    """A context around the server's life, in which `start` may be called with its URL. Nothing to arrive: nothing."""

    def __init__(self, lake: str) -> None:
        self._lake = lake
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, url: str) -> None:
        if stream.kept(Path(self._lake)):
            command = [sys.executable, "-m", "search_app.demo.replay", url, self._lake]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # it ends with this
            self._process.wait()


def send(url: str, said: Sequence[Saying], per_second: float = PER_SECOND) -> list[Refusal]:
    """Says to the server at `url` what it does not know yet, at a person's pace; returns what it refused.

    Raises OSError when it does not answer.
    """
    pace = random.Random(0)
    refused: list[Refusal] = []
    client = Client(url, spill=None, linger=0.02, on_refused=refused.append)
    for one in said:
        if _known(url, one):
            continue
        if one.kind == "feedback":
            client.feedback(**one.event)
        else:
            client.log(one.data(), **one.event)
        time.sleep(min(LONGEST_SECONDS, pace.expovariate(per_second)))
    if not client.close(timeout=30.0):
        raise OSError(client.stats().last_error)
    return refused


def _known(url: str, one: Saying) -> bool:
    """Whether the server has it. Saying it again would add nothing, but take its time."""
    try:
        with urllib.request.urlopen(f"{url}/v1/predictions/{one.id}", timeout=10) as answer:
            return one.kind == "prediction" or bool(json.load(answer)["reviews"])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise


def _wait_for_a_watcher(url: str) -> None:
    """Until a page asks what arrives."""
    deadline = time.monotonic() + WATCHER_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            if b'route="/v1/arrivals"' in answer.read():
                return
        time.sleep(LOOK_SECONDS)


def _wait_until_embedded(lake: Lake, said: Sequence[Saying]) -> bool:
    from lake.storage.missing_vectors import MissingVectors

    names = [one.id for one in said if one.kind == "prediction"]
    missing = MissingVectors(lake, lake.embedders()[0].column)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        stored = lake.known("predictions", "prediction_id", names)
        if len(stored) == len(names) and not missing.look().counts()["waiting"]:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _end_with_the_server() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)  # what was not sent is sent next time


def main() -> int:
    url, place = sys.argv[1], Path(sys.argv[2])
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    said = stream.kept(place)
    try:
        _wait_for_a_watcher(url)
        refused = send(url, said)
    except OSError as error:
        sys.stderr.write(f"the live cells stopped: {error}; start the demo again to go on\n")
        return 3
    for one in refused:
        sys.stderr.write(f"the server refused {one.kind} {one.id}: {one.reason}\n")
    from lake.storage import opening

    lake = opening.open(str(place))
    if not _wait_until_embedded(lake, said):
        sys.stderr.write("the live cells wait for their vectors; start the demo again to go on\n")
        return 3
    stream.arrived(lake, place)
    sys.stderr.write(f"the last {len(said) - 1} cells have arrived; Drill-down has new clusters with all of them\n")
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
