"""Connects the client's queue, sender and server; flushes, closes, and rebuilds them after a fork.

It checks the options and knows the default spill folder of a server. It does not know what an event contains.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import time
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lake.client.events import QueuedEvent, Refusal
from lake.client.queue import EventQueue
from lake.client.spill import Spill

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("lakeloop.client")

CLOSE_SECONDS = 5.0
MOST_BATCH_EVENTS = 1000


@dataclass(frozen=True)
class Stats:
    """Counts of events since the client was created; `queued` is how many wait now, in memory or on disk.

    sent: stored by the server. known: the server had them already. refused: the server will not take them. dropped:
    lost because there was no room. spilled: written to disk. retries: failed requests, to be repeated. last_error: the
    text of the latest problem.
    """

    queued: int
    sent: int
    known: int
    refused: int
    dropped: int
    spilled: int
    retries: int
    last_error: str | None


class ClientCore:
    """See `Client` for the options. Raises ValueError if one is out of range."""

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        spill: str | os.PathLike[str] | None,
        spill_bytes: int,
        buffer_bytes: int,
        batch_events: int,
        batch_bytes: int,
        linger: float,
        timeout: float,
        longest_pause: float,
        on_refused: Callable[[Refusal], None] | None,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        sizes = {"spill_bytes": spill_bytes, "buffer_bytes": buffer_bytes, "batch_bytes": batch_bytes}
        others = {"batch_events": batch_events, "timeout": timeout, "longest_pause": longest_pause}
        for name, number in {**sizes, **others}.items():
            if number <= 0:
                raise ValueError(f"{name} is {number}; it must be above 0")
        if batch_events > MOST_BATCH_EVENTS:
            raise ValueError(f"batch_events is {batch_events}; the server takes at most {MOST_BATCH_EVENTS}")
        if linger < 0:
            raise ValueError(f"linger is {linger}; it must not be negative")
        self.key = key
        folder = _own_folder(url) if spill == "auto" else None if spill is None else Path(spill).absolute()

        def connect() -> None:
            # Imported late: http.client would double the time to import lake.client.
            from lake.client.delivery import Server
            from lake.client.sender import Sender

            self._spill = None if folder is None else Spill(folder, spill_bytes)
            self._server = Server(url, timeout, ssl_context)
            self._queue = EventQueue(buffer_bytes, self._spill)
            self._sender = Sender(
                self._queue,
                self._server,
                lambda: self._key,
                batch_events=batch_events,
                batch_bytes=batch_bytes,
                linger=linger,
                longest_pause=longest_pause,
                keeps=folder is not None,
                on_refused=on_refused,
            )

        self._connect = connect
        self._all_sent = True
        connect()
        _cores.add(self)
        atexit.register(self.close, CLOSE_SECONDS)
        if self._spill is not None and self._spill.left_behind():
            self._sender.start()

    @property
    def key(self) -> str | None:
        return self._key

    @key.setter
    def key(self, key: str | None) -> None:
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise ValueError("the key has characters that no key has; pass it as `lakeloop key create` printed it")
        self._key = key

    def put(self, event: QueuedEvent) -> None:
        self._sender.put(event)

    def refuse(self, refusal: Refusal) -> None:
        self._sender.refuse(refusal)

    def stats(self) -> Stats:
        queue, sender = self._queue, self._sender
        return Stats(
            queued=queue.queued,
            sent=sender.sent,
            known=sender.known,
            refused=sender.refused,
            dropped=queue.dropped,
            spilled=queue.spilled,
            retries=sender.retries,
            last_error=sender.last_error,
        )

    def wake(self) -> None:
        """Makes every running `flush` check its `given_up`."""
        self._queue.wake()

    def flush(self, timeout: float | None, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Waits until the server has answered for every event queued now, including those of dead processes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._sender.own_thread():  # called from on_refused: it would wait for itself
            return self._queue.queued == 0
        while True:
            self._sender.adopt()
            if self._queue.queued == 0:
                return True
            self._sender.start()
            if not self._queue.wait_until_gone(deadline, given_up):
                return False

    def close(self, timeout: float | None) -> bool:
        queue, sender = self._queue, self._sender
        atexit.unregister(self.close)
        if queue.stopped:
            return self._all_sent
        queue.close()
        if queue.queued:
            sender.start()
            deadline = None if timeout is None else time.monotonic() + timeout
            keeps = self._spill is not None
            queue.wait_until_gone(deadline, lambda: sender.own_thread() or (keeps and sender.unreachable))
        queue.stop()
        self._server.abort()
        sender.join(1.0)
        self._all_sent = queue.queued == 0
        sender.leave()
        self._server.close()
        return self._all_sent

    def renew(self) -> None:
        """In a forked child: starts afresh, because events, threads, connection and files belong to the parent."""
        stopped = self._queue.stopped
        self._queue.forget()
        with suppress(Exception):
            self._server.close()
        self._connect()
        if stopped:
            self._queue.stop()


def _own_folder(url: str) -> Path | None:
    """A folder for this server under $XDG_STATE_HOME or ~/.local/state. None, with a warning, if there is no home."""
    state = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))
    if not state.is_absolute():
        log.warning("no home directory to keep events in: they stay in memory only, unless you pass spill=FOLDER")
        return None
    url = url.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", url.split("://", 1)[-1])[:80]
    return state / "lakeloop" / "spill" / f"{name}-{zlib.crc32(url.encode()):08x}"


_cores: weakref.WeakSet[ClientCore] = weakref.WeakSet()


def _renew_all() -> None:
    for core in list(_cores):
        core.renew()


os.register_at_fork(after_in_child=_renew_all)
