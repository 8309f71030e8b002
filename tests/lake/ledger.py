"""A server that implements the batch contract, records every request, and misbehaves on request."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Say:
    """The response to a whole request."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    detail: str = "as the test wants it"


CUT_BEFORE = "the connection is cut before anything is stored"
CUT_AFTER = "everything is stored, and the connection cut in the middle of the answer"
CLOSE = "answered as usual, then the connection is closed without a word"
HANG = "nothing is stored or answered until `release` is set"
GARBAGE = "200, with a page of another server"


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    events: list[dict[str, Any]]
    bytes: int
    at: float


class Ledger:
    """Each request uses up one mood of `script`; after the last mood every request is accepted.

    `whole` may refuse a request for what is in it, `items` single events.
    """

    def __init__(self) -> None:
        self.predictions: dict[str, dict[str, Any]] = {}
        self.feedback: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self.said_again: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.script: deque[Any] = deque()
        self.whole: Callable[[list[dict[str, Any]]], Say | None] = lambda events: None
        self.items: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda event: None
        self.key: str | None = None
        self.most_bytes = 64 << 20
        self.release = threading.Event()
        self.hangs = threading.Event()
        self.port = 0
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> Ledger:
        """Listens; again on the port it had."""
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.ledger = self
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def down(self) -> None:
        """Stops listening and cuts every connection."""
        self.release.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.cut()
            self._server.server_close()
            self._server = None
        self.release.clear()

    def take(self, event: dict[str, Any]) -> dict[str, Any]:
        """One event under the contract: 201 stored, 200 known, 422 for another event under the same id."""
        refused = self.items(event)
        if refused is not None:
            return {"status": "refused", "code": refused[0], "detail": refused[1]}
        with self._lock:
            own = event["prediction_id"]
            if own not in self.predictions:
                self.predictions[own] = event
                self.order.append(own)
                return {"status": "stored", "code": 201, "prediction_id": own}
            self.said_again[own] += 1
            if self.predictions[own] != event:
                return {"status": "refused", "code": 422, "detail": "another event is stored under this id"}
            return {"status": "known", "code": 200, "prediction_id": own}

    def take_feedback(self, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            if payload["prediction_id"] not in self.predictions:
                return 404, {"status": 404, "detail": f"no answer {payload['prediction_id']}"}
            known = payload["event_id"] in self.feedback
            self.feedback[payload["event_id"]] = payload
            if not known:
                self.order.append(payload["event_id"])
            return 200 if known else 201, {"event_id": payload["event_id"], "status": "known" if known else "stored"}


class _Server(ThreadingHTTPServer):
    ledger: Ledger
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def cut(self) -> None:
        for connection in list(self.connections):
            _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        ledger = self.server.ledger
        length = int(self.headers["Content-Length"])
        if length > ledger.most_bytes:  # before reading, as a proxy does
            self.close_connection = True
            self._answer(413, {"detail": f"{length} bytes are too many"}, kind="application/problem+json")
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read(1 << 16):
                pass
            return
        body = self.rfile.read(length)
        events = [json.loads(line) for line in body.splitlines()]
        for event in events:
            if "image_base64" in event:
                event["image"] = base64.b64decode(event.pop("image_base64"), validate=True)
        ledger.requests.append(Request(self.path, dict(self.headers), events, length, time.monotonic()))
        mood = ledger.script.popleft() if ledger.script else None
        if mood is HANG:
            ledger.hangs.set()
            ledger.release.wait()
        if mood is CUT_BEFORE:
            return _cut(self.connection)
        mood = ledger.whole(events) or mood
        if ledger.key is not None and self.headers.get("Authorization") != f"Bearer {ledger.key}":
            mood = Say(401, detail="no such key")
        if isinstance(mood, Say):
            return self._answer(mood.status, {"detail": mood.detail}, mood.headers, "application/problem+json")
        if mood is GARBAGE:
            return self._answer(200, ["<html>welcome to the hotel</html>"])
        if self.path == "/v1/feedback":
            status, response = ledger.take_feedback(events[0])
            return self._answer(
                status, response, kind="application/json" if status < 400 else "application/problem+json"
            )
        items = [{"index": index, **ledger.take(event)} for index, event in enumerate(events)]
        self._answer(200, {"items": items}, cut=mood is CUT_AFTER)
        if mood is CLOSE:
            self.close_connection = True

    def _answer(
        self,
        status: int,
        payload: Any,
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
        cut: bool = False,
    ) -> None:
        body = json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            _cut(self.connection)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
