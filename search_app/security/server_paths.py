"""Takes the server's folders out of what it answers: who reads over HTTP need not know where its files are.

It covers every text that the server makes: errors, the status, jobs with their errors and results. It leaves alone what
people stored: rows of tables, and files. The command line and logs name files as they are.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LAKE = "<lake>"
# A longer body is searched on a thread, and not on the event loop.
SHORT_BYTES = 64 << 10
_CUT = "…".encode()
# A part of a path, also with characters as JSON escapes them.
_NAME = rb"(?:[^\s\"'`\\,:;()\[\]{}<>|*?/]|\\u[0-9a-f]{4})+"
_TEXTS = (b"application/json", b"application/problem+json", b"text/")
# What was stored, as it was stored; pulled files are checked by their hash.
_STORED = re.compile(r"/v1/(sql|search|predictions(/.*)?|images(/.*)?|records/.*|slices/[^/]*/(manifest|images))/?\Z")


class ServerPaths:
    """The folders of this process: the lake's, the user's home, the temporary one, the installation's, and any other.

    `hidden` is for a message, `hidden_in` for a body of JSON or text.
    """

    def __init__(self, lake_uri: str) -> None:
        lake = [lake_uri.rstrip("/")]
        if "://" not in lake_uri:
            lake += [os.path.abspath(lake_uri), os.path.realpath(lake_uri)]
        package = str(Path(__file__).parents[2])
        others = [str(Path.home()), tempfile.gettempdir(), os.getcwd(), package, sys.prefix, sys.base_prefix]
        names = dict.fromkeys(others, _CUT.decode()) | dict.fromkeys(lake, LAKE)
        self._names = {
            text.encode(): name.encode()
            for folder, name in names.items()
            if len(folder) > 1
            for text in {folder, _escaped(folder, True), _escaped(folder, False)}
        }
        known = b"|".join(map(re.escape, sorted(self._names, key=len, reverse=True)))
        roots = b"|".join(re.escape(os.fsencode(entry.name)) for entry in os.scandir("/") if entry.is_dir())
        self._known = re.compile(rb"(?<![\w.])(" + known + rb")(?![\w-])")
        # Any other path: of it, the last name stays.
        begin = rb"(?:(?<![\w.~>-])/(?:" + roots + rb")|" + _CUT + rb")"
        self._paths = re.compile(begin + rb"(?:/" + _NAME + rb")*(?=/[^\s/\"])")

    def hidden(self, text: str) -> str:
        """The text without the server's folders."""
        return self.hidden_in(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def hidden_in(self, body: bytes) -> bytes:
        """The body without the server's folders; JSON stays JSON."""
        if b"/" not in body:
            return body
        body = self._known.sub(lambda found: self._names[found[1]], body)
        return self._paths.sub(_CUT, body)


class HiddenPaths:
    """ASGI middleware that hides the server's folders in texts."""

    def __init__(self, app: ASGIApp, lake_uri: str) -> None:
        self.app = app
        self._paths = ServerPaths(lake_uri)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "HEAD":
            await self.app(scope, receive, send)
            return
        ours, whole = False, b""
        start: Message | None = None

        async def send_hidden(message: Message) -> None:
            nonlocal ours, start, whole
            if message["type"] == "http.response.start" and self._is_ours(scope["path"], message):
                ours = True
                if any(name.lower() == b"content-length" for name, _ in message["headers"]):
                    start = message  # sent when the new length is known
                    return
            elif message["type"] == "http.response.body" and ours:
                body = whole + message.get("body", b"")
                if start is not None and message.get("more_body"):
                    whole = body
                    return
                message = {**message, "body": await self._hidden(body)}
                if start is not None:
                    await send(_resized(start, len(message["body"])))
            await send(message)

        await self.app(scope, receive, send_hidden)

    @staticmethod
    def _is_ours(path: str, start: Message) -> bool:
        kind = next((value for name, value in start["headers"] if name.lower() == b"content-type"), b"")
        made = path.startswith("/v1/") and not _STORED.match(path)
        return kind.startswith(_TEXTS) and (made or start["status"] >= 400)

    async def _hidden(self, body: bytes) -> bytes:
        if len(body) <= SHORT_BYTES:
            return self._paths.hidden_in(body)
        return await asyncio.to_thread(self._paths.hidden_in, body)


def _resized(start: Message, size: int) -> Message:
    """The start of a response, for a body of this size."""
    headers = [(n, b"%d" % size if n.lower() == b"content-length" else value) for n, value in start["headers"]]
    return {**start, "headers": headers}


def _escaped(text: str, ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=ascii)[1:-1]
