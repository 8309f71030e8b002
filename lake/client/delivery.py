"""One HTTP exchange with the server over a kept connection, and its result for each event.

It decides what happens to events (stored, refused, not now); `sender` decides when to try again.
"""

from __future__ import annotations

import email.utils
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from lake.client.events import EventBatch, QueuedEvent
from lake.version import VERSION

_MOST_RESPONSE_BYTES = 16 << 20
_REFUSED_NOW = (408, 425, 429)
_KEY = (401, 403)


class NotNow(Exception):
    """The server took nothing of the batch, through no fault of the events. `after`: seconds it asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class TooMuch(Exception):
    """The server refused the batch as a whole: it is too large (`by_size`), or something in it is wrong."""

    def __init__(self, reason: str, by_size: bool) -> None:
        super().__init__(reason)
        self.by_size = by_size


@dataclass(slots=True)
class Delivery:
    """The result for each event of a batch: `stored` and `known` are counts; `again` are to be sent again."""

    stored: int = 0
    known: int = 0
    refused: list[tuple[QueuedEvent, int, str]] = field(default_factory=list)
    again: list[QueuedEvent] = field(default_factory=list)
    reason: str = ""


@dataclass(slots=True)
class HttpResponse:
    """`after` is Retry-After in seconds; `kind` the content type."""

    status: int
    after: float | None
    kind: str
    body: bytes

    def detail(self) -> str:
        """The server's description of the problem."""
        with suppress(ValueError, AttributeError):
            document = json.loads(self.body)
            if text := document.get("detail") or document.get("title"):
                return str(text)
        return self.body[:200].decode("utf-8", "replace").strip()


class Server:
    """The server at `url` (http or https; a path before /v1 is kept). One exchange at a time.

    Raises ValueError if `url` is not one. `timeout` is in seconds, for connecting and for every wait on the socket.
    """

    def __init__(self, url: str, timeout: float, ssl_context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is not the URL of a server; pass one like http://127.0.0.1:8501")
        self.url = url
        self._prefix = parts.path.rstrip("/")
        if parts.scheme == "https":
            self._http: HTTPConnection = HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=ssl_context
            )
        else:
            self._http = HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def deliver(self, batch: EventBatch, key: str | None) -> Delivery:
        """Sends the batch and reads the result. Raises NotNow or TooMuch if the server took nothing of it."""
        if batch.events[0].kind == "feedback":
            response = self.post("/v1/feedback", "application/json", batch.events[0].head, key)
            return _read_feedback(response, batch.events[0])
        body = b"".join([event.line() for event in batch.events])
        return _read_batch(self.post("/v1/predictions/batch", "application/x-ndjson", body, key), batch)

    def abort(self) -> None:
        """Interrupts an exchange on another thread, which then fails."""
        connection = self._http.sock
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Interrupts the block's exchange after `seconds`: a response that drips never meets the timeout of a wait."""
        done = threading.Event()

        def watch() -> None:
            left = seconds
            while not done.wait(left):
                self.abort()
                left = 0.2  # it may have been connecting

        threading.Thread(target=watch, name="lakeloop deadline", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def close(self) -> None:
        self._http.close()

    def post(self, path: str, kind: str, body: bytes, key: str | None) -> HttpResponse:
        """Sends one POST and returns the response, whatever its status. Raises NotNow if there is none."""
        headers = {"Content-Type": kind, "Accept": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return self.request("POST", path, body, headers)

    def request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], most_bytes: int = _MOST_RESPONSE_BYTES
    ) -> HttpResponse:
        """Sends one request and returns the response, whatever its status, of at most `most_bytes`.

        Raises NotNow if there is none.
        """
        return self.whole(self.open(method, path, body, headers), most_bytes)

    def whole(self, response: HTTPResponse, most_bytes: int) -> HttpResponse:
        """The response of `open`, read to its end. Raises NotNow if it breaks off, or is longer than `most_bytes`."""
        with self._not_now():
            content = response.read(most_bytes + 1)
            if len(content) > most_bytes:
                raise HTTPException(f"its response is longer than {most_bytes >> 20} MB")
        after = _seconds(response.getheader("Retry-After"))
        return HttpResponse(response.status, after, response.getheader("Content-Type", ""), content)

    def open(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> HTTPResponse:
        """Sends one request; the response is to be read before the next. Raises NotNow if there is none."""
        sent = {"User-Agent": f"lakeloop/{VERSION}", **headers}
        kept = self._http.sock is not None
        with self._not_now():
            try:
                return self._exchange(method, self._prefix + path, body, sent)
            except (ConnectionError, BadStatusLine):
                if not kept:
                    raise
                # A server closes idle connections. Sending again is safe, because the ids are the same.
                self._http.close()
                return self._exchange(method, self._prefix + path, body, sent)

    @contextmanager
    def _not_now(self) -> Iterator[None]:
        """Errors of the connection close it, and become NotNow."""
        try:
            yield
        except (OSError, HTTPException) as error:
            self._http.close()
            raise NotNow(f"{self.url} does not answer: {error or type(error).__name__}") from error
        except BaseException:
            self._http.close()
            raise

    def _exchange(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> HTTPResponse:
        try:
            self._http.request(method, path, body or None, headers)
        except (BrokenPipeError, ConnectionResetError) as error:
            # A server may respond and close before it has read everything: the response says why.
            try:
                return self._http.getresponse()
            except (OSError, HTTPException):
                raise error from None
        return self._http.getresponse()


def _read_batch(response: HttpResponse, batch: EventBatch) -> Delivery:
    if response.status != 200:
        return _read_refusal(response, batch)
    try:
        items = {item["index"]: item for item in json.loads(response.body)["items"]}
    except (ValueError, TypeError, LookupError) as error:
        raise NotNow("the response is not from a lakeloop server; is the URL right?") from error
    delivery = Delivery()
    for index, event in enumerate(batch.events):
        _add_result(delivery, event, items.get(index, {}))
    return delivery


def _add_result(delivery: Delivery, event: QueuedEvent, item: dict[str, Any]) -> None:
    match item.get("code"):
        case 201:
            delivery.stored += 1
        case 200:
            delivery.known += 1
        case int(code) if 400 <= code < 500 and code not in _REFUSED_NOW:
            delivery.refused.append((event, code, str(item.get("detail") or f"refused with {code}")))
        case code:
            delivery.again.append(event)
            delivery.reason = str(item.get("detail") or f"the server could not take an event ({code})")


def _read_feedback(response: HttpResponse, event: QueuedEvent) -> Delivery:
    match response.status:
        case 201:
            return Delivery(stored=1)
        case 200:
            return Delivery(known=1)
        case 404 | 409 if response.kind.startswith("application/problem+json"):
            return Delivery(refused=[(event, response.status, response.detail())])
    return _read_refusal(response, EventBatch([event]))


def _read_refusal(response: HttpResponse, batch: EventBatch) -> Delivery:
    """The meaning of any other status, for the batch as a whole."""
    status, detail = response.status, response.detail()
    if status in (400, 413, 422):
        if len(batch.events) > 1:
            raise TooMuch(f"{status}: {detail}", by_size=status == 413)
        return Delivery(refused=[(batch.events[0], status, detail)])
    if status in _KEY:
        hint = "events are kept; is the key right, and does it have the scope?"
        raise NotNow(f"{status}: {detail} ({hint})", response.after)
    if status >= 500 or status in _REFUSED_NOW:
        raise NotNow(f"{status}: {detail}", response.after)
    raise NotNow(f"{status}: {detail} (events are kept; is the URL that of a lakeloop server?)", response.after)


def _seconds(text: str | None) -> float | None:
    """Seconds until Retry-After, which is a number of seconds or an HTTP date; None if it is neither."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None
