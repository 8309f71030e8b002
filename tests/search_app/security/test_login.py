"""The login of a browser: what opens a session, what it may do, and what ends it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from lake import open_lake
from lake.access import keys
from lake.access.keys import KeyRecord, Keyring
from lake.open_lake import OpenLake
from search_app.security.access import Access, AccessPolicy, make_access
from search_app.security.login import SESSION_SECONDS, inside
from tests.search_app.asgi import Answer, Headers, Socket, ask, echo

ROOT = Path(__file__).parents[3]
STREAMLIT = [Subprotocol("streamlit")]
HERE = "http://lake.example:8501"
OURS = ("Origin", HERE)
ID = "0" * 64


@dataclass
class LoginApp:
    lake: OpenLake
    app: Access
    record: KeyRecord
    token: str

    def enter(self, key: str, *headers: tuple[str, str], next: str = "/") -> Answer:
        body = urlencode({"key": key, "next": next}).encode()
        return self.ask("POST", "/login", *(headers or [OURS]), body=body)

    def ask(self, method: str, path: str, *headers: tuple[str, str], body: bytes = b"") -> Answer:
        return asyncio.run(ask(self.app, method, path, headers, body))

    def cookie(self) -> tuple[str, str]:
        """A new session, as a browser sends it back."""
        return ("Cookie", "theme=dark; " + self.enter(self.token).headers["set-cookie"].partition(";")[0])


@pytest.fixture
def login_app(lk: OpenLake) -> LoginApp:
    record, token = keys.create(lk, None, ["read"])
    return LoginApp(
        lk, make_access(echo, Keyring(lk), lk.uri, AccessPolicy(require_key=True), pages=True), record, token
    )


def test_a_page_leads_to_the_login_and_back(login_app: LoginApp) -> None:
    browser = ("Accept", "text/html,*/*")
    led = login_app.ask("GET", "/search?like=a&k=3", browser)
    assert (led.status, led.headers["location"]) == (303, "/login?next=%2Fsearch%3Flike%3Da%26k%3D3")
    page = login_app.ask("GET", led.headers["location"], browser)
    assert page.status == 200
    assert 'value="/search?like=a&amp;k=3"' in page.body.decode()
    assert login_app.enter(login_app.token, next="/search?like=a&k=3").headers["location"] == "/search?like=a&k=3"
    assert login_app.ask("GET", "/search", login_app.cookie()).body.decode() == login_app.record.key_id
    again = login_app.ask("GET", "/login?next=/search", login_app.cookie())
    assert (again.status, again.headers["location"]) == (303, "/search"), "nobody logs in twice"


def test_the_cookie_is_for_this_server_s_own_pages_only(login_app: LoginApp) -> None:
    flags = login_app.enter(login_app.token).headers["set-cookie"].lower().split("; ")[1:]
    assert set(flags) == {"httponly", "samesite=strict", "path=/", f"max-age={SESSION_SECONDS}"}
    by_https = make_access(
        echo, Keyring(login_app.lake), login_app.lake.uri, AccessPolicy(require_key=True, https=True), pages=True
    )
    login_app.app = by_https
    assert "secure" in login_app.enter(login_app.token).headers["set-cookie"].lower().split("; ")
    page = login_app.ask("GET", "/login")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert "<script" not in page.body.decode()


def test_keys_that_do_not_open(login_app: LoginApp) -> None:
    _, ingest = keys.create(login_app.lake, None, ["ingest", "feedback", "sql"])
    revoked, gone = keys.create(login_app.lake, None, ["admin"])
    keys.revoke(login_app.lake, revoked.key_id)
    login_app.app.keyring.refresh()
    for key, status, why in (
        ("", 401, "This lake has no such key"),
        (f"{login_app.token[:-1]}g", 401, "This lake has no such key"),
        ("<script>alert(1)</script>", 401, "This lake has no such key"),
        (ingest, 403, "neither scope read nor admin"),
        (gone, 401, "is revoked"),
    ):
        answer = login_app.enter(key)
        assert (answer.status, "set-cookie" in answer.headers) == (status, False)
        assert why in answer.body.decode()
        assert not key or key not in answer.body.decode()
    assert login_app.ask("POST", "/login", OURS, body=b"x" * 10_000).status == 413
    assert login_app.ask("POST", "/login", OURS, body=b"&".join([b"key=1"] * 1_000)).status == 401
    assert login_app.ask("POST", "/login", OURS, body=b"key=\xff%ff%00").status == 401


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://lake.example", f"{HERE}.evil.example"])
def test_another_site_cannot_log_anybody_in_or_out(login_app: LoginApp, origin: str | None) -> None:
    headers = [("Origin", origin)] if origin else [("Accept", "*/*")]
    assert login_app.enter(login_app.token, *headers).status == 403
    cookie = login_app.cookie()
    assert login_app.ask("POST", "/logout", cookie, *headers).status == 403
    assert login_app.ask("GET", "/", cookie).status == 200


@given(st.text() | st.from_regex(r"[/\\][/\\]?evil\.example.*"))
def test_the_way_back_never_leaves_this_server(target: str) -> None:
    way = inside(target)
    assert re.fullmatch(r"/([^/\\].*)?", way, re.DOTALL)
    assert not re.search(r"\s", way)
    assert way in (target, "/")


def test_a_login_reads_and_nothing_else(login_app: LoginApp) -> None:
    _, token = keys.create(login_app.lake, None, ["admin"])
    login_app.app.keyring.refresh()
    for key in (login_app.token, token):
        login_app.token = key
        cookie = login_app.cookie()
        for method, path in (
            ("POST", "/v1/predictions"),
            ("POST", "/v1/predictions/batch"),
            ("POST", "/v1/images"),
            ("POST", "/v1/feedback"),
            ("POST", "/v1/sql"),
            ("DELETE", f"/v1/images/{ID}"),
        ):
            answer = login_app.ask(method, path, cookie, OURS)
            assert (answer.status, answer.json["reason"]) == (403, "missing_scope"), path
        for path in ("/", f"/v1/thumbnails/{ID}", f"/v1/records/{ID}", "/v1/status", "/metrics", "/static/x.js"):
            assert login_app.ask("GET", path, cookie).status == 200, path
        for path in ("/v1/queries", "/v1/search", "/_stcore/upload_file/1/2"):
            assert login_app.ask("POST", path, cookie, OURS).status == 200
            for other in ([], [("Origin", "null")], [("Origin", "http://evil.example")]):
                answer = login_app.ask("POST", path, cookie, *other)
                assert (answer.status, answer.json["reason"]) == (403, "wrong_origin")


def test_a_websocket_by_cookie_must_come_from_our_own_page(login_app: LoginApp) -> None:
    async def first(*headers: tuple[str, str]) -> str:
        socket = Socket(login_app.app, "/_stcore/stream", headers)
        heard = str((await socket.hear())["type"])
        if heard == "websocket.accept":
            await socket.close()
        return heard

    cookie = login_app.cookie()
    assert asyncio.run(first(cookie, OURS)) == "websocket.accept"
    for headers in ([], [OURS], [cookie], [cookie, ("Origin", "http://evil.example")]):
        assert asyncio.run(first(*headers)) == "websocket.close"


def test_a_session_ends_with_its_key(login_app: LoginApp) -> None:
    cookie = login_app.cookie()
    keys.revoke(open_lake.open(login_app.lake.uri), login_app.record.key_id)
    login_app.app.keyring._tried_at -= 1
    assert login_app.ask("GET", "/", cookie).status == 401


def test_a_session_ends_after_twelve_hours(login_app: LoginApp, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie, now = login_app.cookie(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + SESSION_SECONDS - 5)
    assert login_app.ask("GET", "/", cookie).status == 200
    monkeypatch.setattr(time, "time", lambda: now + SESSION_SECONDS + 5)
    assert login_app.ask("GET", "/", cookie).status == 401


def test_logging_out_ends_this_session_and_no_other(login_app: LoginApp) -> None:
    mine, other = login_app.cookie(), login_app.cookie()
    assert "<form method=post action=/logout>" in login_app.ask("GET", "/logout", mine).body.decode()
    assert login_app.ask("GET", "/", mine).status == 200, "looking at the page does nothing"
    out = login_app.ask("POST", "/logout", mine, OURS)
    assert (out.status, out.headers["location"]) == (303, "/login")
    assert "max-age=0" in out.headers["set-cookie"].lower()
    assert login_app.ask("GET", "/", mine).status == 401, "a copy of the cookie is worth nothing"
    assert login_app.ask("GET", "/", other).status == 200


def test_another_process_s_cookie_is_worth_nothing(login_app: LoginApp) -> None:
    cookie = login_app.cookie()
    login_app.app = make_access(
        echo, Keyring(login_app.lake), login_app.lake.uri, AccessPolicy(require_key=True), pages=True
    )
    assert login_app.ask("GET", "/", cookie).status == 401


@given(position=st.integers(0, 200), other=st.characters(codec="latin-1", exclude_characters=";"))
def test_a_cookie_with_any_other_character_is_a_forgery(login_app: LoginApp, position: int, other: str) -> None:
    name, _, value = login_app.cookie()[1].removeprefix("theme=dark; ").partition("=")
    position %= len(value)
    forged = value[:position] + other + value[position + 1 :]
    known = login_app.app.login.key_of({name: forged}) if login_app.app.login else None
    assert (known is not None) == (forged == value)


@given(st.text())
def test_no_cookie_crashes_the_login(login_app: LoginApp, text: str) -> None:
    assert login_app.app.login is not None
    assert not login_app.app.login.admits({login_app.app.login.cookie: text})
    headers: Headers = [("Cookie", text.encode().decode("latin-1"))]
    assert asyncio.run(ask(login_app.app, "GET", "/", headers)).status == 401


def test_a_link_on_another_site_asks_once_more_before_it_asks_for_a_key(login_app: LoginApp) -> None:
    """SameSite=Strict cookies do not come with such a link; they do with a request of our own page."""
    first = login_app.ask("GET", "/login?next=/search%3Fk%3D3", ("Sec-Fetch-Site", "cross-site")).body.decode()
    assert '<meta http-equiv="refresh" content="0; url=/login?again=1&amp;next=%2Fsearch%3Fk%3D3">' in first
    second = login_app.ask("GET", "/login?again=1&next=/search", ("Sec-Fetch-Site", "cross-site")).body.decode()
    assert "refresh" not in second


def test_on_an_open_server_there_is_nothing_to_log_in_to(login_app: LoginApp) -> None:
    login_app.app = make_access(echo, Keyring(login_app.lake), login_app.lake.uri, AccessPolicy(), pages=True)
    assert login_app.ask("GET", "/login").headers["location"] == "/"
    assert login_app.ask("GET", "/").status == 200


def test_without_pages_there_is_no_login(login_app: LoginApp) -> None:
    app = make_access(echo, Keyring(login_app.lake), login_app.lake.uri, AccessPolicy(require_key=True), pages=False)
    cookie = login_app.cookie()
    login_app.app = app
    assert login_app.ask("GET", "/login").status == 401
    assert login_app.ask("GET", "/v1/status", cookie, ("Accept", "text/html")).status == 401


# A real server ---------------------------------------------------------------------------------------------------


@dataclass
class Served:
    url: str
    lake: OpenLake
    record: KeyRecord
    token: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`lakeloop serve --require-key`, with the app, as its own process."""
    pytest.importorskip("streamlit")
    lake = open_lake.create(str(tmp_path_factory.mktemp("login") / "lake"), embedders=["efficientnet-lite0"])
    record, token = keys.create(lake, None, ["read"])
    command = [sys.executable, "-m", "search_app.cli.main", "serve", "--lake", lake.uri, "--port", "0"]
    command += ["--require-key", "--allow-host", "lake.example"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        lines: list[str] = [process.stderr.readline()]
        # It is read all the time, so that the server never waits for a reader.
        reader = threading.Thread(target=lines.extend, args=[process.stderr])
        reader.start()
        try:
            yield Served(lines[0].split()[-1], lake, record, token)
        finally:
            process.terminate()
            process.wait(30)
            reader.join(30)


def _close_code(socket: ClientConnection) -> int | None:
    """The code the server closes with, after whatever it says before."""
    for _ in range(1_000):
        try:
            socket.recv(timeout=10)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None
    return None


PAGES = ("/", "/search", "/static/index.html", "/index.html", "/favicon.png", "/_stcore/host-config", "/media/x.png")


def test_everything_of_the_app_is_behind_the_login(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        for path in PAGES:
            assert client.get(path).status_code == 401, path
            led = client.get(path, headers={"Accept": "text/html"})
            assert (led.status_code, led.headers["location"].startswith("/login?next=")) == (303, True)
        for path in ("/healthz", "/_stcore/health"):
            assert client.get(path).status_code == 200, path
        for name in ("evil.example", "lake.example.evil.example", ""):
            assert client.get("/healthz", headers={"Host": name}).status_code == 403
        assert client.get("/healthz", headers={"Host": "lake.example"}).status_code == 200


def test_streamlit_s_websocket_opens_after_the_login_and_closes_when_the_key_is_revoked(served: Served) -> None:
    stream = served.url.replace("http", "ws") + "/_stcore/stream"
    with pytest.raises(InvalidStatus, match="403"):
        connect(stream, origin=Origin(served.url), subprotocols=STREAMLIT)
    with httpx.Client(base_url=served.url) as client:
        form = {"key": served.token, "next": "/search"}
        assert client.post("/login", data=form, headers={"Origin": "http://evil.example"}).status_code == 403
        entered = client.post("/login", data=form, headers={"Origin": served.url})
        assert (entered.status_code, entered.headers["location"]) == (303, "/search")
        page = client.get("/search")
        assert page.status_code == 200
        assert "streamlit" in page.text.lower()
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
        for origin in (None, Origin("http://evil.example")):
            with pytest.raises(InvalidStatus, match="403"):
                connect(stream, origin=origin, subprotocols=STREAMLIT, additional_headers=cookie)
        with connect(stream, origin=Origin(served.url), subprotocols=STREAMLIT, additional_headers=cookie) as socket:
            assert client.get("/v1/status").json()["images"] == 0
            keys.revoke(served.lake, served.record.key_id)
            time.sleep(1.1)
            socket.send(b"")
            assert _close_code(socket) == 1008
        assert client.get("/search").status_code == 401
