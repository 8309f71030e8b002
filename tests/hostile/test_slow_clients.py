"""Clients that stay silent, send nothing of what they declare, or read nothing: ingest goes on beside them."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from lake.open_lake import OpenLake
from tests.conftest import Say
from tests.hostile.conftest import Serve
from tests.pictures import encoded, noise
from tests.search_app.api_client import event

WRITERS = 4
DECLARED = 40 << 20


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


@contextmanager
def slow_clients(url: str, idle: int, bodies: int, readers: int) -> Iterator[None]:
    """Holds so many of each; each that the server closes is replaced at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    head = "POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
    body = f"{head}\r\ncontent-length: {DECLARED}\r\n\r\n{{"
    reader = "GET /v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n" * 3
    starts = [b""] * idle + [body.encode()] * bodies + [reader.encode()] * readers
    ending = threading.Event()

    def hold(starts: list[bytes]) -> None:
        with ExitStack() as stack:
            held: dict[int, socket.socket] = {}
            while True:
                for number, start in enumerate(starts):
                    opened = held.get(number)
                    if opened is None or _closed(opened):
                        held[number] = opened = stack.enter_context(connect(url))
                        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                        opened.sendall(start)
                if ending.wait(1.0):
                    return

    threads = [threading.Thread(target=hold, args=(starts[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _closed(opened: socket.socket) -> bool:
    try:
        return opened.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def ingest(url: str, seconds: float) -> tuple[int, float, float]:
    """(accepted events, events a second, slowest /healthz in seconds). Nothing may be refused."""
    image = encoded(noise(1, 24, 16))
    with httpx.Client(base_url=url, headers={"host": "localhost"}, timeout=60) as client:
        response = client.post("/v1/images", content=image, headers={"content-type": "image/png"})
        assert response.status_code in (200, 201), response.text
        image_id = response.json()["image_id"]
    counts, slowest, ending = [0] * WRITERS, 0.0, time.monotonic() + seconds

    def write(number: int) -> None:
        with httpx.Client(base_url=url, headers={"host": "localhost"}, timeout=60) as client:
            while time.monotonic() < ending:
                body = json.dumps(event(image_id=image_id))
                response = client.post("/v1/predictions", content=body, headers={"content-type": "application/json"})
                assert response.status_code == 201, response.text
                counts[number] += 1

    writers = [threading.Thread(target=write, args=(i,)) for i in range(WRITERS)]
    for writer in writers:
        writer.start()
    with httpx.Client(base_url=url, headers={"host": "localhost"}, timeout=60) as client:
        while time.monotonic() < ending:
            started = time.monotonic()
            assert client.get("/healthz").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.1)
    for writer in writers:
        writer.join()
    return sum(counts), sum(counts) / seconds, slowest


def _run(lk: OpenLake, serve: Serve, say: Say, clients: tuple[int, int, int], seconds: float) -> None:
    url = f"http://127.0.0.1:{serve(lk).port}"
    _, alone, _ = ingest(url, seconds / 3)
    with slow_clients(url, *clients):
        count, beside, slowest = ingest(url, seconds)
    idle, bodies, readers = clients
    say(
        f"slow clients: {idle:,} idle, {bodies} silent bodies, {readers} silent readers: {count:,} events "
        f"accepted, {beside / alone:.2f} of the rate alone, /healthz at most {slowest:.2f} s"
    )
    assert count > 0


def test_ingest_goes_on_beside_slow_clients(lk: OpenLake, serve: Serve, say: Say) -> None:
    _run(lk, serve, say, (100, 8, 8), 1.5)


@pytest.mark.soak
def test_ingest_goes_on_beside_slow_clients_at_length(lk: OpenLake, serve: Serve, say: Say) -> None:
    _run(lk, serve, say, (2_000, 200, 200), 60.0)
