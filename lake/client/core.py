"""The parts put together, for one process: a line, a server, a courier; flushed, closed, and made anew after a fork.

It knows where a server's spill folder is by default, and which options make sense. What an event is, it does not know.
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

from lake.client.events import Event, Refusal
from lake.client.queue import Line
from lake.client.spill import Spill

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("lakeloop.client")

CLOSE_SECONDS = 5.0
MOST_BATCH_EVENTS = 1000


@dataclass(frozen=True)
class Stats:
    """Counts of events since the client was made; `queued` is how many wait now, in memory or on disk.

    sent: stored by the server. known: it had them already. refused: it will not take them. dropped: given up for want
    of room. spilled: written to disk. retries: requests that failed, to be repeated. last_error: the latest trouble.
    """

    queued: int
    sent: int
    known: int
    refused: int
    dropped: int
    spilled: int
    retries: int
    last_error: str | None


class Post:
    """See `Client` for the options. Raises ValueError for one that makes no sense."""

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
                raise ValueError(f"{name} is {number}; it has to be above 0")
        if batch_events > MOST_BATCH_EVENTS:
            raise ValueError(f"batch_events is {batch_events}; the server takes {MOST_BATCH_EVENTS} at most")
        if linger < 0:
            raise ValueError(f"linger is {linger}; it cannot be negative")
        self.key = key
        folder = _own_folder(url) if spill == "auto" else None if spill is None else Path(spill).absolute()

        def make() -> None:
            # Late: http.client would be half of what importing lake.client costs.
            from lake.client.delivery import Server
            from lake.client.sender import Courier

            self._spill = None if folder is None else Spill(folder, spill_bytes)
            self._server = Server(url, timeout, ssl_context)
            self._line = Line(buffer_bytes, self._spill)
            self._courier = Courier(
                self._line,
                self._server,
                lambda: self._key,
                batch_events=batch_events,
                batch_bytes=batch_bytes,
                linger=linger,
                longest_pause=longest_pause,
                keeps=folder is not None,
                on_refused=on_refused,
            )

        self._make = make
        self._all_sent = True
        make()
        _posts.add(self)
        atexit.register(self.close, CLOSE_SECONDS)
        if self._spill is not None and self._spill.left_behind():
            self._courier.start()

    @property
    def key(self) -> str | None:
        return self._key

    @key.setter
    def key(self, key: str | None) -> None:
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise ValueError("the key has characters that no key has; give it as `lakeloop key create` printed it")
        self._key = key

    def put(self, event: Event) -> None:
        self._courier.put(event)

    def refuse(self, refusal: Refusal) -> None:
        self._courier.refuse(refusal)

    def stats(self) -> Stats:
        line, courier = self._line, self._courier
        return Stats(
            queued=line.queued,
            sent=courier.sent,
            known=courier.known,
            refused=courier.refused,
            dropped=line.dropped,
            spilled=line.spilled,
            retries=courier.retries,
            last_error=courier.last_error,
        )

    def wake(self) -> None:
        """Lets whoever is in `flush` look whether it is given up."""
        self._line.wake()

    def flush(self, timeout: float | None, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Waits until all that is in line now is answered, what dead processes left included."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._courier.own_thread():  # in on_refused: it would wait for itself
            return self._line.queued == 0
        while True:
            self._courier.adopt()
            if self._line.queued == 0:
                return True
            self._courier.start()
            if not self._line.wait_until_gone(deadline, given_up):
                return False

    def close(self, timeout: float | None) -> bool:
        line, courier = self._line, self._courier
        atexit.unregister(self.close)
        if line.stopped:
            return self._all_sent
        line.close()
        if line.queued:
            courier.start()
            deadline = None if timeout is None else time.monotonic() + timeout
            keeps = self._spill is not None
            line.wait_until_gone(deadline, lambda: courier.own_thread() or (keeps and courier.in_vain))
        line.stop()
        self._server.abort()
        courier.join(1.0)
        self._all_sent = line.queued == 0
        courier.leave()
        self._server.close()
        return self._all_sent

    def renew(self) -> None:
        """In a forked child: what waits is the parent's, and so are its threads, connection and files."""
        stopped = self._line.stopped
        self._line.forget()
        with suppress(Exception):
            self._server.close()
        self._make()
        if stopped:
            self._line.stop()


def _own_folder(url: str) -> Path | None:
    """A folder for this server, under $XDG_STATE_HOME or ~/.local/state. None, with a warning, for want of a home."""
    state = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"))
    if not state.is_absolute():
        log.warning("there is no home directory to keep events in: memory only, unless you give spill=FOLDER")
        return None
    url = url.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", url.split("://", 1)[-1])[:80]
    return state / "lakeloop" / "spill" / f"{name}-{zlib.crc32(url.encode()):08x}"


_posts: weakref.WeakSet[Post] = weakref.WeakSet()


def _renew_all() -> None:
    for post in list(_posts):
        post.renew()


os.register_at_fork(after_in_child=_renew_all)
