"""Slow, silent and too many clients are closed; others do not notice them."""

from __future__ import annotations

import asyncio
import json
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from search_app.security import request_limits
from search_app.security.request_limits import LimitedProtocol, most_connections

pytestmark = pytest.mark.slow

MIB = 1 << 20
LIMITS = {"HEAD_SECONDS": 0.4, "BODY_SECONDS": 0.4, "READER_SECONDS": 0.6, "LOOK_SECONDS": 0.05}


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds with the length of the body and the headers; /large sends 32 MiB, /late reads after a second."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/late":
        await asyncio.sleep(1.0)
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message.get("more_body", False)
    names = [name.decode() for name, _ in scope["headers"]]
    body = b"x" * (32 * MIB) if scope["path"] == "/large" else json.dumps({"length": length, "names": names}).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name, seconds in LIMITS.items():
        monkeypatch.setattr(request_limits, name, seconds)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, http=LimitedProtocol, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def connect(port: int) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port))
    opened.settimeout(10)
    return opened


def everything(opened: socket.socket) -> bytes:
    """All that comes until the server closes."""
    parts = []
    try:
        while part := opened.recv(MIB):
            parts.append(part)
    except ConnectionResetError:
        parts.append(b"[reset]")
    return b"".join(parts)


def ask(port: int, request: bytes) -> bytes:
    with connect(port) as opened:
        opened.sendall(request)
        return everything(opened)


GOOD = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET / HTTP/1.1\r\nhost: x\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
    ],
)
def test_a_client_that_falls_silent_is_closed(port: int, start: bytes) -> None:
    response = ask(port, start)
    assert b"408 Request Timeout" in response
    assert b"too_slow" in response
    assert b"200 OK" in ask(port, GOOD)


def test_a_body_that_drips_is_closed_although_it_never_pauses(port: int) -> None:
    with connect(port) as opened:
        opened.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        sent = 0
        with suppress(OSError):
            while sent < 100:
                opened.sendall(b"x")
                sent += 1
                time.sleep(0.05)
        assert sent < 40


def test_a_body_that_waits_for_the_server_is_not_slow(port: int) -> None:
    body = b"x" * (2 * MIB)
    head = b"POST /late HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert b'"length": 2097152' in ask(port, head + body)


def test_a_reader_that_takes_nothing_is_closed_and_a_slow_one_is_not(port: int) -> None:
    with connect(port) as silent, connect(port) as slow:
        for opened in (silent, slow):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            opened.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = 0
        for _ in range(20):
            received += len(slow.recv(MIB))
            time.sleep(0.05)
        received += len(everything(slow))
        assert received > 32 * MIB
        assert len(everything(silent)) < 32 * MIB


def test_trailers_are_not_headers(port: int) -> None:
    request = (
        b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\nauthorization: Bearer x\r\nidempotency-key: y\r\n\r\n"
    )
    response = ask(port, request)
    assert b'"length": 3' in response
    assert b"authorization" not in response


def test_beyond_the_most_connections_the_longest_idle_one_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_limits, "most_connections", lambda: 10)
    monkeypatch.setattr(request_limits, "HEAD_SECONDS", 60.0)
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(10)]
        assert b"200 OK" in ask(port, GOOD)
        closed = select.select(idle, [], [], 5)[0]
        assert [opened.recv(1) for opened in closed] == [b""]
        [*_, other] = {*idle} - {*closed}
        other.sendall(GOOD)
        assert b"200 OK" in everything(other)


def test_the_limit_of_open_files_is_raised_and_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, raised = (1024, 4096), []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: raised.append(pair))
    most_connections.cache_clear()
    assert most_connections() == 4096 - request_limits.FILES_BESIDE
    assert raised == [(4096, 4096)]
    most_connections.cache_clear()
