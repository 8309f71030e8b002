"""Logging in at an identity provider: a small real one, the real server, and who of those it vouches for gets in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from lake import open_lake
from lake.access import keys
from lake.access.keys import Keyring
from lake.errors import BadInput, MissingExtra
from lake.open_lake import OpenLake
from search_app.security.access import AccessPolicy, make_access
from search_app.security.oidc import Oidc, _user
from tests.search_app.asgi import echo

pytest.importorskip("streamlit")
pytest.importorskip("authlib")

ROOT = Path(__file__).parents[3]
STREAMLIT = [Subprotocol("streamlit")]
SECRET = "a test's cookie secret, 32 characters or more"
ANN = {"sub": "1", "email": "Ann@lab.example", "email_verified": True}


@dataclass
class Provider:
    """An OpenID Connect provider that confirms every user that a test names."""

    claims: dict[str, Any] = field(default_factory=lambda: dict(ANN))
    url: str = ""

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
        from joserfc import jwt

        match path:
            case "/.well-known/openid-configuration":
                ends = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/jwks"}
                facts = {name: self.url + end for name, end in ends.items()}
                return 200, {}, facts | {"issuer": self.url, "code_challenge_methods_supported": ["S256"]}
            case "/authorize":
                self.nonce = query["nonce"]
                back = urlencode({"code": "c", "state": query["state"]})
                return 302, {"Location": f"{query['redirect_uri']}?{back}"}, None
            case "/token":
                now = int(time.time())
                token = {"iss": self.url, "aud": "lakeloop", "iat": now, "exp": now + 60, "nonce": self.nonce}
                signed = jwt.encode({"alg": "RS256", "kid": "k"}, token | self.claims, self.key)
                return 200, {}, {"access_token": "a", "token_type": "Bearer", "id_token": signed}
        return 200, {}, {"keys": [self.key.as_dict(private=False)]}

    def start(self) -> ThreadingHTTPServer:
        from joserfc.jwk import RSAKey

        self.key = RSAKey.generate_key(2048, {"kid": "k", "use": "sig", "alg": "RS256"})
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(path.query).items()}
                status, headers, facts = provider.answer(path.path, query)
                body = json.dumps(facts).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Type": "application/json"}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@dataclass
class Served:
    url: str
    provider: Provider
    token: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`lakeloop serve --require-key` for Ann and everybody at team.example, in a folder with secrets.toml."""
    folder = tmp_path_factory.mktemp("oidc")
    lake = open_lake.create(str(folder / "lake"))
    _, token = keys.create(lake, None, ["admin"])
    provider = Provider()
    server = provider.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit/secrets.toml").write_text(
        f'[auth]\nredirect_uri = "http://127.0.0.1:{port}/oauth2callback"\ncookie_secret = "{SECRET}"\n'
        f'client_id = "lakeloop"\nclient_secret = "s"\n'
        f'server_metadata_url = "{provider.url}/.well-known/openid-configuration"\n'
    )
    command = [sys.executable, "-m", "search_app.cli.main", "serve", "--lake", lake.uri, "--port", str(port)]
    command += ["--require-key", "--allow-user", "ann@lab.example", "--allow-user", "@team.example"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        reader = threading.Thread(target=lines.extend, args=[process.stderr])
        reader.start()
        try:
            assert lines[0].startswith("lakeloop listens on"), lines[0]
            yield Served(f"http://127.0.0.1:{port}", provider, token)
        finally:
            process.terminate()
            process.wait(30)
            reader.join(30)
            server.shutdown()
            server.server_close()


def _log_in(client: httpx.Client) -> list[str]:
    """Follows the link of the login page to wherever it leads; returns the paths gone through."""
    assert '<a href="/login/default">Log in</a>' in client.get("/login").text
    went, answer = [], client.get("/login/default")
    while answer.is_redirect:
        went.append(urlsplit(answer.headers["location"]).path)
        answer = client.get(answer.headers["location"])
    return went


def test_ann_logs_in_at_her_provider_and_may_look_but_not_write(served: Served) -> None:
    served.provider.claims = dict(ANN)
    stream = served.url.replace("http", "ws") + "/_stcore/stream"
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        assert client.get("/").status_code == 401
        assert _log_in(client) == ["/auth/login", "/authorize", "/oauth2callback", "/"]
        assert client.get("/search").status_code == 200
        assert client.get("/v1/status").json()["images"] == 0
        event = {"prediction_id": "1", "verdict": "correct"}
        refused = client.post("/v1/feedback", json=event, headers={"Origin": served.url})
        assert (refused.status_code, refused.json()["reason"]) == (403, "missing_scope")
        cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
        with connect(stream, origin=Origin(served.url), subprotocols=STREAMLIT, additional_headers=cookies):
            pass
        with pytest.raises(InvalidStatus, match="403"):
            connect(stream, origin=Origin("http://evil.example"), subprotocols=STREAMLIT, additional_headers=cookies)
        assert "/auth/logout" in client.get("/logout").text
        client.get("/auth/logout")
        assert client.get("/search").status_code == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "2", "email": "mallory@elsewhere.example", "email_verified": True},
        {"sub": "2", "email": "ann@lab.example", "email_verified": False},
        {"sub": "2", "email": "ann@lab.example"},
        {"sub": "ann@lab.example"},
    ],
)
def test_a_user_who_is_not_listed_is_told_so(served: Served, claims: dict[str, Any]) -> None:
    served.provider.claims = claims
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        _log_in(client)
        for path in ("/", "/v1/status", "/_stcore/host-config"):
            assert client.get(path).status_code == 401
        page = client.get("/login")
        assert (page.status_code, "is not a user of this server" in page.text) == (403, True)


def test_a_key_still_opens_by_api_and_by_the_login_page(served: Served) -> None:
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        assert client.get("/v1/status", headers={"Authorization": f"Bearer {served.token}"}).status_code == 200
        assert client.post("/login", data={"key": served.token}, headers={"Origin": served.url}).status_code == 303
        assert client.get("/search").status_code == 200
        assert client.get("/login/nobody").status_code == 404


# Who may enter, without a server ---------------------------------------------------------------------------------


class OidcWithClaims(Oidc):
    """An Oidc with the users and the secret of the test."""

    def __init__(self, *users: str) -> None:
        self.users = dict(map(_user, users))
        self._secret, self._origin = SECRET, "http://127.0.0.1:8501"

    def cookie(self, claims: dict[str, Any]) -> dict[str, str]:
        """What Streamlit leaves in the browser of somebody with these claims."""
        from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

        whole = {"is_logged_in": True, "origin": self._origin, **claims}
        return {"_streamlit_user": create_signed_value(self._secret, "_streamlit_user", json.dumps(whole)).decode()}


@pytest.mark.parametrize(
    ("users", "claims", "enters"),
    [
        (["ann@lab.example"], ANN, "ann@lab.example"),
        (["@lab.example"], ANN, "ann@lab.example"),
        (["@example"], ANN, None),
        (["bob@lab.example"], ANN, None),
        (["@lab.example"], {"email": "ann@lab.example@evil.example", "email_verified": True}, None),
        (["@lab.example"], {"email": "ann", "email_verified": True}, None),
        (["@lab.example"], {"email": "ann@lab.example", "email_verified": "false"}, None),
        (["*"], {"sub": "7"}, "7"),
        (["*"], {"sub": "7", "is_logged_in": False}, None),
        (["*"], {"sub": "7", "origin": "https://other.example"}, None),
    ],
)
def test_only_listed_users_enter(users: list[str], claims: dict[str, Any], enters: str | None) -> None:
    login = OidcWithClaims(*users)
    assert login.user(login.cookie(claims)) == enters


def test_a_login_at_the_provider_lasts_half_a_day_and_needs_this_server_s_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login = OidcWithClaims("*")
    assert login.user({}) is None
    assert login.user({"_streamlit_user": "x"}) is None
    cookie = login.cookie(ANN)
    assert login.user(cookie) == "ann@lab.example"
    login._secret = SECRET[::-1]
    assert login.user(cookie) is None
    login._secret, now = SECRET, time.time()
    monkeypatch.setattr(time, "time", lambda: now + 11 * 3600)
    assert login.user(cookie) == "ann@lab.example"
    monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
    assert login.user(cookie) is None


@pytest.mark.parametrize("user", ["ann", "a@b@c", "ann@", ""])
def test_a_user_is_an_address_a_domain_or_everybody(user: str) -> None:
    with pytest.raises(BadInput, match="--allow-user"):
        Oidc([user])


def test_users_mean_nothing_on_a_server_that_is_open_to_all(lk: OpenLake) -> None:
    with pytest.raises(BadInput, match="needs --require-key"):
        make_access(echo, Keyring(lk), lk.uri, AccessPolicy(users=("*",)), pages=True)


def _start(folder: Path, secrets: str) -> str:
    """What making an Oidc says in a process whose folder has these secrets."""
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit/secrets.toml").write_text(secrets)
    lines = ["from search_app.security.oidc import Oidc, _user", "from lake.errors import LakeloopError"]
    lines += ["try:", "    print(dict(Oidc(['*']).providers()))", "except LakeloopError as error:", "    print(error)"]
    out = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(folder)},
    )
    return out.stdout + out.stderr


GOOD = f'[auth]\nredirect_uri = "http://x/oauth2callback"\ncookie_secret = "{SECRET}"\n'
ONE = 'client_id = "c"\nclient_secret = "s"\nserver_metadata_url = "https://x/"\n'


@pytest.mark.parametrize(
    ("secrets", "why"),
    [
        ("", "needs an identity provider"),
        (GOOD.replace(SECRET, "short") + ONE, "32 random characters"),
        (GOOD, "names no provider"),
        (GOOD + "[auth.corp]\n" + ONE, "{'corp': True}"),
        (GOOD + '[auth.corp]\nclient_id = "c"\n', "missing the following keys"),
    ],
)
def test_incomplete_secrets_are_refused_with_the_reason(tmp_path: Path, secrets: str, why: str) -> None:
    message = _start(tmp_path, secrets)
    assert why in message
    assert "Traceback" not in message


def test_without_authlib_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit import auth_util

    monkeypatch.setattr(auth_util, "is_authlib_installed", lambda: False)
    with pytest.raises(MissingExtra, match=r"lakeloop\[oidc\]"):
        Oidc(["*"])


def test_a_user_reads_unless_more_is_granted_and_the_most_specific_entry_counts() -> None:
    login = OidcWithClaims("*", "@lab.example=edit,sql", "ann@lab.example=admin", "bob@lab.example")
    assert login.scopes("eve@elsewhere.example") == ("read",)
    assert login.scopes("carl@lab.example") == ("read", "edit", "sql")
    assert login.scopes("ann@lab.example") == ("read", "admin")
    assert login.scopes("bob@lab.example") == ("read",)
    assert OidcWithClaims("ann@lab.example").scopes("bob@lab.example") == ()


def test_a_user_with_an_unknown_scope_is_refused() -> None:
    with pytest.raises(BadInput, match="no scope 'root'"):
        OidcWithClaims("ann@lab.example=root")
