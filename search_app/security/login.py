"""The login page of the app: it takes an access key and sets a session cookie.

A session is signed with a secret of this process, lasts twelve hours, and ends with its key. With it a browser can only
read. The pages are plain HTML without scripts. `search_app/security/scopes.py` says which request needs a login;
`search_app/security/oidc.py` is the login at an identity provider. This module needs no Streamlit.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from contextlib import suppress
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote

from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response

from search_app.security.hosts import same_origin
from search_app.security.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from lake.access.keys import KeyRecord, Keyring
    from search_app.security.oidc import Oidc

SESSION_SECONDS = 12 * 3600
LARGEST_FORM = 8_192
_FRAME = Template(Path(__file__).with_name("login.html").read_text())
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    # With no-referrer, browsers would post forms with `Origin: null`.
    "Referrer-Policy": "same-origin",
}


def cookie_name(lake_uri: str) -> str:
    """The name of the session cookie of a lake's server. Two servers on one host share cookies, so names differ."""
    return f"lakeloop_{hashlib.sha256(lake_uri.encode()).hexdigest()[:8]}"


class Login:
    """The pages /login and /logout, and the sessions that their cookies stand for."""

    def __init__(self, keyring: Keyring, cookie: str, https: bool = False, oidc: Oidc | None = None) -> None:
        self.keyring = keyring
        self.cookie = cookie
        self.https = https
        self.oidc = oidc
        self._secret = secrets.token_bytes(32)
        self._ended: dict[str, float] = {}

    def key_of(self, cookies: Mapping[str, str]) -> str | None:
        """The id of the key of a valid session; None without a session, or if it or its key has ended."""
        parts = cookies.get(self.cookie, "").split(".")
        if len(parts) != 4:
            return None
        key_id, ends, nonce, mac = parts
        if not hmac.compare_digest(self._mac(key_id, ends, nonce).encode(), mac.encode("utf-8", "replace")):
            return None
        if int(ends) <= time.time() or nonce in self._ended:
            return None
        record = self.keyring.get(key_id)
        return key_id if record is not None and record.state() == "active" and record.allows("read") else None

    def identity(self, cookies: Mapping[str, str]) -> Identity | None:
        """Whose cookies these are: of a session, or of the identity provider; None if they give no access."""
        key_id = self.key_of(cookies)
        if key_id is not None:
            return Identity(key_id)
        user = self.oidc.user(cookies) if self.oidc is not None else None
        return None if self.oidc is None or user is None else Identity(user=user, scopes=self.oidc.scopes(user))

    def admits(self, cookies: Mapping[str, str]) -> bool:
        """Whether these cookies give access to the pages."""
        return self.identity(cookies) is not None

    def serves(self, path: str) -> bool:
        """Whether the path belongs to the login."""
        return path in ("/login", "/logout") or (self.oidc is not None and path.startswith("/login/"))

    async def respond(self, scope: Scope, receive: Receive, send: Send, open_to_all: bool = False) -> None:
        """Responds to the paths of the login. A server that is open to all redirects to the app."""
        request = Request(scope, receive)
        with suppress(ClientDisconnect):
            response: Response = RedirectResponse("/", 303) if open_to_all else await self._respond(request)
            await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        path, cookies = request.scope["path"], cookie_parser(request.headers.get("cookie", ""))
        match request.method, path:
            case "GET" | "HEAD", "/login":
                return self._login_page(request, cookies)
            case "POST", "/login" | "/logout" if not _from_this_site(request):
                return _page("<p role=alert>Another site sent this form, so nothing was done.</p>", 403)
            case "POST", "/login":
                return await self._log_in(request)
            case "GET" | "HEAD", "/logout":
                return self._logout_page(cookies)
            case "POST", "/logout":
                return self._log_out(cookies)
            case "GET", _ if self.oidc is not None and (address := self.oidc.address(path.removeprefix("/login/"))):
                return RedirectResponse(address, 303, _HEADERS)
        return _page("<p role=alert>This page does not exist.</p>", 404)

    def _login_page(self, request: Request, cookies: Mapping[str, str]) -> Response:
        target = inside(request.query_params.get("next", "/"))
        if self.admits(cookies):
            return RedirectResponse(target, 303, _HEADERS)
        head = ""
        if request.headers.get("sec-fetch-site") == "cross-site" and "again" not in request.query_params:
            # A link on another site sends no SameSite=Strict cookie; a second request, from this page, does.
            again = f"/login?again=1&next={quote(target, safe='')}"
            head = f'<meta http-equiv="refresh" content="0; url={escape(again)}">'
        claims = self.oidc.claims(cookies) if self.oidc is not None else None
        if claims is not None:
            return self._form(target, f"{claims.get('email') or 'This account'} is not a user of this server.", 403)
        return self._form(target, head=head)

    async def _log_in(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_FORM:
                return _page("<p role=alert>This is not an access key.</p>", 413)
        form = parse_qs(body.decode("utf-8", "replace"))
        target = inside(form.get("next", ["/"])[0])
        record = self.keyring.match(form.get("key", [""])[0].strip())
        if record is None:
            return self._form(target, "This lake has no such key.", 401)
        if record.state() != "active":
            return self._form(target, f"This key is {record.state()}.", 401)
        if not record.allows("read"):
            return self._form(target, "This key has neither scope read nor admin.", 403)
        response = RedirectResponse(target, 303, _HEADERS)
        self._set(response, self._session(record), SESSION_SECONDS)
        return response

    def _logout_page(self, cookies: Mapping[str, str]) -> Response:
        if self.oidc is not None and self.oidc.claims(cookies) is not None:
            return _page('<p><a href="/auth/logout">Log out</a></p>')
        return _page("<form method=post action=/logout><button>Log out</button></form>")

    def _log_out(self, cookies: Mapping[str, str]) -> Response:
        if self.key_of(cookies) is not None:
            _, ends, nonce, _ = cookies[self.cookie].split(".")
            now = time.time()
            self._ended = {ended: until for ended, until in self._ended.items() if until > now} | {nonce: float(ends)}
        response = RedirectResponse("/login", 303, _HEADERS)
        self._set(response, "", 0)
        return response

    def _form(self, target: str, message: str = "", status: int = 200, head: str = "") -> Response:
        alert = f"<p role=alert>{escape(message)}</p>" if message else ""
        providers = ""
        for name, visible in self.oidc.providers() if self.oidc is not None else ():
            words = f"Log in with {name}" if visible else "Log in"
            providers += f'<p><a href="/login/{quote(name, safe="")}">{escape(words)}</a></p>'
        body = f"""{alert}{providers}<form method=post action=/login>
<input type=hidden name=next value="{escape(target)}">
<label for=key>Access key</label>
<input id=key name=key type=password autocomplete=current-password spellcheck=false required autofocus>
<button>Log in</button>
</form>
<p><small>Use a key with scope read or admin. Create it with: lakeloop key create --scope read</small></p>"""
        return _page(body, status, head)

    def _session(self, record: KeyRecord) -> str:
        ends, nonce = str(int(time.time()) + SESSION_SECONDS), secrets.token_hex(8)
        return f"{record.key_id}.{ends}.{nonce}.{self._mac(record.key_id, ends, nonce)}"

    def _mac(self, *parts: str) -> str:
        return hmac.new(self._secret, ".".join(parts).encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _set(self, response: Response, value: str, seconds: int) -> None:
        response.set_cookie(
            self.cookie, value, max_age=seconds, path="/", secure=self.https, httponly=True, samesite="strict"
        )


def inside(target: str) -> str:
    """The target if it is a path of this server, else /."""
    return target if re.fullmatch(r"/(?![/\\])[\x21-\x7e]*", target) else "/"


def _from_this_site(request: Request) -> bool:
    return same_origin(request.headers.get("origin"), request.headers.get("host", ""))


def _page(body: str, status: int = 200, head: str = "") -> Response:
    return HTMLResponse(_FRAME.substitute(head=head, body=body), status, _HEADERS)
