"""The process that embeds as images arrive: `lakeloop embed --watch`, the child of `serve --embed`.

As a child it runs at a lower priority than its server, prints its lag on stdout as one JSON object per line, and ends
when its server does. SIGTERM and SIGINT end it after it committed the computed vectors; a second signal ends it at
once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from embeddings.backfill.embedding_order import ORDERS, Order
from embeddings.backfill.watch import Lag, watch
from embeddings.embedders import embedder as embedders
from embeddings.embedders.engine import OPENVINO_PAYS_FROM, EngineName
from lake.access import audit
from lake.errors import LakeloopError
from lake.storage import opening
from lake.without_pandas import start_without_pandas

if TYPE_CHECKING:
    from pathlib import Path

    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import EmbedderRecord, Lake

# A watcher runs for long, so converting the network for a faster engine pays. One image at a time, efficientnet-lite0
# takes 7 ms with OpenVINO on two cores, and 20 to 60 ms with torch.
IMAGES = OPENVINO_PAYS_FROM
# The lag is printed for a person every minute, and when the oldest waiting image passes an age.
REPORT_SECONDS = 60.0
BEHIND_SECONDS = 30.0


def arguments(
    uri: str, *, embedder: str | None = None, order: Order = "oldest", engine: EngineName = "auto"
) -> list[str]:
    """The command that starts a server's watcher. Its stdin must stay open as long as the server runs."""
    command = [sys.executable, "-m", "embeddings.backfill.watch_process", uri, "--order", order, "--engine", engine]
    return command if embedder is None else [*command, "--embedder", embedder]


def run(
    lake: Lake,
    record: EmbedderRecord,
    model: Embedder,
    *,
    order: Order = "oldest",
    file: Path | None = None,
    report: Callable[[Lag], None],
    stop: threading.Event | None = None,
) -> None:
    """Runs `watch` until `stop` is set or a signal arrives; for a process's main thread.

    Failures that are tried again are printed on stderr. Raises what `watch` does.
    """
    audit.record(lake, "embed", record.name, detail={"watch": order})
    stop_event = stop or threading.Event()

    def on_signal(number: int, _: Any) -> None:
        stop_event.set()
        signal.signal(number, previous[signal.Signals(number)])

    handled = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, on_signal) for number in handled}
    try:
        watch(lake, record, model, order=order, stop=stop_event, report=report, warn=_warn, file=file)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def print_json(lag: Lag) -> None:
    """Prints the lag as one line on stdout."""
    try:
        sys.stdout.write(json.dumps(asdict(lag)) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads it any more
        os._exit(0)


class LagPrinter:
    """Prints the lag for a person on stderr: first, once a minute, and when the watcher falls behind or catches up."""

    def __init__(self) -> None:
        self._printed_at = float("-inf")
        self._embedded = 0
        self._behind = False

    def __call__(self, lag: Lag) -> None:
        self._embedded += lag.embedded
        behind = lag.oldest_seconds > BEHIND_SECONDS
        if behind == self._behind and time.monotonic() - self._printed_at < REPORT_SECONDS:
            return
        waits = f"{lag.waiting:,} wait" + (f", the oldest for {lag.oldest_seconds:,.0f} s" if lag.waiting else "")
        failed = f"; {lag.failed:,} failed" if lag.failed else ""
        sys.stderr.write(f"embedded {self._embedded:,}; {waits}{failed}\n")
        self._printed_at, self._embedded, self._behind = time.monotonic(), 0, behind


def _warn(message: str) -> None:
    sys.stderr.write(f"lakeloop: embedding: {message}\n")
    sys.stderr.flush()


def _watch_parent(stop: threading.Event) -> None:
    # Not through sys.stdin: a thread that waits in it would make the interpreter abort at its end.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


def main() -> int:
    parser = argparse.ArgumentParser(prog="embeddings.backfill.watch_process")
    parser.add_argument("uri")
    parser.add_argument("--embedder")
    parser.add_argument("--order", choices=ORDERS, default="oldest")
    parser.add_argument("--engine", choices=("auto", "torch", "openvino"), default="auto")
    a = parser.parse_args()
    start_without_pandas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    stop = threading.Event()
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    try:
        lake = opening.open(a.uri)
        record = embedders.record_of(lake, a.embedder)
        model = embedders.for_lake(lake, record, engine=a.engine, images=IMAGES)
        run(lake, record, model, order=a.order, report=print_json, stop=stop)
    except LakeloopError as error:
        _warn(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
