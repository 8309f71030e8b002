"""Requests made to an ASGI app directly, header by header."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = Iterable[tuple[str, str]]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers everything; says which key it came with, and on a websocket repeats what it hears."""
    if scope["type"] == "http":
        headers = [(b"cache-control", b"public, max-age=60")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": str(scope.get("lakeloop_key_id")).encode()})
        return
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    named = [value.decode() for name, value in scope["headers"] if name == b"x-lakeloop-key"]
    await send({"type": "websocket.send", "text": ",".join(named)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def request(kind: str, method: str, path: str, headers: Headers) -> Scope:
    path, _, query = path.partition("?")
    scope: dict[str, Any] = {"type": kind, "path": path, "raw_path": path.encode(), "query_string": query.encode()}
    if kind == "http":
        scope |= {"method": method, "scheme": "http", "http_version": "1.1"}
    else:
        scope |= {"scheme": "ws", "subprotocols": []}
    named = {name.lower() for name, _ in headers}
    whole = [*headers, *([] if "host" in named else [("host", "lake.example:8501")])]
    return scope | {"headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in whole]}


async def ask(app: ASGIApp, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer:
    """One HTTP request."""
    answer = Answer(0, {}, b"")
    parts: list[Message] = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    await app(request("http", method, path, headers), receive, send)
    return answer


class Socket:
    """One websocket, spoken to in turns."""

    def __init__(self, app: ASGIApp, path: str, headers: Headers = ()) -> None:
        self._to: asyncio.Queue[Message] = asyncio.Queue()
        self._from: asyncio.Queue[Message] = asyncio.Queue()
        self._to.put_nowait({"type": "websocket.connect"})
        scope = request("websocket", "", path, headers)
        self.done = asyncio.ensure_future(app(scope, self._to.get, self._from.put))

    async def hear(self) -> Message:
        return await asyncio.wait_for(self._from.get(), 5)

    async def say(self, text: str) -> Message:
        self._to.put_nowait({"type": "websocket.receive", "text": text})
        return await self.hear()

    async def close(self) -> None:
        self._to.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self.done, 5)
