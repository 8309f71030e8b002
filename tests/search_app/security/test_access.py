"""Who may do what: every kind of request by every kind of caller."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import open_lake
from lake.access import keys
from lake.access.keys import Keyring
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.storage import store
from search_app.cli.main import main
from search_app.security import scopes
from search_app.security.access import OPEN, Access, AccessPolicy, make_access
from search_app.security.hosts import checked_name, hostname
from search_app.security.scopes import scope_of
from search_app.server import server
from tests.search_app.asgi import Answer, Headers, Socket, ask, echo

HERE = "http://lake.example:8501"
ID = "0" * 64
# The contract, said a second time. None: anybody.
REQUESTS: list[tuple[str, str, str | None]] = [
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("HEAD", "/healthz", None),
    ("GET", "/_stcore/health", None),
    ("GET", "/metrics", "read"),
    ("POST", "/v1/predictions", "ingest"),
    ("POST", "/v1/predictions/batch", "ingest"),
    ("POST", "/v1/images", "ingest"),
    ("POST", "/v1/feedback", "feedback"),
    ("POST", "/v1/search", "read"),
    ("POST", "/v1/queries", "read"),
    ("POST", "/v1/sql", "sql"),
    ("GET", "/v1/predictions/91d6", "read"),
    ("GET", f"/v1/images/{ID}", "read"),
    ("HEAD", f"/v1/images/{ID}", "read"),
    ("GET", f"/v1/thumbnails/{ID}", "read"),
    ("GET", f"/v1/records/{ID}", "read"),
    ("POST", "/v1/models/cells@3:predict", "read"),
    ("POST", "/v1/models/cells@3", "admin"),
    ("POST", "/v1/models/cells@3:promote", "admin"),
    ("POST", "/v1/models/cells:rollback", "admin"),
    ("POST", "/v1/models/cells@3:retire", "admin"),
    ("POST", "/v1/models", "admin"),
    ("GET", "/v1/models/cells@3/card", "read"),
    ("POST", "/v1/runs", "admin"),
    ("POST", "/v1/runs:tune", "admin"),
    ("POST", "/v1/evaluations", "admin"),
    ("POST", "/v1/gates", "admin"),
    ("GET", "/v1/runs/528228c7/metrics", "read"),
    ("PUT", "/v1/embedders/x/threshold", "edit"),
    ("POST", "/v1/models/a/b:predict", "admin"),
    ("GET", f"/v1/queries/{ID}", "read"),
    ("GET", "/v1/slices", "read"),
    ("POST", "/v1/slices", "edit"),
    ("GET", "/v1/slices/night@3/images", "read"),
    ("DELETE", "/v1/slices/night@3", "edit"),
    ("PUT", "/v1/slices/night/tags/gold", "edit"),
    ("POST", "/v1/labels", "edit"),
    ("POST", "/v1/isolate/a1b2c3d4/marks", "edit"),
    ("POST", "/v1/slices/night/day/freeze", "admin"),
    ("GET", "/v1/status", "read"),
    ("GET", "/v1/arrivals", "read"),
    ("GET", "/v1/openapi.json", "read"),
    # What nobody wrote down needs admin.
    ("GET", "/v1", "admin"),
    ("GET", "/v1/", "admin"),
    ("GET", "/v1/secrets", "admin"),
    ("GET", "/v1/images", "admin"),
    ("GET", "/v1/images/", "admin"),
    ("GET", f"/v1/images/{ID}/raw", "admin"),
    ("POST", "/v1/predictions/", "admin"),
    ("DELETE", f"/v1/images/{ID}", "admin"),
    ("PUT", "/v1/feedback", "admin"),
    ("OPTIONS", "/v1/predictions", "admin"),
    ("POST", "/healthz", "admin"),
    ("POST", "/metrics", "admin"),
    # The app.
    ("GET", "/", "read"),
    ("GET", "/search", "read"),
    ("GET", "/static/js/index.js", "read"),
    ("GET", "/_stcore/host-config", "read"),
    ("GET", "/_stcore/health/", "read"),
    ("GET", "/media/1.png", "read"),
    ("PUT", "/_stcore/upload_file/1/2", "read"),
    ("GET", "/auth/login", "read"),
    ("GET", "/oauth2callback", "read"),
    ("GET", "//v1/images", "read"),
]


@dataclass
class GuardedApp:
    """A lake with keys, and what comes with each of them as an Authorization header."""

    lake: OpenLake
    tokens: dict[str, str]

    def access(self, policy: AccessPolicy) -> Access:
        return make_access(echo, Keyring(self.lake), self.lake.uri, policy, pages=True)

    def bearer(self, name: str) -> Headers:
        return [("Authorization", f"Bearer {self.tokens[name]}")]

    def key_id(self, name: str) -> str:
        return self.tokens[name].split("_")[1]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> GuardedApp:
    lake = open_lake.create(str(tmp_path_factory.mktemp("access") / "lake"))
    tokens = {scope: keys.create(lake, scope, [scope])[1] for scope in keys.SCOPES}
    tokens["ingest and feedback"] = keys.create(lake, None, ["ingest", "feedback"])[1]
    record, tokens["revoked"] = keys.create(lake, None, ["admin"])
    keys.revoke(lake, record.key_id)
    record, tokens["expired"] = keys.create(lake, None, ["admin"], dt.timedelta(hours=1))
    lake.update("keys", keys._table(replace(record, expires_at=store.now())))
    return GuardedApp(lake, tokens)


# Who comes, with which header, and what they may; None for those who are not let in at all.
CALLERS: list[tuple[str, set[str] | None]] = [
    ("nobody", None),
    ("forged", None),
    ("not a key", None),
    ("expired", None),
    ("revoked", None),
    ("two keys", None),
    ("another scheme", None),
    ("ingest", {"ingest"}),
    ("feedback", {"feedback"}),
    ("read", {"read"}),
    ("sql", {"sql"}),
    ("edit", {"edit"}),
    ("ingest and feedback", {"ingest", "feedback"}),
    ("admin", {"ingest", "feedback", "read", "sql", "edit", "admin"}),
]


def _headers(guarded: GuardedApp, caller: str) -> Headers:
    match caller:
        case "nobody":
            return []
        case "forged":
            token = guarded.tokens["admin"]
            return [("Authorization", f"Bearer {token[:-1]}{'0' if token[-1] != '0' else '1'}")]
        case "not a key":
            return [("Authorization", "Bearer ")]
        case "two keys":
            return [*guarded.bearer("admin"), *guarded.bearer("read")]
        case "another scheme":
            return [("Authorization", "Basic YWRtaW46YWRtaW4=")]
    return guarded.bearer(caller)


@pytest.mark.parametrize("caller", [caller for caller, _ in CALLERS])
@pytest.mark.parametrize("required", [True, False])
def test_every_route_gives_every_caller_the_right_status(guarded: GuardedApp, caller: str, required: bool) -> None:
    may = dict(CALLERS)[caller]
    headers = _headers(guarded, caller)
    shows_a_key = caller not in ("nobody", "another scheme")
    app = guarded.access(AccessPolicy(require_key=required))

    async def all() -> list[Answer]:
        return [await ask(app, method, path, headers) for method, path, _ in REQUESTS]

    for (method, path, needed), answer in zip(REQUESTS, asyncio.run(all()), strict=True):
        if needed is None or (not required and not shows_a_key):
            expected = 200
        elif may is None:
            expected = 401
        else:
            expected = 200 if needed in may else 403
        assert answer.status == expected, f"{method} {path}"
        if expected == 200:
            key_id = guarded.key_id(caller) if may is not None and needed is not None else None
            assert answer.body.decode() == str(key_id)
        else:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["www-authenticate"].startswith('Bearer realm="lakeloop"')
            assert answer.headers["cache-control"] == "no-store"
            problem = answer.json
            assert set(problem) == {"type", "title", "status", "reason", "detail"}
            assert problem["status"] == expected
            assert not any(token in answer.body.decode() for token in guarded.tokens.values())


def test_a_refusal_says_what_is_missing(guarded: GuardedApp) -> None:
    app, counted = guarded.access(AccessPolicy(require_key=True)), Counter[str]()
    app.refused = lambda reason: counted.update([reason])
    forbidden = asyncio.run(ask(app, "POST", "/v1/feedback", guarded.bearer("read")))
    assert forbidden.json["reason"] == "missing_scope"
    assert forbidden.json["detail"] == (
        f"POST /v1/feedback needs scope feedback; the key {guarded.key_id('read')} has read"
    )
    assert 'scope="feedback"' in forbidden.headers["www-authenticate"]
    reasons = {
        caller: asyncio.run(ask(app, "GET", "/v1/status", _headers(guarded, caller))).json["reason"]
        for caller in ("nobody", "forged", "expired", "revoked")
    }
    assert reasons == {
        "nobody": "no_key",
        "forged": "unknown_key",
        "expired": "expired_key",
        "revoked": "revoked_key",
    }
    assert counted == {"missing_scope": 1, "no_key": 1, "unknown_key": 1, "expired_key": 1, "revoked_key": 1}


@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "X"]), st.text())
def test_no_path_of_the_api_is_open_by_accident(method: str, text: str) -> None:
    written = {path.removesuffix("{id}") for _, path, _ in scopes.ROUTES}
    path = f"/v1/{text}"
    if path not in written and path.rpartition("/")[0] + "/" not in written:
        assert scope_of(method, path) == "admin"
    assert scope_of(method, path) is not None
    anybody = ("/healthz", "/readyz", "/_stcore/health")
    assert (scope_of(method, f"/{text}") is None) == (f"/{text}" in anybody and method in ("GET", "HEAD"))


def test_a_template_of_the_openapi_document_needs_what_its_paths_need() -> None:
    assert scope_of("GET", "/v1/images/{image_id}") == "read"
    assert scope_of("DELETE", "/v1/images/{image_id}") == "admin"


def test_responses_that_needed_a_key_are_kept_from_shared_caches(guarded: GuardedApp) -> None:
    closed = asyncio.run(
        ask(guarded.access(AccessPolicy(require_key=True)), "GET", f"/v1/images/{ID}", guarded.bearer("read"))
    )
    assert closed.headers["cache-control"] == "private, max-age=60"
    assert (
        asyncio.run(ask(guarded.access(OPEN), "GET", f"/v1/images/{ID}")).headers["cache-control"].startswith("public")
    )


async def _until(app: Access, headers: Headers, status: int) -> float:
    """Seconds until a request is answered so, asking all the time."""
    began = time.monotonic()
    while (await ask(app, "GET", "/v1/status", headers)).status != status:
        assert time.monotonic() - began < 60
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def test_a_key_made_or_revoked_elsewhere_counts_within_about_a_second(lk: OpenLake) -> None:
    _, first = keys.create(lk, None, ["admin"])
    elsewhere = open_lake.open(lk.uri)

    async def story() -> tuple[float, float]:
        app = make_access(echo, Keyring(lk), lk.uri, AccessPolicy(require_key=True), pages=False)
        assert (await ask(app, "GET", "/v1/status", [("Authorization", f"Bearer {first}")])).status == 200
        record, token = keys.create(elsewhere, None, ["read"])
        headers = [("Authorization", f"bearer {token}")]
        status = await _until(app, headers, 200)
        keys.revoke(elsewhere, record.key_id)
        return status, await _until(app, headers, 401)

    assert max(asyncio.run(story())) < 10  # on a loaded machine


def test_after_a_quiet_hour_the_first_request_is_judged_by_the_newest_keys(lk: OpenLake) -> None:
    record, token = keys.create(lk, None, ["read"])
    keyring = Keyring(lk)
    app = Access(echo, keyring, open_without_keys=False)
    keys.revoke(open_lake.open(lk.uri), record.key_id)
    keyring._tried_at -= 3_600
    assert asyncio.run(ask(app, "GET", "/v1/status", [("Authorization", f"Bearer {token}")])).status == 401


def test_a_lake_that_hangs_delays_requests_once_and_not_for_long(
    guarded: GuardedApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = guarded.access(AccessPolicy(require_key=True))
    ended, given_up = [], threading.Event()

    def hang(*_: object) -> None:
        given_up.wait(60)
        ended.append(True)
        raise OSError("the store does not answer")

    monkeypatch.setattr(app.keyring, "_read", hang)
    app.keyring._tried_at -= 10

    async def story() -> list[float]:
        waits = []
        for _ in range(20):
            began = time.monotonic()
            assert (await ask(app, "GET", "/v1/status", guarded.bearer("read"))).status == 200
            waits.append(time.monotonic() - began)
        assert not ended
        given_up.set()
        return waits

    waits = asyncio.run(story())
    assert waits[0] > 0.5
    assert sum(waits[1:]) < 10  # they would be 19 seconds, if each had waited
    assert ended
    assert "the store does not answer" in caplog.text


def test_keys_that_could_not_be_read_for_too_long_open_nothing(guarded: GuardedApp) -> None:
    app = guarded.access(AccessPolicy(require_key=True))
    app.keyring._read_at -= keys.GRACE_SECONDS + 1
    answer = asyncio.run(ask(app, "GET", "/v1/status", guarded.bearer("read")))
    assert (answer.status, answer.json["reason"], answer.headers["retry-after"]) == (503, "keys_unreadable", "5")
    assert asyncio.run(ask(app, "GET", "/healthz")).status == 200


@pytest.mark.parametrize("caller", [caller for caller, _ in CALLERS])
def test_a_websocket_opens_only_for_those_who_may_read(guarded: GuardedApp, caller: str) -> None:
    may = dict(CALLERS)[caller]
    app = guarded.access(AccessPolicy(require_key=True))
    forged = [("X-Lakeloop-Key", "somebody")]

    async def story() -> None:
        socket = Socket(app, "/_stcore/stream", [*_headers(guarded, caller), *forged])
        first = await socket.hear()
        if may is None or "read" not in may:
            assert (first["type"], first["code"]) == ("websocket.close", 1008)
            return
        assert first["type"] == "websocket.accept"
        assert (await socket.hear())["text"] == guarded.key_id(caller), (
            "the page is told the key, whatever the header said"
        )
        assert (await socket.say("hello"))["text"] == "hello"
        await socket.close()

    asyncio.run(story())


def test_an_open_server_believes_no_name_a_browser_gives_itself(guarded: GuardedApp) -> None:
    async def story() -> None:
        socket = Socket(guarded.access(OPEN), "/_stcore/stream", [("X-Lakeloop-Key", "somebody")])
        await socket.hear()
        assert (await socket.hear())["text"] == ""
        await socket.close()

    asyncio.run(story())


def test_a_websocket_ends_with_its_key(lk: OpenLake) -> None:
    record, token = keys.create(lk, None, ["read"])

    async def story() -> None:
        app = make_access(echo, Keyring(lk), lk.uri, AccessPolicy(require_key=True), pages=True)
        socket = Socket(app, "/_stcore/stream", [("Authorization", f"Bearer {token}")])
        await socket.hear(), await socket.hear()
        assert (await socket.say("before"))["text"] == "before"
        keys.revoke(open_lake.open(lk.uri), record.key_id)
        app.keyring._tried_at -= 1
        after = await socket.say("after")
        assert (after["type"], after["code"]) == ("websocket.close", 1008)
        await asyncio.wait_for(socket.done, 5)

    asyncio.run(story())


# The server as a whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--host", "0.0.0.0"], ["--host", "192.168.1.5"], ["--host", "::"], ["--require-key"]]
)
def test_without_a_key_it_listens_to_this_machine_only(
    lk: OpenLake, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--lake", lk.uri, *words]) == 2
    message = capsys.readouterr().err
    assert "has no access keys yet" in message
    assert f"lakeloop key create --scope admin --lake {lk.uri}" in message


def test_a_key_that_is_over_does_not_count(lk: OpenLake) -> None:
    record, _ = keys.create(lk, None, ["admin"])
    keys.revoke(lk, record.key_id)
    with pytest.raises(BadInput, match="no access keys yet"):
        server.serve(lk.uri, host="0.0.0.0")


@pytest.mark.parametrize("name", ["https://lake.example", "lake.example:443", "a b", "", "user@lake.example"])
def test_an_allowed_host_is_a_name_and_nothing_more(name: str) -> None:
    with pytest.raises(BadInput, match="write only the name"):
        checked_name(name)


@pytest.mark.parametrize("name", ["OpenLake.Example", "lake", "10.0.0.7", "fe80::7", "my_lake-2.internal"])
def test_names_and_addresses_may_be_allowed(name: str) -> None:
    assert checked_name(name) == name.lower()


def test_the_lake_itself_has_no_file_named_by_a_token(guarded: GuardedApp) -> None:
    written = b"".join(path.read_bytes() for path in Path(guarded.lake.uri).rglob("*") if path.is_file())
    assert not [name for name, token in guarded.tokens.items() if token.rpartition("_")[2].encode() in written]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost:8501", "localhost"), ("[::1]:80", "::1"), ("LAKE.example.org", "lake.example.org"),
        ("evil@127.0.0.1", ""), ("evil:x@127.0.0.1:80", ""), ("127.0.0.1/x", ""), ("127.0.0.1?x", ""),
        ("127.0.0.1#x", ""), ("127.0.0.1\\x", ""), ("localhost:80:80", ""), ("", ""), ("[::1", ""), ("a b", ""),
    ],
)  # fmt: skip
def test_a_host_is_a_name_and_a_port_and_nothing_else(host: str, name: str) -> None:
    assert hostname(host) == name
