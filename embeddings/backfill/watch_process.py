"""The process that keeps a lake embedded: `lakeloop embed --watch`, and the child that `lakeloop serve --embed` starts.

As a child it runs at a lower priority than its server, says its lag on stdout as one JSON object a line, and ends when
its server does. SIGTERM and SIGINT end it once what is computed is committed; a second one ends it at once.
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

if TYPE_CHECKING:
    from pathlib import Path

    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import EmbedderRecord, Lake

# A watcher lives long: converting the network for a quicker engine pays. One image at a time, efficientnet-lite0 takes
# OpenVINO 7 ms on two cores and torch 20 to 60.
IMAGES = OPENVINO_PAYS_FROM
# When a person is told: every so often, and when what waits longest passes an age.
TELL_SECONDS = 60.0
BEHIND_SECONDS = 30.0


def arguments(
    uri: str, *, embedder: str | None = None, order: Order = "oldest", engine: EngineName = "auto"
) -> list[str]:
    """The command that starts a server's watcher. Its stdin is to stay open as long as the server lives."""
    words = [sys.executable, "-m", "embeddings.backfill.watch_process", uri, "--order", order, "--engine", engine]
    return words if embedder is None else [*words, "--embedder", embedder]


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
    """`watch` until `stop` is set or a signal comes; for a process's main thread.

    Failures that are tried again are said on stderr. Raises what `watch` does.
    """
    audit.record(lake, "embed", record.name, detail={"watch": order})
    stopped = stop or threading.Event()

    def asked(number: int, _: Any) -> None:
        stopped.set()
        signal.signal(number, before[signal.Signals(number)])

    heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, asked) for number in heard}
    try:
        watch(lake, record, model, order=order, stop=stopped, report=report, complain=_complain, file=file)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say_json(lag: Lag) -> None:
    """The lag as one line on stdout."""
    try:
        sys.stdout.write(json.dumps(asdict(lag)) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)


class Teller:
    """Tells a person of the lag on stderr: at first, once a minute while something happens, and when it falls behind
    or has caught up."""

    def __init__(self) -> None:
        self._told = float("-inf")
        self._embedded = 0
        self._behind = False

    def __call__(self, lag: Lag) -> None:
        self._embedded += lag.embedded
        behind = lag.oldest_seconds > BEHIND_SECONDS
        if behind == self._behind and time.monotonic() - self._told < TELL_SECONDS:
            return
        waits = f"{lag.waiting:,} wait" + (f", the oldest for {lag.oldest_seconds:,.0f} s" if lag.waiting else "")
        failed = f"; {lag.failed:,} failed" if lag.failed else ""
        sys.stderr.write(f"embedded {self._embedded:,}; {waits}{failed}\n")
        self._told, self._embedded, self._behind = time.monotonic(), 0, behind


def _complain(sentence: str) -> None:
    sys.stderr.write(f"lakeloop: embedding: {sentence}\n")
    sys.stderr.flush()


def _watch_parent(stop: threading.Event) -> None:
    # Not through sys.stdin: a thread that waits in it would abort the interpreter's end.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server; it says when to end
    stop = threading.Event()
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    try:
        lake = opening.open(a.uri)
        record = embedders.record_of(lake, a.embedder)
        model = embedders.for_lake(lake, record, engine=a.engine, images=IMAGES)
        run(lake, record, model, order=a.order, report=say_json, stop=stop)
    except LakeloopError as error:
        _complain(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
