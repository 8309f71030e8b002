"""Malformed requests, byte by byte: endless heads, wrong lengths, half a body, two requests in one.

The server answers with a 4xx or hangs up, keeps its memory, and says nothing of it in its log but a line.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from lake import open_lake
from lake.open_lake import OpenLake
from tests.conftest import Say
from tests.crash.service import Service
from tests.hostile.conftest import Serve
from tests.hostile.watch import Watch
from tests.search_app.api_client import event, named, picture

FLOOD_BYTES = 48 << 20
MAY_GROW = 24 << 20
PIECE = b"a" * (1 << 16)
HEAD = b"Host: 127.0.0.1\r\n"
POST = b"POST /v1/images HTTP/1.1\r\n" + HEAD + b"Content-Type: image/png\r\n"

# The bytes that are sent first, and those that are repeated after them.
FLOODS = {
    "an address": (b"GET /", PIECE),
    "a header's name": (b"GET /healthz HTTP/1.1\r\n" + HEAD, PIECE),
    "a header's value": (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"X: ", PIECE),
    "headers": (b"GET /healthz HTTP/1.1\r\n" + HEAD, b"X: " + PIECE[:60_000] + b"\r\n"),
    "small headers": (b"GET /healthz HTTP/1.1\r\n" + HEAD, b"a:\r\n" * 16_000),
    "a method": (b"", b"A" * (1 << 16)),
    "empty lines": (b"", b"\r\n" * (1 << 15)),
    "a chunk's extension": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", PIECE),
    "a chunk's size": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * (1 << 16)),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: " + PIECE[:60_000] + b"\r\n"),
    "cookies": (b"GET /v1/status HTTP/1.1\r\n" + HEAD, b"Cookie: a=" + PIECE[:60_000] + b"\r\n"),
}


def get(target: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    return b"GET %b HTTP/%b\r\n%b%b\r\n" % (target, version, HEAD, b"".join(header + b"\r\n" for header in headers))


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return POST + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
MALFORMED = [
    b"\0", b"\r\n\r\n", b"GET\r\n\r\n", b"GET /healthz\r\n\r\n", b"GET  /healthz HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", b"GET /healthz HTTP/1.1\n" + HEAD + b"\n",
    b"G\xffT / HTTP/1.1\r\n" + HEAD + b"\r\n", b"CONNECT evil.example:443 HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"EHLO example\r\nMAIL FROM:<a@b>\r\n",
    b"SSH-2.0-x\r\n", b"*1\r\n$4\r\nPING\r\n",
    *(get(target) for target in (
        b"/\xff\xfe", b"/\0", b"/%00%ff%c0%af", b"http://evil.example/healthz", b"//healthz", b"?", b"*", b"/%",
        b"/%zz", b"/v1/predictions/" + b"%2e" * 60, b"/v1/images/" + b"0" * 64 + b"?view=maybe", b"/healthz#\x7f",
    )),
    *(get(b"/healthz", header) for header in (
        b"X: a\r\n b", b"X: \0", b": none", b"X", b"X\xff: a", b"Content-Length: 5", b"Connection: \xff",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAM",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x",
    )),
    get(b"/healthz", version=b"9.9"), get(b"/v1/status", version=b"1.0"), get(b"/healthz", version=b"1.1 x"),
    get(b"/v1/images/" + b"0" * 64, b"Range: bytes=0-,0-,0-", b"If-None-Match: *"),
    *(post(b"Content-Length: " + length) for length in (
        b"-1", b"1e3", b"9\r\nContent-Length: 8", b"9" * 30, b"99999999999", b"9" * 5_000, b"0x10", b"+5", b"", b"0",
    )),
    post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"),
    post(b"Transfer-Encoding: chunked, identity"), post(b"Transfer-Encoding: xchunked"), post(CHUNKED, CHUNKED),
    *(post(CHUNKED, body=body) for body in (b"zz\r\n", b"-1\r\n", b"ffffffffffffffff\r\n", b"5\r\nabcdeX", b"5\r\nab")),
    post(b"Content-Encoding: gzip", b"Content-Length: 2", body=b"\x1f\x8b"),
    post(b"Expect: 100-continue", b"Content-Length: 5"), post(b"Expect: nothing", b"Content-Length: 0"),
]  # fmt: skip


def dial(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=20)


def exchange(service: Service, request: bytes) -> bytes:
    """Sends a request on a connection of its own; returns the response."""
    response = b""
    with dial(service) as connection:
        connection.sendall(request)
        while part := connection.recv(1 << 16):
            response += part
    return response


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One server for all but the last test; checks its output after them."""
    path = tmp_path_factory.mktemp("requests") / "lake"
    open_lake.create(str(path))
    running = Service(path)
    asyncio.run(running.ready())
    yield running
    output = running.output()
    ended = running.process.poll()
    running.kill()
    assert ended is None
    assert "Traceback" not in output, output[-3_000:]
    assert len(output) < 20_000  # a line for a request at most


def test_an_endless_head_is_cut_off(service: Service, say: Say) -> None:
    for name, (first, again) in FLOODS.items():
        before, sent = service.rss(), 0
        answered = b""
        with dial(service) as connection:
            with suppress(ConnectionError):
                connection.sendall(first)
                while sent < FLOOD_BYTES:
                    connection.sendall(again)
                    sent += len(again)
            with suppress(ConnectionError):
                answered = connection.recv(1 << 16)
        grown = service.rss() - before
        assert sent < FLOOD_BYTES, name
        assert grown < MAY_GROW, (name, grown >> 20)
        assert answered[:13] in (b"", b"HTTP/1.1 431 ", b"HTTP/1.1 400 ", b"HTTP/1.1 200 "), (name, answered[:80])
    say(f"{len(FLOODS)} endless heads, each cut off before {FLOOD_BYTES >> 20} MiB, no memory kept")


def test_a_malformed_request_gets_a_4xx_or_no_response(service: Service, say: Say) -> None:
    statuses: Counter[str] = Counter()
    for request in MALFORMED:
        with dial(service) as connection:
            connection.settimeout(1.0)
            connection.sendall(request)
            answer = b""
            with suppress(TimeoutError, ConnectionError):
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(1 << 16):
                    answer += part
        status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
        statuses[status[1].decode() if status else "none"] += 1
        assert status is None or status[1][:1] in b"1234", (request[:90], answer[:200])
        assert b"/admin" not in answer
    say(f"{len(MALFORMED)} malformed requests, answered {dict(statuses)}")
    assert statuses["400"] > 10


def test_clients_that_hang_up_leave_nothing_behind(service: Service, say: Say) -> None:
    image = picture(1)
    header = b"Lakeloop-Event: " + json.dumps(event()).encode() + b"\r\n"
    kinds = [
        (b"/v1/predictions", b"image/png", header), (b"/v1/images", b"image/png", b""),
        (b"/v1/predictions/batch", b"application/x-ndjson", b""), (b"/v1/feedback", b"application/json", b""),
        (b"/v1/search", b"application/json", b""), (b"/v1/queries", b"image/png", b""),
        (b"/v1/predictions", b"application/json", b""),
    ]  # fmt: skip
    for number in range(70):
        path, kind, more = kinds[number % len(kinds)]
        with dial(service) as connection:
            head = b"POST " + path + b" HTTP/1.1\r\n" + HEAD + b"Content-Type: " + kind + b"\r\n" + more
            length = b"Transfer-Encoding: chunked\r\n\r\n10\r\n" if number % 2 else b"Content-Length: 30000000\r\n\r\n"
            connection.sendall(head + length + image[:16])
    counted, deadline = 0.0, time.monotonic() + 20
    while counted < 70 and time.monotonic() < deadline:
        response = exchange(service, get(b"/metrics", b"Connection: close"))
        counted = sum(float(count) for count in re.findall(rb'requests_total{.*status="499"} (\S+)', response))
    assert counted == 70, re.findall(rb"requests_total.*", response)
    assert not re.findall(rb'requests_total{.*status="5', response)
    assert b"lakeloop_spool_events 0.0" in response
    assert open_lake.open(str(service.lake)).dataset("samples").count_rows() == 0
    say("70 clients hung up in the middle of a body: 70 counted, 0 stored, 0 faults")


def test_large_and_involved_bodies_hold_nobody_up(lake_of_columns: OpenLake, serve: Serve, say: Say) -> None:
    """Four megabytes of JSON take seconds to go through; sixty bodies at once would fill the memory."""
    service = serve(lake_of_columns, "--max-body-gb", "0.02")
    image = picture(1)
    size = 4_000_000
    base = b'{"image_id":"%s","model":"m","label":"l",' % named(image).encode()
    bodies = [
        base + b'"masks":[{"size":[65536,65536],"counts":"' + b"0" * 1_000_000 + b'"}]}',
        base + b'"scores":[' + b"0," * (size // 2) + b"0]}",
        base + b'"x":[' + b"1," * (size // 2) + b"1]}",
        base + b'"x":[' + b"[]," * (size // 3) + b"1]}",
        base + b'"x":"' + b"\\u0000" * (size // 6) + b'"}',
        base + b'"x":{' + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}}",
    ]
    statuses: Counter[int] = Counter()
    lock = threading.Lock()

    def send(body: bytes, chunked: bool) -> None:
        head = b"POST /v1/predictions HTTP/1.1\r\n" + HEAD + b"Content-Type: application/json\r\nConnection: close\r\n"
        whole = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        if chunked:
            parts = [body[start : start + 50_000] for start in range(0, len(body), 50_000)]
            whole = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            whole = b"Transfer-Encoding: chunked\r\n\r\n" + whole
        with dial(service) as connection:
            connection.settimeout(60)
            answer = b""
            with suppress(ConnectionError):
                connection.sendall(head + whole)
            with suppress(ConnectionError):
                answer = connection.recv(100)
        with lock:
            statuses[int(answer[9:12] or 0)] += 1

    with dial(service) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n%b" % (len(image), image))
        assert b" 201 " in connection.recv(1_000)
    with Watch(service) as watch:
        time.sleep(0.3)
        before = watch.resident["server"]
        threads = [threading.Thread(target=send, args=(body, n % 2 == 1)) for n, body in enumerate(bodies * 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        watch.check()
    grown = (watch.resident["server"] - before) >> 20
    answered = f"answered {dict(statuses)}"
    say(f"{len(threads)} bodies of megabytes at once, {answered}; the server grew by {grown} MiB; {watch}")
    assert set(statuses) <= {0, 201, 422, 503}
    assert statuses[503] + statuses[0] > 0
    assert grown < 600
    assert watch.slowest < 30
