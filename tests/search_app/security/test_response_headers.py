"""Every response forbids framing and guessing of types, and says what may run in it."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from fastapi.testclient import TestClient

from lake.open_lake import OpenLake
from search_app.api.app import Api
from search_app.security.response_headers import page_policy
from search_app.server.server import make_server
from tests.conftest import Say
from tests.hostile.test_scopes import ABSENT, app_paths, operations

pytest.importorskip("streamlit")
ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    import lake

    opened: OpenLake = lake.create(str(tmp_path_factory.mktemp("headers") / "lake"))
    return TestClient(make_server(Api(opened)), base_url="http://localhost")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200), ("/metrics", 200), ("/v1/status", 200), ("/v1/openapi.json", 200), ("/v1/nothing", 404),
        ("/v1/images/" + "0" * 64, 404), ("/", 200), ("/search", 200), ("/static/nothing.js", 200),
        ("/_stcore/health", 200),
    ],
)  # fmt: skip
def test_every_response_has_the_headers(client: TestClient, path: str, status: int) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "same-origin"
    policy = response.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert policy.startswith("default-src 'none'") == (path.startswith("/v1/") or path in ("/healthz", "/metrics"))


def test_every_route_of_the_api_and_of_streamlit_has_them_whatever_it_answers(client: TestClient, say: Say) -> None:
    """With the methods and the Origin of a stranger, too: no answer is one that another site may read."""
    paths = {path.format(**ABSENT) for _, path in operations(client.get("/v1/openapi.json").json())}
    statuses: Counter[int] = Counter()
    for path in sorted(paths | app_paths() | {"/login", "/logout", "/nothing", "/v1", "/v1/../static/index.html"}):
        if path == "/_stcore/stream":
            continue
        for method in ("GET", "HEAD", "OPTIONS", "PATCH"):
            answer = client.request(method, path, headers={"origin": "null"} if method == "GET" else {})
            statuses[answer.status_code] += 1
            where = f"{method} {path} -> {answer.status_code}"
            for name, value in ALWAYS.items():
                assert answer.headers[name] == value, where
            [policy] = answer.headers.get_list("content-security-policy")
            assert "frame-ancestors 'none'" in policy, where
            assert "unsafe-eval" not in policy, where
            assert not [name for name in answer.headers if name.startswith("access-control-")], where
    say(f"headers of {sum(statuses.values())} answers: {dict(statuses)}")
    assert {200, 404, 405} <= set(statuses)


def test_a_refused_host_and_origin_have_them_too(client: TestClient) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        response = client.post("/v1/feedback", json={}, headers=headers)
        assert response.status_code == 403
        assert response.headers["x-frame-options"] == "DENY"


def test_streamlit_s_route_for_uploads_is_closed(client: TestClient) -> None:
    for path in ("/_stcore/upload_file/a/b", "/search/_stcore/upload_file/a/b"):
        assert client.put(path, content=b"x" * 1000, headers={"origin": "http://localhost"}).status_code == 404


def test_a_response_keeps_the_policy_of_its_own(client: TestClient) -> None:
    response = client.get("/v1/openapi.json")
    assert len(response.headers.get_list("content-security-policy")) == 1


def test_pages_run_only_the_server_s_own_scripts() -> None:
    policy = page_policy().decode()
    scripts = re.search(r"script-src ([^;]*)", policy)
    assert scripts is not None
    hashes = re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", scripts[1])
    assert hashes
    assert scripts[1].split() == ["'self'", "blob:", *hashes]
    assert "unsafe-eval" not in policy
    assert "object-src 'none'" in policy
