"""A blocking request is repeated while the server is not ready, done once, and refused in the server's words."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lake.client import RequestFailed, json_requests
from lake.client.data_doors import DataDoors
from lake.client.json_requests import JsonRequests, with_query
from lake.client.model_doors import ModelDoors

PROBLEM = "application/problem+json"


class Scripted:
    """A server that gives the next response of a script: (status, document, headers); None: it hangs up."""

    def __init__(self, *script: tuple[int, Any, dict[str, str]] | None) -> None:
        self.script = list(script)
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                scripted.seen.append((self.command, self.path, dict(self.headers), body))
                step = scripted.script.pop(0)
                if step is None:
                    self.close_connection = True
                    return
                status, document, headers = step
                data = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = respond

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.requests = JsonRequests(f"http://127.0.0.1:{self.server.server_port}/lake", lambda: "ll_a_b", 5.0)

    def close(self) -> None:
        self.requests.close()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """script(*steps) -> the server."""
    monkeypatch.setattr(json_requests, "FIRST_PAUSE", 0.001)
    servers: list[Scripted] = []

    def make(*steps: Any) -> Scripted:
        servers.append(Scripted(*steps))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def problem(status: int, reason: str, **headers: str) -> tuple[int, Any, dict[str, str]]:
    return status, {"reason": reason, "detail": "why"}, {"Content-Type": PROBLEM, **headers}


def test_a_write_is_repeated_under_one_key_until_it_is_done(script: Any) -> None:
    server = script(None, problem(503, "unavailable"), problem(409, "in_flight"), (201, {"id": "a@1"}, {}))
    assert server.requests.write("POST", "/v1/slices", {"name": "a"}) == {"id": "a@1"}
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in server.seen}) == 1
    assert {(method, path, body) for method, path, _, body in server.seen} == {
        ("POST", "/lake/v1/slices", b'{"name": "a"}')
    }
    assert server.seen[0][2]["Authorization"] == "Bearer ll_a_b"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 422])
def test_a_refusal_is_raised_at_once_in_the_servers_words(script: Any, status: int) -> None:
    server = script(problem(status, "some_reason"))
    with pytest.raises(RequestFailed, match=f"{status}: why") as failed:
        server.requests.get("/v1/slices/a")
    assert (failed.value.status, failed.value.reason, len(server.seen)) == (status, "some_reason", 1)


def test_the_servers_pause_is_kept_but_not_beyond_the_patience(script: Any) -> None:
    server = script(problem(429, "busy", **{"Retry-After": "1"}), (200, {}, {}))
    started = time.monotonic()
    assert server.requests.get("/") == {}
    assert time.monotonic() - started >= 1.0
    server = script(problem(503, "stopping", **{"Retry-After": "3600"}))
    with pytest.raises(RequestFailed, match="503") as failed:
        server.requests.get("/")
    assert failed.value.after == 3600.0


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, script: Any) -> None:
    server = script()
    server.close()
    monkeypatch.setattr(json_requests.Pauses.__init__, "__defaults__", (0.01,))
    with pytest.raises(RequestFailed, match="does not answer") as failed:
        server.requests.get("/")
    assert failed.value.status == 0


def test_items_come_page_after_page(script: Any) -> None:
    server = script((200, {"items": [1, 2], "next": "c"}, {}), (200, {"items": [3], "next": None}, {}))
    assert list(server.requests.items("/v1/slices", {"newest": True, "x": None, "by": ["a", "b c"]})) == [1, 2, 3]
    assert [path for _, path, _, _ in server.seen] == [
        "/lake/v1/slices?newest=1&by=a&by=b+c",
        "/lake/v1/slices?newest=1&by=a&by=b+c&cursor=c",
    ]
    assert with_query("/a", {}) == "/a"


def test_something_else_than_json_is_told(script: Any) -> None:
    server = script((200, b"<html>", {}))
    with pytest.raises(RequestFailed, match="is the URL that of a lakeloop server"):
        server.requests.get("/")


class Doors(DataDoors, ModelDoors):
    """The client's, without its queue."""

    def __init__(self, requests: JsonRequests) -> None:
        self._requests = requests


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_is_no_part_of_a_path_is_refused_before_any_request(script: Any, name: str) -> None:
    """An empty one would ask for the list, and one of dots for another route."""
    server = script()
    client = Doors(server.requests)
    for ask in (client.slice, client.run, client.job, client.card):
        with pytest.raises(ValueError, match=f"is '{name}'; pass that of a"):
            ask(name)
    with pytest.raises(ValueError, match="tag"):
        client.slice("night").tag(name)
    assert server.seen == []
