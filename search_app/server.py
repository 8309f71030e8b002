"""One ASGI process: the API in front, the Streamlit app behind it, both on one port.

`make_server` composes, `serve` runs it under uvicorn. It knows ports, hosts and settings; nothing of pages
or routes.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

import lake
from lake.errors import BadInput
from lake.extras import require
from search_app.api import make_api
from search_app.hosts import AllowedHosts, is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

MAIN_PAGE = Path(__file__).parent / "ui" / "main.py"
_API_PATHS = ("/healthz", "/readyz")


def make_server(lake_uri: str, ui: bool = True, hosts: Iterable[str] = ()) -> ASGIApp:
    """The whole server as one ASGI app; with `ui=False`, the API alone.

    It answers to loopback names and to `hosts`.
    """
    opened = lake.open(lake_uri)
    api = make_api(opened)
    if not ui:
        return AllowedHosts(api, hosts)
    require("streamlit", "streamlit", "app")
    from search_app.ui import session, settings

    settings.apply()
    session.bind(opened)
    from streamlit.web.server.starlette.starlette_app import App

    @asynccontextmanager
    async def lifespan(_: App) -> AsyncIterator[None]:
        async with api.router.lifespan_context(api):
            yield

    app = App(MAIN_PAGE, lifespan=lifespan)
    return AllowedHosts(ApiFirst(api, app), hosts)


class ApiFirst:
    """Paths of the API go to the API; everything else, with start-up and shut-down, to the app behind."""

    def __init__(self, api: FastAPI, app: ASGIApp) -> None:
        self.api = api
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_api = scope["type"] == "http" and (path.startswith("/v1/") or path in _API_PATHS)
        await (self.api if is_api else self.app)(scope, receive, send)


def serve(uri: str, host: str = "127.0.0.1", port: int = 8501, ui: bool = True) -> None:
    """Serve the lake at `uri` until interrupted; one line with the URL on stderr once it answers.

    Raises BadInput when the host can be reached from other machines (there are no keys yet) or the port is
    taken. Port 0 takes a free one.
    """
    if not is_loopback(host):
        raise BadInput(
            f"--host {host} would show the lake to other machines, and there are no access keys yet; "
            "serve on 127.0.0.1 and reach it through an SSH tunnel (ssh -L 8501:127.0.0.1:8501)"
        )
    listener = _listen(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    app = make_server(uri, ui=ui, hosts=[host])
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws_max_size=2**26, timeout_graceful_shutdown=2, server_header=False
    )
    _Announcing(config, f"lakeloop answers on {url}").run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise BadInput(f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port") from None
    listener.listen(128)
    return listener


class _Announcing(uvicorn.Server):
    """uvicorn, saying one line when it is ready."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            sys.stderr.write(self._line + "\n")
            sys.stderr.flush()
