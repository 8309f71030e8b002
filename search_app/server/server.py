"""One ASGI process: the API in front, the Streamlit app behind it, both on one port.

`make_server` composes the server, `serve` runs it under uvicorn. The module knows ports, hosts and settings; it knows
nothing of pages or routes.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import lake
from lake.access.keys import Keyring
from lake.errors import BadInput
from lake.extras import require
from lake.jobs import live_state
from lake.upkeep import at_start
from search_app.api.app import Api
from search_app.security.access import OPEN, AccessPolicy, make_access
from search_app.security.hosts import EVERYWHERE, AllowedHosts, checked_name, is_loopback
from search_app.security.page_messages import PageMessages
from search_app.security.request_limits import LimitedProtocol
from search_app.security.response_headers import ResponseHeaders
from search_app.security.server_paths import HiddenPaths
from search_app.server.live_ingest import IngestSettings, LiveIngest

if TYPE_CHECKING:
    from types import FrameType

    from search_app.api.routes.events import Fetch

MAIN_PAGE = Path(__file__).parents[1] / "ui" / "frame" / "main.py"
_API_PATHS = ("/healthz", "/readyz", "/metrics")
_CLOSED = ("/_stcore/upload_file/", "/_stcore/agent/")
# Requests in flight have this long after SIGTERM; the drainer then has some seconds more (`live_ingest.py`).
GRACE_SECONDS = 3
SWITCH_SECONDS = 0.0005
# Of mallopt(3), and the size from which a block is mapped by itself.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 1 << 20
# The largest a page sends is 10,000 selected ids, twice: 1.4 MB. 4 MB of empty widgets are 140 MB of memory.
MESSAGE_BYTES = 4 << 20
# The first page has priority over preparing the first query.
PREPARED_AFTER_SECONDS = 5.0


def make_server(api: Api, ui: bool = True, hosts: Iterable[str] = (), policy: AccessPolicy = OPEN) -> ASGIApp:
    """The whole server as one ASGI app; with `ui=False`, the API alone.

    It accepts requests to loopback names and `hosts`; `policy` decides who has access.
    """
    opened = api.service.lake
    keyring = Keyring(opened)

    def refused(reason: str) -> None:
        api.metrics.rejected.labels(reason).inc()

    def guarded(app: ASGIApp, pages: bool) -> ASGIApp:
        access = make_access(app, keyring, opened.uri, policy, pages, refused)
        return HiddenPaths(AllowedHosts(access, hosts), opened.uri)

    if not ui:
        served = guarded(api, False)
        return ResponseHeaders(served, is_page=lambda path: False)
    require("streamlit", "streamlit", "app")
    from search_app.ui import session, settings

    settings.apply()
    session.bind(opened)
    from streamlit.web.server.starlette.starlette_app import App

    app = PageMessages(App(MAIN_PAGE, lifespan=api.lifespan))
    served = guarded(ApiFirst(api, app), True)
    return ResponseHeaders(served, is_page=lambda path: not _is_api(path))


def _is_api(path: str) -> bool:
    return path.startswith("/v1/") or path in _API_PATHS


class ApiFirst:
    """Paths of the API go to the API; everything else, with start-up and shut-down, to the app behind.

    Streamlit's routes that no page of the app uses are closed: uploads, which it keeps in memory, and those of agents.
    """

    def __init__(self, api: ASGIApp, app: ASGIApp) -> None:
        self.api = api
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_api = scope["type"] == "http" and _is_api(path)
        if scope["type"] == "http" and any(closed in path for closed in _CLOSED):
            await Response(status_code=404)(scope, receive, send)
            return
        await (self.api if is_api else self.app)(scope, receive, send)


def serve(
    uri: str,
    host: str = "127.0.0.1",
    port: int = 8501,
    ui: bool = True,
    allow_hosts: Iterable[str] = (),
    policy: AccessPolicy = OPEN,
    settings: IngestSettings | None = None,
    fetch: Fetch | None = None,
    ready: Callable[[str], None] = lambda url: None,
    job_limits: tuple[int, float | None] | None = None,
) -> None:
    """Serve the lake at `uri` until interrupted; prints one line with the URL on stderr once it is ready.

    With `settings` it accepts events; `fetch` gets images by URL; `ready` is called with the URL after that line. On a
    host that other machines can reach every request needs a key, whatever `policy` says. `allow_hosts` are further
    names of the server. Port 0 takes a free port. `job_limits`: so many jobs at once, and GB of memory for each worker.
    Raises BadInput if keys are required and the lake has no active one, for a bad name, or if the port is taken.
    """
    if not is_loopback(host):
        policy = replace(policy, require_key=True)
    notices = at_start.mend(uri)
    opened = lake.open(uri)
    if job_limits is not None:
        live = live_state.of(opened)
        live.set_limits(*job_limits)
        live.close()
    for notice in notices + opened.notices:
        sys.stderr.write(f"lakeloop: {notice}\n")
    if policy.require_key and not Keyring(opened).any_active():
        reason = f"other machines can reach --host {host}" if not is_loopback(host) else "every request needs one"
        raise BadInput(
            f"{uri} has no access keys yet, but {reason}; create one: lakeloop key create --scope admin --lake {uri}"
        )
    names = {host, *map(checked_name, allow_hosts)} - EVERYWHERE
    listener = _listen(host, port)
    shown = host if host not in EVERYWHERE else min(names, default="localhost")
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}"
    api = Api(opened, LiveIngest(uri, settings) if settings else None, fetch)
    app = make_server(api, ui=ui, hosts=names, policy=policy)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws_max_size=MESSAGE_BYTES,
        ws_per_message_deflate=False,  # kilobytes would become megabytes before their size is known
        timeout_graceful_shutdown=GRACE_SECONDS,
        loop="uvloop",
        http=LimitedProtocol,
        server_header=False,
        proxy_headers=False,  # any client can write them
    )
    _return_large_blocks()
    # The spool's thread needs the interpreter for microseconds, many times per commit; by default it waits 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what is loaded by now stays: collecting it again and again costs milliseconds each time
    server = _Server(config, url, ready, api)
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises the signal that ended it once more; unhandled, it would make a clean exit look like a kill.
        signal.signal(signal.SIGTERM, lambda *_: None if server.started else sys.exit(0))
    server.run(sockets=[listener])
    gc.unfreeze()  # otherwise DuckDB complains at exit about objects that are left


def _return_large_blocks() -> None:
    """Memory of large bodies goes back to the system when they are gone: glibc would keep blocks of up to 32 MiB."""
    with suppress(OSError, AttributeError):  # another C library keeps what it keeps
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


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


class _Server(uvicorn.Server):
    """uvicorn that prints a line when it is ready, and is not ready any more once it is asked to end."""

    def __init__(self, config: uvicorn.Config, url: str, ready: Callable[[str], None], api: Api) -> None:
        super().__init__(config)
        self._sql = api.sql
        self._url = url
        self._ready = ready
        self._service = api.service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            sys.stderr.write(f"lakeloop listens on {self._url}\n")
            sys.stderr.flush()
            later = threading.Timer(PREPARED_AFTER_SECONDS, self._sql.prepare)
            later.daemon = True
            later.start()
            self._ready(self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.stopping = True
        super().handle_exit(sig, frame)
