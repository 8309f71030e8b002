"""One HTTP exchange with the server, over a connection that is kept, and what the answer means for each event.

It decides what happens to events (stored, refused, not now) and nothing about time: when to try again is `sender`'s.
"""

from __future__ import annotations

import email.utils
import json
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from lake.client.events import Batch, Event
from lake.version import VERSION

_MOST_ANSWER = 16 << 20
_REFUSED_NOW = (408, 425, 429)
_KEY = (401, 403)


class NotNow(Exception):
    """Nothing of the batch was taken, and it is not the events' fault. `after`: seconds the server asked for."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class TooMuch(Exception):
    """The batch as a whole was refused: it is too large (`by_size`), or something in it is wrong."""

    def __init__(self, reason: str, by_size: bool) -> None:
        super().__init__(reason)
        self.by_size = by_size


@dataclass(slots=True)
class Outcome:
    """What became of each event: `stored` and `known` are counts; `again` asks for another try."""

    stored: int = 0
    known: int = 0
    refused: list[tuple[Event, int, str]] = field(default_factory=list)
    again: list[Event] = field(default_factory=list)
    reason: str = ""


@dataclass(slots=True)
class Answer:
    status: int
    after: float | None
    kind: str
    body: bytes

    def detail(self) -> str:
        """What the server says was wrong."""
        with suppress(ValueError, AttributeError):
            said = json.loads(self.body)
            if text := said.get("detail") or said.get("title"):
                return str(text)
        return self.body[:200].decode("utf-8", "replace").strip()


class Server:
    """The server at `url` (http or https; a path before /v1 is kept). One exchange at a time.

    Raises ValueError when `url` is none. `timeout` is in seconds, for connecting and for every wait on the socket.
    """

    def __init__(self, url: str, timeout: float, ssl_context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is no server's URL; give one like http://127.0.0.1:8501")
        self.url = url
        self._prefix = parts.path.rstrip("/")
        if parts.scheme == "https":
            self._http: HTTPConnection = HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=ssl_context
            )
        else:
            self._http = HTTPConnection(parts.hostname, parts.port, timeout=timeout)

    def deliver(self, batch: Batch, key: str | None) -> Outcome:
        """Sends the batch and reads what became of it. Raises NotNow or TooMuch when nothing of it was taken."""
        if batch.events[0].kind == "feedback":
            answer = self.post("/v1/feedback", "application/json", batch.events[0].head, key)
            return _read_feedback(answer, batch.events[0])
        body = b"".join([event.line() for event in batch.events])
        return _read_batch(self.post("/v1/predictions/batch", "application/x-ndjson", body, key), batch)

    def abort(self) -> None:
        """Ends an exchange that another thread is in, which then fails."""
        connection = self._http.sock
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._http.close()

    def post(self, path: str, kind: str, body: bytes, key: str | None) -> Answer:
        """One request and its answer, whatever its status. Raises NotNow when the server does not answer."""
        headers = {"Content-Type": kind, "Accept": "application/json", "User-Agent": f"lakeloop/{VERSION}"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        kept = self._http.sock is not None
        try:
            try:
                return self._exchange(self._prefix + path, body, headers)
            except (ConnectionError, BadStatusLine):
                if not kept:
                    raise
                # A server closes what was idle for a while. The same ids make it safe to say it again.
                self._http.close()
                return self._exchange(self._prefix + path, body, headers)
        except (OSError, HTTPException) as error:
            self._http.close()
            raise NotNow(f"{self.url} does not answer: {error or type(error).__name__}") from error
        except BaseException:
            self._http.close()
            raise

    def _exchange(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        try:
            self._http.request("POST", path, body, headers)
        except (BrokenPipeError, ConnectionResetError) as error:
            # A server may answer before it has read everything, and close: the answer says why.
            try:
                response = self._http.getresponse()
            except (OSError, HTTPException):
                raise error from None
        else:
            response = self._http.getresponse()
        content = response.read(_MOST_ANSWER + 1)
        if len(content) > _MOST_ANSWER:
            raise HTTPException(f"its answer is longer than {_MOST_ANSWER >> 20} MB")
        after = _seconds(response.getheader("Retry-After"))
        return Answer(response.status, after, response.getheader("Content-Type", ""), content)


def _read_batch(answer: Answer, batch: Batch) -> Outcome:
    if answer.status != 200:
        return _read_refusal(answer, batch)
    try:
        items = {item["index"]: item for item in json.loads(answer.body)["items"]}
    except (ValueError, TypeError, LookupError) as error:
        raise NotNow("the answer is not that of a lakeloop server; is the URL right?") from error
    outcome = Outcome()
    for index, event in enumerate(batch.events):
        _sort(outcome, event, items.get(index, {}))
    return outcome


def _sort(outcome: Outcome, event: Event, item: dict[str, Any]) -> None:
    match item.get("code"):
        case 201:
            outcome.stored += 1
        case 200:
            outcome.known += 1
        case int(code) if 400 <= code < 500 and code not in _REFUSED_NOW:
            outcome.refused.append((event, code, str(item.get("detail") or f"refused with {code}")))
        case code:
            outcome.again.append(event)
            outcome.reason = str(item.get("detail") or f"the server could not take an event ({code})")


def _read_feedback(answer: Answer, event: Event) -> Outcome:
    match answer.status:
        case 201:
            return Outcome(stored=1)
        case 200:
            return Outcome(known=1)
        case 404 | 409 if answer.kind.startswith("application/problem+json"):
            return Outcome(refused=[(event, answer.status, answer.detail())])
    return _read_refusal(answer, Batch([event]))


def _read_refusal(answer: Answer, batch: Batch) -> Outcome:
    """What any other status means for the batch as a whole."""
    status, detail = answer.status, answer.detail()
    if status in (400, 413, 422):
        if len(batch.events) > 1:
            raise TooMuch(f"{status}: {detail}", by_size=status == 413)
        return Outcome(refused=[(batch.events[0], status, detail)])
    if status in _KEY:
        raise NotNow(f"{status}: {detail} (events are kept; is the key right, and has it the scope?)", answer.after)
    if status >= 500 or status in _REFUSED_NOW:
        raise NotNow(f"{status}: {detail}", answer.after)
    raise NotNow(f"{status}: {detail} (events are kept; is the URL that of a lakeloop server?)", answer.after)


def _seconds(text: str | None) -> float | None:
    """Retry-After: seconds or an HTTP date; None when it is neither."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None
