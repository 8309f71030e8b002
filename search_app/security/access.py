"""Who may do what: every request's access key against the scope it needs, as ASGI middleware.

A key comes as `Authorization: Bearer`; a browser that logged in comes with a cookie, which can only read. Routes find
the key's id in the ASGI scope as `lakeloop_key_id`, None without one. Which request needs which scope is said in
`search_app/security/scopes.py`; Host and Origin are checked before, in `search_app/security/hosts.py`.
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
from search_app.security.hosts import same_origin
from search_app.security.login import Login, cookie_name
from search_app.security.oidc import ROUTES as OIDC_ROUTES
from search_app.security.oidc import Oidc
from search_app.security.scopes import scope_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lake.access.keys import Keyring

KEY_ID = "lakeloop_key_id"
KEY_HEADER = b"x-lakeloop-key"
# Seconds: the keys are read again in the background after the first, and no request is judged by older ones than the
# second, except while a lake takes longer than the third to answer.
FRESH, OLDEST, PATIENCE = 0.5, 1.0, 1.0


@dataclass(frozen=True)
class Policy:
    """How a server lets people in.

    `require_key`: every request needs a key or a login; otherwise only what a request presents is checked.
    `https`: browsers reach it by https, through a proxy. `users`: see `Oidc`; empty for no identity provider.
    """

    require_key: bool = False
    https: bool = False
    users: tuple[str, ...] = ()


OPEN = Policy()


class Refusal(NamedTuple):
    """An answer instead of the route's: its status, a word for machines, a sentence for people."""

    status: int
    reason: str
    detail: str


class Shown(NamedTuple):
    """What a request shows to be let in: Bearer tokens, cookies, Origin and Host."""

    keys: list[str]
    cookie: str
    origin: str | None
    host: str


class Access:
    """Lets a request pass, or answers it with 401 or 403 and tells `refused` the reason's word, to be counted."""

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
        path = scope["path"]
        needed = scope_of(scope.get("method", "WEBSOCKET"), path)
        if needed is None or (path in OIDC_ROUTES and self.login is not None and self.login.oidc is not None):
            await self.app(scope, receive, send)
            return
        shown = _shown(scope)
        if shown.keys or not self.open:
            await self._fresh()
        if self.login is not None and self.login.serves(path) and scope["type"] == "http":
            await self.login.answer(scope, receive, send, self.open)
            return
        verdict = self.judge(scope, shown, needed)
        if isinstance(verdict, Refusal):
            if self.refused is not None:
                self.refused(verdict.reason)
            await self._refuse(verdict, needed, scope, receive, send)
            return
        scope[KEY_ID] = verdict
        if scope["type"] == "websocket":
            # Pages see the handshake's headers and nothing else of it; what came under this name is not believed.
            headers = [one for one in scope["headers"] if one[0] != KEY_HEADER]
            scope["headers"] = [*headers, (KEY_HEADER, verdict.encode())] if verdict else headers
        if self.open:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._watched(shown, needed, scope, receive, send)
        else:
            await self.app(scope, receive, _kept_from_shared_caches(send))

    def judge(self, scope: Scope, shown: Shown, needed: str) -> str | Refusal | None:
        """The id of the key the request comes with, None without one, or why it is refused."""
        if self.open and not shown.keys:
            return None
        if self.keyring.lost():
            return Refusal(503, "keys_unreadable", "the lake's access keys cannot be read at the moment; try again")
        method = scope.get("method", "WEBSOCKET")
        if shown.keys:
            return self._by_key(shown.keys, needed, f"{method} {scope['path']}")
        if shown.cookie and self.login is not None:
            cookies = cookie_parser(shown.cookie)
            key_id = self.login.key_of(cookies)
            if key_id is not None or self.login.admits(cookies):
                if needed != "read":
                    detail = f"{method} {scope['path']} needs scope {needed}, and a browser's login can only read"
                    return Refusal(403, "missing_scope", detail)
                # Browsers send Origin with all that could change something; without one a cookie proves too little.
                if method not in ("GET", "HEAD") and not same_origin(shown.origin, shown.host):
                    return Refusal(403, "wrong_origin", "with a login's cookie the Origin header must be this server")
                return key_id
        return Refusal(401, "no_key", "this server needs an access key: send it as Authorization: Bearer ll_...")

    def _by_key(self, keys: list[str], needed: str, asked: str) -> str | Refusal:
        record = self.keyring.match(keys[0]) if len(keys) == 1 else None
        if record is None:
            return Refusal(401, "unknown_key", "the access key is not one of this lake's")
        state = record.state()
        if state != "active":
            return Refusal(401, f"{state}_key", f"the access key {record.key_id} is {state}; ask for another")
        if not record.allows(needed):
            has = ", ".join(record.scopes)
            return Refusal(403, "missing_scope", f"{asked} needs scope {needed}; the key {record.key_id} has {has}")
        return record.key_id

    async def _fresh(self) -> None:
        """Has the keyring ask the lake, in a thread, and waits for it only when its keys are too old to judge by.

        A lake that does not answer is waited for once, not by every request: see `Keyring.lost`.
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

    async def _watched(self, shown: Shown, needed: str, scope: Scope, receive: Receive, send: Send) -> None:
        """A websocket outlives the request that opened it: each message is judged anew, so it ends with its key."""
        closed = False

        async def ended() -> bool:
            nonlocal closed
            if not closed:
                await self._fresh()
                if isinstance(self.judge(scope, shown, needed), Refusal):
                    closed = True
                    await send({"type": "websocket.close", "code": 1008, "reason": "the login ended"})
            return closed

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and await ended():
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        async def said(message: Message) -> None:
            if not closed and (message["type"] != "websocket.send" or not await ended()):
                await send(message)

        await self.app(scope, heard, said)

    async def _refuse(self, why: Refusal, needed: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": why.detail[:120]})
            return
        headers = [(b"cache-control", b"no-store")]
        accepts = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        if why.reason == "no_key" and self.login and scope["method"] == "GET" and b"text/html" in accepts:
            query = scope["query_string"]
            asked = scope.get("raw_path", scope["path"].encode()) + (b"?" + query if query else b"")
            headers += [(b"location", f"/login?next={quote(asked, safe='')}".encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 303, "headers": headers})
            await send({"type": "http.response.body"})
            return
        body = json.dumps(
            {"type": "about:blank", "title": HTTPStatus(why.status).phrase, **why._asdict()}, ensure_ascii=False
        ).encode()
        headers += [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
        match why.status:
            case 401:
                headers.append((b"www-authenticate", _challenge(why)))
            case 403 if why.reason == "missing_scope":
                challenge = f'Bearer realm="lakeloop", error="insufficient_scope", scope="{needed}"'
                headers.append((b"www-authenticate", challenge.encode()))
            case 503:
                headers.append((b"retry-after", b"5"))
        await send({"type": "http.response.start", "status": why.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def make_access(
    app: ASGIApp,
    keyring: Keyring,
    lake_uri: str,
    policy: Policy,
    pages: bool,
    refused: Callable[[str], None] | None = None,
) -> Access:
    """The middleware for one server; with `pages`, browsers can log in.

    Raises BadInput for users on a server that is open to all, and as `Oidc`.
    """
    if policy.users and not policy.require_key:
        raise BadInput("--allow-user needs --require-key: without it everybody on this machine is let in")
    oidc = Oidc(policy.users) if policy.users and pages else None
    login = Login(keyring, cookie_name(lake_uri), policy.https, oidc) if pages else None
    return Access(app, keyring, not policy.require_key, login, refused)


def _shown(scope: Scope) -> Shown:
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
    return Shown(keys, cookie, origin, host)


def _challenge(why: Refusal) -> bytes:
    return b'Bearer realm="lakeloop"' + (b"" if why.reason == "no_key" else b', error="invalid_token"')


def _kept_from_shared_caches(send: Send) -> Send:
    """What a key was needed for must not be kept by a proxy, which would give it to anybody."""

    async def said(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                (name, value.replace(b"public", b"private") if name.lower() == b"cache-control" else value)
                for name, value in message.get("headers", ())
            ]
        await send(message)

    return said
