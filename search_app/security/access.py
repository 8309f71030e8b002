"""ASGI middleware that checks every request's access key against the scope that the request needs.

A key comes as `Authorization: Bearer`. A browser that logged in sends a cookie, which may only read. Routes find the
key's id in the ASGI scope as `lakeloop_key_id`; it is None without a key. Pages find who uses them in the headers of
their websocket. `search_app/security/scopes.py` says which request needs which scope, and
`page_actions.py` beside it, which action of a page. `search_app/security/hosts.py` checks Host and Origin before.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from starlette.requests import cookie_parser

from lake.errors import BadInput
from search_app.security.hosts import POLICY_VIOLATION, same_origin
from search_app.security.identity import Identity
from search_app.security.login import Login, cookie_name
from search_app.security.oidc import ROUTES as OIDC_ROUTES
from search_app.security.oidc import Oidc
from search_app.security.scopes import scope_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lake.access.keys import Keyring

KEY_ID = "lakeloop_key_id"
USER = "lakeloop_user"
# What the gate tells pages, which see only the headers of the handshake.
IDENTITY_HEADERS = (b"x-lakeloop-key", b"x-lakeloop-user", b"x-lakeloop-scopes")
# Seconds. Keys older than FRESH are read again in the background. No request is checked against keys older than OLDEST,
# except while the lake takes longer than PATIENCE to answer.
FRESH, OLDEST, PATIENCE = 0.5, 1.0, 1.0


@dataclass(frozen=True)
class AccessPolicy:
    """Who may use a server.

    With `require_key`, every request needs a key or a login; without it, only a key that a request presents is checked.
    With `https`, browsers reach the server by https through a proxy. `users` are those of `Oidc`; empty without an
    identity provider.
    """

    require_key: bool = False
    https: bool = False
    users: tuple[str, ...] = ()


OPEN = AccessPolicy()


class Denial(NamedTuple):
    """The response to a refused request: status, a short reason for programs, a sentence for people."""

    status: int
    reason: str
    detail: str


class Credentials(NamedTuple):
    """The credentials of a request: Bearer tokens, cookies, Origin and Host."""

    keys: list[str]
    cookie: str
    origin: str | None
    host: str


class Access:
    """Passes a request on, or responds with 401, 403 or 503 and calls `refused` with the reason, for the counters."""

    def __init__(
        self,
        app: ASGIApp,
        keyring: Keyring,
        open_without_keys: bool,
        login: Login | None = None,
        refused: Callable[[str], None] | None = None,
    ) -> None:
        self.app = app
        self.keyring = keyring
        self.open = open_without_keys
        self.login = login
        self.refused = refused
        self._reading: asyncio.Future[None] | None = None
        self._until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        scope[KEY_ID] = None
        # Only this gate says who it is.
        scope["headers"] = [header for header in scope["headers"] if header[0] not in IDENTITY_HEADERS]
        path = scope["path"]
        needed = scope_of(scope.get("method", "WEBSOCKET"), path)
        if needed is None or (path in OIDC_ROUTES and self.login is not None and self.login.oidc is not None):
            await self.app(scope, receive, send)
            return
        credentials = _credentials(scope)
        if credentials.keys or not self.open:
            await self._fresh()
        if self.login is not None and self.login.serves(path) and scope["type"] == "http":
            await self.login.respond(scope, receive, send, self.open)
            return
        result = self.check(scope, credentials, needed)
        if isinstance(result, Denial):
            if self.refused is not None:
                self.refused(result.reason)
            await self._refuse(result, needed, scope, receive, send)
            return
        scope[KEY_ID], scope[USER] = result.key_id, result.user
        if scope["type"] == "websocket":
            values = (result.key_id or "", quote(result.user or ""), " ".join(result.scopes))
            named = zip(IDENTITY_HEADERS, values, strict=True)
            scope["headers"] += [(name, value.encode()) for name, value in named if value]
        if self.open:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._watched(credentials, needed, scope, receive, send)
        else:
            await self.app(scope, receive, _private_in_caches(send))

    def check(self, scope: Scope, credentials: Credentials, needed: str) -> Identity | Denial:
        """Whose request it is, or why it is refused."""
        if self.open and not credentials.keys:
            return Identity(scopes=("admin",))
        if self.keyring.lost():
            return Denial(503, "keys_unreadable", "the access keys of the lake cannot be read now; try again")
        method = scope.get("method", "WEBSOCKET")
        if credentials.keys:
            return self._by_key(credentials.keys, needed, f"{method} {scope['path']}")
        if credentials.cookie and self.login is not None:
            cookies = cookie_parser(credentials.cookie)
            identity = self.login.identity(cookies)
            if identity is not None:
                if needed != "read":
                    detail = f"{method} {scope['path']} needs scope {needed}; a browser login has only scope read"
                    return Denial(403, "missing_scope", detail)
                # Browsers send Origin with every request that can change data; a cookie alone is not enough.
                if method not in ("GET", "HEAD") and not same_origin(credentials.origin, credentials.host):
                    return Denial(
                        403,
                        "wrong_origin",
                        "a request with a login cookie needs an Origin header that names this server",
                    )
                return identity
        return Denial(401, "no_key", "this server needs an access key: send it as Authorization: Bearer ll_...")

    def _by_key(self, keys: list[str], needed: str, request: str) -> Identity | Denial:
        record = self.keyring.match(keys[0]) if len(keys) == 1 else None
        if record is None:
            return Denial(401, "unknown_key", "this lake has no such access key")
        state = record.state()
        if state != "active":
            return Denial(
                401,
                f"{state}_key",
                f"the access key {record.key_id} is {state}; get a new one from: lakeloop key create",
            )
        if not record.allows(needed):
            scopes = ", ".join(record.scopes)
            detail = f"{request} needs scope {needed}; the key {record.key_id} has {scopes}"
            return Denial(403, "missing_scope", detail)
        return Identity(record.key_id)

    async def _fresh(self) -> None:
        """Refreshes the keyring in a thread, and waits for it only if its keys are too old to be used.

        If the lake does not answer, only one request waits, not every one: see `Keyring.lost`.
        """
        age = self.keyring.age()
        if age < FRESH:
            return
        loop, reading = asyncio.get_running_loop(), self._reading
        if reading is None or reading.done() or reading.get_loop() is not loop:
            reading = self._reading = loop.run_in_executor(None, self.keyring.refresh, FRESH)
            self._until = loop.time() + PATIENCE
        if age >= OLDEST:
            await asyncio.wait({reading}, timeout=max(0.0, self._until - loop.time()))

    async def _watched(self, credentials: Credentials, needed: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks the key at each message, because a websocket outlives the request that opened it."""
        closed = False

        async def check_ended() -> bool:
            nonlocal closed
            if not closed:
                await self._fresh()
                if isinstance(self.check(scope, credentials, needed), Denial):
                    closed = True
                    await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "the login ended"})
            return closed

        async def checked_receive() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and await check_ended():
                return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
            return message

        async def checked_send(message: Message) -> None:
            if not closed and (message["type"] != "websocket.send" or not await check_ended()):
                await send(message)

        await self.app(scope, checked_receive, checked_send)

    async def _refuse(self, denial: Denial, needed: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": denial.detail[:120]})
            return
        headers = [(b"cache-control", b"no-store")]
        accepts = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        if denial.reason == "no_key" and self.login and scope["method"] == "GET" and b"text/html" in accepts:
            query = scope["query_string"]
            target = scope.get("raw_path", scope["path"].encode()) + (b"?" + query if query else b"")
            headers += [(b"location", f"/login?next={quote(target, safe='')}".encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 303, "headers": headers})
            await send({"type": "http.response.body"})
            return
        body = json.dumps(
            {"type": "about:blank", "title": HTTPStatus(denial.status).phrase, **denial._asdict()}, ensure_ascii=False
        ).encode()
        headers += [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
        match denial.status:
            case 401:
                headers.append((b"www-authenticate", _challenge(denial)))
            case 403 if denial.reason == "missing_scope":
                challenge = f'Bearer realm="lakeloop", error="insufficient_scope", scope="{needed}"'
                headers.append((b"www-authenticate", challenge.encode()))
            case 503:
                headers.append((b"retry-after", b"5"))
        await send({"type": "http.response.start", "status": denial.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def make_access(
    app: ASGIApp,
    keyring: Keyring,
    lake_uri: str,
    policy: AccessPolicy,
    pages: bool,
    refused: Callable[[str], None] | None = None,
) -> Access:
    """The middleware of a server. With `pages`, browsers can log in.

    Raises BadInput if the policy names users but requires no key, and as `Oidc` raises.
    """
    if policy.users and not policy.require_key:
        raise BadInput("--allow-user needs --require-key: without it everybody on this machine has access")
    oidc = Oidc(policy.users) if policy.users and pages else None
    login = Login(keyring, cookie_name(lake_uri), policy.https, oidc) if pages else None
    return Access(app, keyring, not policy.require_key, login, refused)


def _credentials(scope: Scope) -> Credentials:
    keys, cookie, origin, host = [], "", None, ""
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip().decode("latin-1"))
        elif name == b"cookie":
            cookie += "; " + value.decode("latin-1")
        elif name == b"origin":
            origin = value.decode("latin-1")
        elif name == b"host":
            host = value.decode("latin-1")
    return Credentials(keys, cookie, origin, host)


def _challenge(denial: Denial) -> bytes:
    return b'Bearer realm="lakeloop"' + (b"" if denial.reason == "no_key" else b', error="invalid_token"')


def _private_in_caches(send: Send) -> Send:
    """Marks responses as private, so that no proxy stores them and gives them to others."""

    async def private_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                (name, value.replace(b"public", b"private") if name.lower() == b"cache-control" else value)
                for name, value in message.get("headers", ())
            ]
        await send(message)

    return private_send
