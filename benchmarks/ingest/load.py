"""Generates load for an HTTP server: a closed loop of clients, or an open loop at a fixed rate.

It uses plain sockets under uvloop and parses responses by hand, because it shares the machine with the server. In an
open loop each request has a due time and its latency counts from there, even if the generator or the server is late (no
coordinated omission). A request without a free connection counts as `late`. Each request appends other bytes to one of
a few prepared images, so that no two images are equal.
"""

from __future__ import annotations

import asyncio
import resource
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import numpy as np
import uvloop

Request = Callable[[], list[bytes]]
GRACE_SECONDS = 3.0


@dataclass
class Result:
    """`milliseconds`: latencies of requests with a 2xx response; `seconds`: how long requests were sent.

    `late` requests of an open loop were never sent; `broken` connections ended without a response. `cpu_seconds` are
    those of the generator.
    """

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    milliseconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    late: int = 0
    broken: int = 0
    cpu_seconds: float = 0.0

    @property
    def accepted(self) -> int:
        return sum(n for status, n in self.statuses.items() if 200 <= status < 300)

    def figures(self) -> dict[str, Any]:
        """As JSON: accepted requests and all responses per second, latency percentiles of the accepted, counts."""
        p50, p99 = np.quantile(self.milliseconds, [0.5, 0.99]).tolist() if self.milliseconds else (None, None)
        return {
            "accepted_per_second": self.accepted / self.seconds,
            "responses_per_second": self.statuses.total() / self.seconds,
            "p50_ms": p50,
            "p99_ms": p99,
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "without_retry_after": self.without_retry_after,
            "late": self.late,
            "broken": self.broken,
            "generator_cores": self.cpu_seconds / self.seconds,
        }


def predictions(images: list[bytes], path: str = "/v1/predictions") -> Request:
    """A function that makes requests with a prediction and its image, each different."""
    heads = [
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(data) + 16}\r\nLakeloop-Event: ".encode()
        for data in images
    ]
    sent = 0

    def request() -> list[bytes]:
        nonlocal sent
        sent += 1
        index = sent % len(images)
        prediction_id = uuid.uuid4()
        event = b'{"prediction_id":"%s","model":"m","model_version":"3","label":"cat","confidence":0.5,"camera":7}'
        head = heads[index] + event % str(prediction_id).encode() + b"\r\n\r\n"
        return [head, images[index], prediction_id.bytes]

    return request


def closed(port: int, clients: int, seconds: float, request: Request) -> Result:
    """`clients` connections; each sends its next request when the last response arrives."""
    return uvloop.run(_Load(port, seconds, request).closed(clients))


def open_loop(port: int, rate: float, seconds: float, request: Request, connections: int = 256) -> Result:
    """`rate` requests per second at even intervals, over at most `connections` connections."""
    return uvloop.run(_Load(port, seconds, request).open(rate, connections))


class _Load:
    def __init__(self, port: int, seconds: float, request: Request) -> None:
        self.port = port
        self.seconds = seconds
        self.request = request
        self.result = Result(seconds)
        self.idle: deque[_Connection] = deque()
        self.alive = 0

    async def closed(self, clients: int) -> Result:
        until = 0.0

        def again(connection: _Connection) -> None:
            moment = perf_counter()
            if moment < until:
                connection.send(self.request(), moment)

        connections = await self._connect(clients, again)
        cpu = _cpu()
        until = perf_counter() + self.seconds
        for connection in connections:
            connection.send(self.request(), perf_counter())
        await self._end(connections, until, cpu)
        return self.result

    async def open(self, rate: float, most: int) -> Result:
        connections = await self._connect(most, self.idle.append)
        self.idle.extend(connections)
        cpu = _cpu()
        start = perf_counter()
        due = 0
        while due < rate * self.seconds:
            moment = perf_counter()
            while due < rate * self.seconds and start + due / rate <= moment:
                if self.idle:
                    self.idle.popleft().send(self.request(), start + due / rate)
                else:
                    self.result.late += 1
                due += 1
            await asyncio.sleep(max(0.0, start + due / rate - perf_counter()))
        await self._end(connections, perf_counter(), cpu)
        return self.result

    async def _connect(self, count: int, ready: Callable[[_Connection], None]) -> list[_Connection]:
        loop = asyncio.get_running_loop()

        def make() -> _Connection:
            return _Connection(self, ready)

        pairs = [await loop.create_connection(make, "127.0.0.1", self.port) for _ in range(count)]
        return [protocol for _, protocol in pairs]

    async def _end(self, connections: list[_Connection], until: float, cpu: float) -> None:
        """Waits at most GRACE_SECONDS for outstanding responses, since their requests were sent in time."""
        await asyncio.sleep(max(0.0, until - perf_counter()))
        self.result.cpu_seconds = _cpu() - cpu
        deadline = perf_counter() + GRACE_SECONDS
        while perf_counter() < deadline and any(c.waiting for c in connections):
            await asyncio.sleep(0.02)
        self.result.broken += sum(c.waiting for c in connections)
        for connection in connections:
            connection.end()


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one outstanding request."""

    def __init__(self, load: _Load, ready: Callable[[_Connection], None]) -> None:
        self.load = load
        self.ready = ready
        self.waiting = False
        self.ended = False
        self.received = b""
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, parts: list[bytes], due: float) -> None:
        self.due = due
        self.waiting = True
        self.transport.writelines(parts)

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.received[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self.received) < end + 4 + length:
            return
        result = self.load.result
        status = int(head[9:12])
        result.statuses[status] += 1
        if status < 300:
            result.milliseconds.append((perf_counter() - self.due) * 1e3)
        elif status in (429, 503, 507) and b"retry-after:" not in head:
            result.without_retry_after += 1
        self.received = b""
        self.waiting = False
        self.ready(self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended:
            self.load.result.broken += 1
            self.waiting = False

    def end(self) -> None:
        self.ended = True
        self.transport.abort()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
