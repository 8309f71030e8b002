"""One keep-alive connection over asyncio streams: it returns whole responses, or says how far a cut one came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Cut(ConnectionError):
    """The connection ended before the whole response. `begun`: a part of the response had arrived."""

    def __init__(self, why: str, begun: bool = False) -> None:
        super().__init__(why)
        self.begun = begun


def raw(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """A whole request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection:
    """Connects at the first request, and again after a cut."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> Answer:
        """Sends a request and returns the response. Raises Cut."""
        begun = False
        try:
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self._reader, self._writer
            assert reader is not None
            writer.write(request)
            await writer.drain()
            status = await reader.readline()
            begun = bool(status)
            if not status.endswith(b"\n"):
                raise Cut("the connection was closed", begun)
            headers: dict[str, str] = {}
            while (line := await reader.readline()) != b"\r\n":
                if not line:
                    raise Cut("the connection was closed", begun)
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        except Cut:
            await self.close()
            raise
        except (OSError, asyncio.IncompleteReadError) as error:
            await self.close()
            raise Cut(str(error), begun) from error
        if headers.get("connection") == "close":
            await self.close()
        return Answer(int(status.split()[1]), headers, body)

    async def get(self, path: str) -> Answer:
        return await self.ask(raw("GET", path))

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None


async def get(port: int, path: str) -> Answer:
    """One GET on a connection of its own. Raises Cut."""
    connection = Connection(port)
    try:
        return await connection.get(path)
    finally:
        await connection.close()
