"""The demo's live stream: sends the newest solar cells to a running server through `lake.client`, two a second.

The server uses `Replay`, which starts `python -m search_app.demo.replay URL LAKE` as a process. The stream begins when
somebody opens the Overview, or after a minute. If it is interrupted, it resumes at the next start. At its end it stores
the labels of the person who checks and clusters all images.
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
from search_app.demo.stream import DemoEvent
from search_app.server.child_processes import NICENESS

if TYPE_CHECKING:
    from lake.client import Refusal
    from lake.storage.store import Lake

PER_SECOND = 2.0
LONGEST_PAUSE_SECONDS = 1.5  # between two cells
VIEWER_SECONDS = 60.0
LOOK_SECONDS = 0.5
# For draining and embedding sixty cells beside everything else that runs.
PATIENCE_SECONDS = 600.0


class Replay:
    """A context for the life of the server. `start` begins the stream, unless no events are pending."""

    def __init__(self, lake: str) -> None:
        self._lake = lake
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, url: str) -> None:
        if stream.pending(Path(self._lake)):
            command = [sys.executable, "-m", "search_app.demo.replay", url, self._lake]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # this ends the process
            self._process.wait()


def send(url: str, events: Sequence[DemoEvent], per_second: float = PER_SECOND) -> list[Refusal]:
    """Sends the events that the server at `url` does not have yet, at a slow pace. Returns the refused events.

    Raises OSError if the server does not respond.
    """
    pace = random.Random(0)
    refused: list[Refusal] = []
    client = Client(url, spill=None, linger=0.02, on_refused=refused.append)
    for event in events:
        if _stored(url, event):
            continue
        if event.kind == "feedback":
            client.feedback(**event.event)
        else:
            client.log(event.data(), **event.event)
        time.sleep(min(LONGEST_PAUSE_SECONDS, pace.expovariate(per_second)))
    if not client.close(timeout=30.0):
        raise OSError(client.stats().last_error)
    return refused


def _stored(url: str, event: DemoEvent) -> bool:
    """Whether the server has the event. Sending it again would add nothing, but take time."""
    try:
        with urllib.request.urlopen(f"{url}/v1/predictions/{event.id}", timeout=10) as response:
            return event.kind == "prediction" or bool(json.load(response)["reviews"])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise


def _wait_for_viewer(url: str) -> None:
    """Waits until a page requests the arrivals."""
    deadline = time.monotonic() + VIEWER_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
            if b'route="/v1/arrivals"' in response.read():
                return
        time.sleep(LOOK_SECONDS)


def _wait_until_embedded(lake: Lake, events: Sequence[DemoEvent]) -> bool:
    from lake.storage.missing_vectors import MissingVectors

    names = [event.id for event in events if event.kind == "prediction"]
    missing = MissingVectors(lake, lake.embedders()[0].column)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        stored = lake.known("samples", "prediction_id", names)
        if len(stored) == len(names) and not missing.look().counts()["waiting"]:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _end_with_the_server() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)  # the next start sends the rest


def main() -> int:
    url, folder = sys.argv[1], Path(sys.argv[2])
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    events = stream.pending(folder)
    try:
        _wait_for_viewer(url)
        refused = send(url, events)
    except OSError as error:
        sys.stderr.write(f"the live stream stopped: {error}; start the demo again to resume it\n")
        return 3
    for refusal in refused:
        sys.stderr.write(f"the server refused {refusal.kind} {refusal.id}: {refusal.reason}\n")
    from lake.storage import opening

    lake = opening.open(str(folder))
    if not _wait_until_embedded(lake, events):
        sys.stderr.write("the new cells have no vectors yet; start the demo again to finish\n")
        return 3
    stream.finish(lake, folder)
    sys.stderr.write(f"the last {len(events) - 1} cells have arrived; Drill-down has new clusters of all cells\n")
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
