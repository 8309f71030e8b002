"""ASGI middleware that checks Host and Origin of every request against an allow-list.

A page on the internet can make a visitor's browser call 127.0.0.1, and with DNS rebinding even under the page's own
name. Both requests carry a foreign name, so this middleware refuses them before any route, for HTTP and for Streamlit's
websocket. It knows nothing of users, keys or routes.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from lake.errors import BadInput

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Addresses to listen on that no client can use as a name.
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})
# A name, an address or an IPv6 address in brackets, and a port: no user before an @, nothing else.
_NETLOC = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
POLICY_VIOLATION = 1008  # the close code of a websocket, RFC 6455
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or address, no port) can only be reached from this machine."""
    return host.lower() in LOOPBACK


def hostname(netloc: str) -> str:
    """The host of `host[:port]` in lower case, without IPv6 brackets; "" if it cannot be parsed."""
    if not _NETLOC.fullmatch(netloc):
        return ""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def checked_name(name: str) -> str:
    """The name in lower case. Raises BadInput if it is not just the name or address of a host."""
    if not _NAME.fullmatch(name) and not _is_ipv6(name):
        raise BadInput(f"--allow-host {name!r}: write only the name, without https:// and port")
    return name.lower()


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def same_origin(origin: str | None, host: str) -> bool:
    """Whether there is an Origin header and it names exactly the Host of the request."""
    try:
        return origin is not None and bool(host) and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


class AllowedHosts:
    """Refuses requests with an unknown Host, and cross-origin requests that could change data.

    An Origin header must name exactly the Host of the request. GET and HEAD may carry another origin, because a browser
    does not let the other page read the response. Streamlit's websocket counts as a change.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.hosts = LOOPBACK | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key: value.decode("latin-1") for key, value in scope["headers"] if key in (b"host", b"origin")}
        reason = self.refusal(headers.get(b"host", ""), headers.get(b"origin"), scope.get("method"))
        if reason is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason[:120]})
        else:
            body = json.dumps({"type": "about:blank", "title": "Forbidden", "status": 403, "detail": reason}).encode()
            content = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 403, "headers": content})
            await send({"type": "http.response.body", "body": body})

    def refusal(self, host: str, origin: str | None, method: str | None) -> str | None:
        """Why the request is refused; None if it is allowed. `method` is None for a websocket."""
        if hostname(host) not in self.hosts:
            return f"this server does not answer to the name {host!r}"
        if origin is None or method in ("GET", "HEAD"):
            return None
        if not same_origin(origin, host):
            return f"requests from {origin!r} are not accepted"
        return None
