"""uvicorn's HTTP protocol with limits for slow, silent and too many clients, and for the bytes of a head or trailers.

uvicorn's fast parser stores the request line, the headers and the trailers of a chunked body whatever their length, and
waits for a head, a body and a reader for ever. The readers of bodies (`search_app/api/bodies.py`) limit their size.
"""

from __future__ import annotations

import asyncio
import functools
import json
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
# A head has to be complete this long after its connection or its first byte.
HEAD_SECONDS = 10.0
# A body may pause this long, and after that first time it has to bring in so many bytes a second.
BODY_SECONDS = 20.0
BODY_BYTES_A_SECOND = 4 << 10
# A client that takes nothing of its response for this long has gone.
READER_SECONDS = 60.0
# Open files that the lake, its spool and its processes need beside the connections.
FILES_BESIDE = 512
MOST_CONNECTIONS = 8_192
LOOK_SECONDS = 1.0


def _response(status: int, title: str, reason: str, detail: str) -> bytes:
    body = json.dumps(
        {"type": "about:blank", "title": title, "status": status, "detail": detail, "reason": reason}
    ).encode()
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/problem+json\r\nx-content-type-options: nosniff\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (status, title.encode(), len(body), body)
    )


_LONG_HEAD = _response(
    431,
    "Request Header Fields Too Large",
    "head_too_large",
    f"the head of the request has more than {HEAD_BYTES >> 10} KiB",
)
_SLOW = _response(408, "Request Timeout", "too_slow", "the request did not arrive in time")
_FULL = _response(503, "Service Unavailable", "busy", "too many connections; try again")


@functools.cache
def most_connections() -> int:
    """As many as the limit of open files allows, which is raised as far as the system lets us, at most 8,192."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + FILES_BESIDE
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(64, min(MOST_CONNECTIONS, soft - FILES_BESIDE))


class LimitedProtocol(HttpToolsProtocol):
    """A connection. It is closed when a head or trailers are longer than `HEAD_BYTES`, and when its client is slow."""

    _since = 0  # bytes since the last head or byte of a body
    _advanced = False
    _head_complete = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        now = self.loop.time()
        self._head_since: float | None = now
        self._body_since: float | None = None
        self._body_bytes = 0
        self._heard = now
        self._unread = (0, now)  # bytes of the response that the client has not taken, and since when so many
        if not hasattr(self.server_state, "watched"):
            self.server_state.watched = True  # type: ignore[attr-defined]
            self.loop.call_later(LOOK_SECONDS, _look, self.loop, self.connections)
        if len(self.connections) > most_connections():
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._advanced = False
        self._heard = self.loop.time()
        if self._body_since is None and self._head_since is None and self._responded():
            self._head_since = self._heard
        super().data_received(data)
        self._since = 0 if self._advanced else self._since + len(data)
        if self._since > HEAD_BYTES and not self.transport.is_closing():
            if self._responded():
                self.transport.write(_LONG_HEAD)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._head_complete = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_complete:  # else it is a trailer, which must not act as a header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._advanced = self._head_complete = True
        self._head_since, self._body_since, self._body_bytes = None, self.loop.time(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._advanced = True
        self._body_since = None
        super().on_message_complete()

    def look(self, now: float) -> None:
        """Closes the connection if its client is too slow."""
        if self.flow.write_paused:  # also while it closes, which waits for the reader
            size = self.transport.get_write_buffer_size()
            if size != self._unread[0]:
                self._unread = (size, now)
            elif now - self._unread[1] > READER_SECONDS:
                self.transport.abort()
            return
        self._unread = (0, now)
        if self.transport.is_closing():
            return
        if self._head_since is not None:
            if now - self._head_since > HEAD_SECONDS:
                self._refuse(_SLOW)
        elif self._body_since is not None:
            if self.flow.read_paused:  # the server is the slow one
                self._heard, self._body_since = now, self._body_since + LOOK_SECONDS
            elif now - self._heard > BODY_SECONDS or self._body_bytes < BODY_BYTES_A_SECOND * (
                now - self._body_since - BODY_SECONDS
            ):
                self._refuse(_SLOW)

    def idle_since(self) -> float | None:
        """Since when it waits for the next head; None while it has a request."""
        return self._heard if self._body_since is None and self._responded() else None

    def _responded(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, response: bytes) -> None:
        if self._responded() or not self.cycle.response_started:
            self.transport.write(response)
        self.transport.close()

    def _make_room(self) -> None:
        """Closes the connection that has been idle for longest, or this one if all others have a request."""
        others = [c for c in self.connections if isinstance(c, LimitedProtocol) and c is not self]
        idle = [(since, id(c), c) for c in others if not c.transport.is_closing() and (since := c.idle_since())]
        if idle:
            min(idle)[2].transport.close()
        else:
            self._refuse(_FULL)


def _look(loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
    now = loop.time()
    for connection in [*connections]:
        if isinstance(connection, LimitedProtocol):
            connection.look(now)
    loop.call_later(LOOK_SECONDS, _look, loop, connections)
