"""Every route by every caller, on the real server with its app: a caller without the scope gets no content.

The routes are those of the server's own OpenAPI document and of Streamlit's own modules, so a new one is asked about by
itself; one that `search_app/security/scopes.py` does not name fails here.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest

from lake.access import keys
from lake.open_lake import OpenLake
from lake.storage import store
from search_app.security import scopes as table
from search_app.security.scopes import scope_of
from tests.conftest import Say
from tests.crash.service import Service
from tests.hostile.conftest import Serve

ABSENT = {
    "image_id": "0" * 64,
    "query_id": "0" * 64,
    "map_id": "0" * 8,
    "prediction_id": "00000000-0000-4000-8000-000000000000",
    "sql_id": "none",
    "name": "none",
    "export_name": "none@1.coco",
    "model": "none",
    "run": "none",
    "job": "none",
    "record_id": "none",
    "embedder": "none",
    "slice_name": "none@1",
    "tag": "none",
    "tree": "0" * 8,
    "search_id": "0" * 8,
}
PAGES = ("/", "/overview", "/search", "/drilldown", "/nothing", "/static/index.html", "/favicon.png")
STREAMLIT = "streamlit.web.server.starlette.starlette_"
MODULES = ("routes", "agent_routes", "auth_routes", "websocket")
OPEN = {"/healthz", "/readyz", "/_stcore/health"}


def app_paths() -> set[str]:
    """Every path Streamlit names in its modules, and the app's pages."""
    paths = set(PAGES)
    for name in MODULES:
        module = importlib.import_module(STREAMLIT + name)
        for constant, value in vars(module).items():
            if "ROUTE_" in constant and isinstance(value, str) and "BASE" not in constant:
                path = value.replace(":path}", "}").format(file_id="a", session_id="b", path="c")
                paths.add("/" + path.removeprefix("/"))
    return paths


def operations(document: dict[str, dict[str, object]]) -> set[tuple[str, str]]:
    """(method, path as documented) of every operation."""
    return {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}  # type: ignore[attr-defined]


@pytest.fixture
def tokens(lake_of_columns: OpenLake) -> dict[str, str]:
    """A valid key for each scope, and invalid keys."""
    by_scope = {scope: keys.create(lake_of_columns, scope, [scope])[1] for scope in keys.SCOPES}
    by_scope["ingest, feedback"] = keys.create(lake_of_columns, None, ["ingest", "feedback"])[1]
    revoked, by_scope["revoked"] = keys.create(lake_of_columns, None, ["admin"])
    keys.revoke(lake_of_columns, revoked.key_id)
    expired, by_scope["expired"] = keys.create(lake_of_columns, None, ["admin"])
    lake_of_columns.update("keys", keys._table(replace(expired, expires_at=store.now())))
    admin = by_scope["admin"]
    by_scope["forged"] = admin[:-1] + ("0" if admin[-1] != "0" else "1")
    by_scope["garbage"] = "ll_\xff\x00_%s" % ("9" * 5_000)
    by_scope["empty"] = ""
    return by_scope


def callers(tokens: dict[str, str]) -> Iterator[tuple[str, dict[str, bytes], set[str]]]:
    """(caller, headers, scopes) of every kind of caller."""
    yield "nobody", {}, set()
    yield "another scheme", {"Authorization": b"Basic YWRtaW46YWRtaW4="}, set()
    yield "a key in the address", {}, set()
    yield "a forged cookie", {"Cookie": b"lakeloop_00000000=a.9999999999.b.c; _streamlit_user=x"}, set()
    yield (
        "proxy headers",
        {"X-Forwarded-For": b"127.0.0.1", "X-Forwarded-User": b"admin", "X-Lakeloop-Key": b"a"},
        set(),
    )
    for name, token in tokens.items():
        good = set(name.split(", ")) if name.split(", ")[0] in keys.SCOPES else set()
        scopes = set(keys.SCOPES) if "admin" in good else good
        yield name, {"Authorization": f"Bearer {token}".encode("latin-1").replace(b"\0", b"").strip()}, scopes


def test_no_route_serves_a_caller_without_the_scope(
    lake_of_columns: OpenLake, tokens: dict[str, str], serve: Serve, say: Say
) -> None:
    service = serve(lake_of_columns, "--require-key", ui=True)
    counts: Counter[str] = Counter()
    admin = {"Authorization": f"Bearer {tokens['admin']}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=30, follow_redirects=False) as client:
        documented = operations(client.get("/v1/openapi.json", headers=admin).json())
        requests = [(method, path.format(**ABSENT)) for method, path in sorted(documented)]
        requests += [(method, path) for path in sorted(app_paths()) for method in ("GET", "POST")]
        requests += [("DELETE", path.format(**ABSENT)) for _, path in sorted(documented)]
        for caller, headers, scopes in callers(tokens):
            for method, path in requests:
                query = {"key": tokens["admin"], "token": tokens["admin"]} if caller == "a key in the address" else None
                sent: Any = headers | ({"Content-Type": b"image/png"} if method == "POST" else {})
                answer = client.request(method, path, headers=sent, params=query)
                needed = scope_of(method, path)
                allowed = needed is None or needed in scopes
                where = f"{caller}: {method} {path} -> {answer.status_code}"
                counts["requests"] += 1
                if allowed:
                    assert answer.status_code not in (401, 403) or b"missing_scope" not in answer.content, where
                    counts["let in"] += 1
                else:
                    assert answer.status_code in (401, 403), where
                    assert answer.headers["cache-control"] == "no-store", where
                    counts["kept out"] += 1
    _check_websocket(service, tokens, counts)
    say(f"routes x callers: {len(documented)} operations, {len(app_paths())} paths of the app; {dict(counts)}")
    assert counts["kept out"] > counts["let in"] > 100
    assert "Traceback" not in service.output()


def _check_websocket(service: Service, tokens: dict[str, str], counts: Counter[str]) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    host = f"127.0.0.1:{service.port}"
    for caller, headers, scopes in callers(tokens):
        words = {name: value.decode("latin-1") for name, value in headers.items()}
        counts["websockets"] += 1
        dial = partial(connect, f"ws://{host}/_stcore/stream", origin=f"http://{host}", proxy=None)
        if "read" in scopes:
            with dial(additional_headers=words) as socket:
                assert socket.ping().wait(5), caller
        else:
            with pytest.raises(InvalidStatus, match="403"):
                dial(additional_headers=words)


def test_the_table_of_scopes_names_every_operation_of_the_document(lake_of_columns: OpenLake) -> None:
    from search_app.api.app import Api

    named = {(method, path) for method, path, _ in table.ROUTES}
    documented = {
        (method, re.sub(r"{\w+}", "{id}", path)) for method, path in operations(Api(lake_of_columns)._api.openapi())
    }
    assert documented - named == set()
    # What it names beyond them: the document itself and the app's own health.
    assert named - documented == {("GET", "/v1/openapi.json"), ("GET", "/_stcore/health")}
    assert {path for method, path, scope in table.ROUTES if scope is None} == OPEN
