"""Blocking requests with JSON bodies: kept connections, retries, timeouts, and problems as exceptions.

For everything but the log, which `sender.py` sends. A request is repeated while the server does not respond or says
"not now"; writes carry an Idempotency-Key, so a repeat changes nothing.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    import ssl
    from http.client import HTTPResponse

    from lake.client.delivery import HttpResponse, Server

# Connections that are kept open between requests.
KEPT = 8
# For every wait on a socket; leak checks and clusterings take longer than other requests.
SECONDS = 300.0
# How long a request is repeated before it fails.
PATIENCE_SECONDS = 30.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
MOST_RESPONSE_BYTES = 300 << 20
JSON = "application/json"
_LATER = (408, 425, 429, 502, 503, 504)


def in_path(name: str, what: str, safe: str = "") -> str:
    """The name as a part of a URL's path; `safe` characters stay. Raises ValueError for one that is no part of it."""
    if name in ("", ".", ".."):
        raise ValueError(f"the name of the {what} is {name!r}; pass that of a {what} on the server")
    return quote(name, safe=safe)


class RequestFailed(Exception):
    """The server refused a request, or did not respond (`status` 0).

    `reason` is the server's word for programs, such as unknown_slice; "" if there is none. `after`: seconds that the
    server asks to wait.
    """

    def __init__(self, message: str, status: int = 0, reason: str = "", after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.after = after


class Connections:
    """Connections to the server at `url`. `timeout` is in seconds, for connecting and every wait on a socket."""

    def __init__(self, url: str, timeout: float, ssl_context: ssl.SSLContext | None) -> None:
        self._options = (url, timeout, ssl_context)
        self._lock = threading.Lock()
        self._idle: list[Server] = []
        self._process = os.getpid()

    def take(self) -> Server:
        """A connection for one thread, an idle one if there is one."""
        from lake.client.delivery import Server

        with self._lock:
            if self._process != os.getpid():  # after a fork the connections belong to the parent
                self._process, self._idle = os.getpid(), []
            if self._idle:
                return self._idle.pop()
        return Server(*self._options)

    def give(self, server: Server) -> None:
        """Keeps a connection, whose last response was read, for the next request."""
        with self._lock:
            if len(self._idle) < KEPT:
                self._idle.append(server)
                return
        server.close()

    def close(self) -> None:
        """Closes the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for server in idle:
            server.close()

    def __del__(self) -> None:
        self.close()  # of a client that nobody closed


class JsonRequests:
    """Requests to the server at `url` with the key that `key()` returns. Threads may share it."""

    def __init__(
        self, url: str, key: Callable[[], str | None], timeout: float, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.url = url
        self._key = key
        self._connections = Connections(url, timeout, ssl_context)

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """The JSON document at the path. Values of `query` that are None are left out; a list repeats its name.

        Raises RequestFailed.
        """
        return self._document(self.send("GET", with_query(path, query)))

    def items(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """The items of a list, page after page. Raises RequestFailed."""
        cursor = None
        while True:
            page = self.get(path, {**(query or {}), "cursor": cursor})
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def write(self, method: str, path: str, body: Any = None, *, idempotency_key: str | None = None) -> Any:
        """The response to a POST, PUT or DELETE with a JSON body, which is done once. Raises RequestFailed.

        Pass your own `idempotency_key` to repeat the request from another process.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        data = b"" if body is None else json.dumps(body, allow_nan=False).encode()
        return self._document(self.send(method, path, data, headers))

    def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> HttpResponse:
        """The response with a status of 2xx or 304. The request must be safe to repeat. Raises RequestFailed."""
        from lake.client.delivery import NotNow

        pauses = Pauses()
        while True:
            server = self._connections.take()
            try:
                response = server.request(method, path, body, self._headers(headers), MOST_RESPONSE_BYTES)
            except NotNow as error:
                pauses.wait(RequestFailed(str(error), after=error.after))
                continue
            self._connections.give(server)
            if 200 <= response.status < 300 or response.status == 304:
                return response
            failure = failure_of(response)
            if response.status in _LATER or failure.reason == "in_flight":
                pauses.wait(failure)
                continue
            raise failure

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[HTTPResponse]:
        """An open response with a status of 2xx, to read in parts. It is not repeated. Raises RequestFailed.

        Reading raises OSError or http.client.HTTPException if the connection breaks.
        """
        from lake.client.delivery import NotNow

        server = self._connections.take()
        try:
            try:
                response = server.open("GET", path, b"", self._headers(headers))
                if not 200 <= response.status < 300:
                    raise failure_of(server.whole(response, MOST_RESPONSE_BYTES))
            except NotNow as error:
                raise RequestFailed(str(error), after=error.after) from error
            yield response
        except BaseException:
            server.close()
            raise
        if response.isclosed():  # read to its end
            self._connections.give(server)
        else:
            server.close()

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._connections.close()

    def _headers(self, more: Mapping[str, str] | None) -> dict[str, str]:
        key = self._key()
        bearer = {} if key is None else {"Authorization": f"Bearer {key}"}
        return {"Content-Type": JSON, "Accept": JSON, **bearer, **(more or {})}

    def _document(self, response: HttpResponse) -> Any:
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError) as error:
            raise RequestFailed(
                f"the response of {self.url} is not JSON; is the URL that of a lakeloop server?", response.status
            ) from error


class Pauses:
    """The pauses between the tries of one request: growing, random, at least what the server asks for."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._deadline = time.monotonic() + patience
        self._next = FIRST_PAUSE

    def wait(self, failure: RequestFailed) -> None:
        """Waits before the next try; raises `failure` if that would be after the deadline."""
        pause = max(failure.after or 0.0, random.uniform(self._next / 2, self._next))
        if time.monotonic() + pause > self._deadline:
            raise failure
        time.sleep(pause)
        self._next = min(LONGEST_PAUSE, 2 * self._next)


def with_query(path: str, query: Mapping[str, Any] | None) -> str:
    """The path with its query. Values that are None are left out, lists repeat their name, booleans are 0 or 1."""
    given = {name: value for name, value in (query or {}).items() if value is not None}
    values = {name: int(value) if isinstance(value, bool) else value for name, value in given.items()}
    return f"{path}?{urlencode(values, doseq=True)}" if values else path


def failure_of(response: HttpResponse) -> RequestFailed:
    """A refusal as the exception to raise."""
    try:
        reason = str(json.loads(response.body).get("reason", ""))
    except (ValueError, AttributeError, RecursionError):
        reason = ""
    return RequestFailed(f"{response.status}: {response.detail()}", response.status, reason, response.after)
