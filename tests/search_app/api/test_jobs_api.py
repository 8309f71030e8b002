"""Jobs over HTTP: started once, listed, followed to their end, cancelled and started again, by those who may."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from lake import open_lake, slices
from lake.access import keys
from lake.client.model_doors import RemoteJob
from lake.jobs import current, live_state, record
from lake.jobs.job import Starter
from lake.open_lake import OpenLake
from search_app.api.app import Api
from search_app.jobs import supervisor
from search_app.security.access import AccessPolicy
from search_app.server.server import make_server
from tests.lake import stock
from tests.search_app.in_process import InProcess
from tests.search_app.jobs import counting

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lake_(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """Twenty images with a vector each, the slice night of five of them. Jobs wait until a test runs them."""
    lake = open_lake.create(str(tmp_path_factory.mktemp("jobs") / "lake"), embedders=["x"])
    stock.bind(lake)
    lake = open_lake.open(lake.uri)
    stock.add(lake, range(20))
    stock.embed(lake, range(20))
    slices.create(lake, "night", ids=[stock.image_id(n) for n in range(5)])
    live_state.of(lake).set_limits(0, None)
    return lake


@pytest.fixture(scope="module")
def client(lake_: OpenLake) -> Iterator[TestClient]:
    with TestClient(make_server(Api(lake_), ui=False, hosts=["testserver"]), raise_server_exceptions=False) as opened:
        yield opened


def start(client: TestClient, kind: str, arguments: dict[str, Any], **headers: str) -> Any:
    body = json.dumps({"kind": kind, "arguments": arguments})
    return client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json", **headers})


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_a_job_is_started_once_followed_and_done(
    client: TestClient, lake_: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.02)
    arguments = {"slice": "night", "format": "list"}
    response = start(client, "export", arguments, **{"Idempotency-Key": "k1"})
    job = response.json()
    assert (response.status_code, job["state"], job["kind"]) == (201, "waiting", "export")
    assert start(client, "export", arguments, **{"Idempotency-Key": "k1"}).json() == job
    live = live_state.of(lake_)
    live.set_limits(1, None)
    with counting.supervised(lake_, counting.InThread):
        stream = client.get(f"/v1/jobs/{job['id']}/events")
    live.set_limits(0, None)
    live.close()
    assert stream.headers["content-type"].startswith("text/event-stream")
    seen = events(stream.text)
    assert [entry["state"] for entry in seen if entry["state"] == "done"] == ["done"]
    assert seen[-1]["result"]["images"] == 5
    assert client.get(f"/v1/jobs/{job['id'][:8]}").json() == seen[-1]
    assert client.get("/v1/exports/night@1.list").status_code == 200
    actions = lake_.sql("SELECT action FROM audit ORDER BY timestamp")["action"].to_pylist()
    assert "slice export" in actions


def test_jobs_are_listed_cancelled_and_started_again(client: TestClient) -> None:
    first, second = (start(client, "cluster", {"k": k}).json()["id"] for k in (2, 3))
    page = client.get("/v1/jobs", params={"kind": "cluster", "limit": 1}).json()
    assert [job["id"] for job in page["items"]] == [second]
    page = client.get("/v1/jobs", params={"kind": "cluster", "limit": 1, "cursor": page["next"]}).json()
    assert ([job["id"] for job in page["items"]], page["next"]) == ([first], None)
    cancelled = client.post(f"/v1/jobs/{first}/cancel").json()
    assert (cancelled["state"], cancelled["message"]) == ("cancelled", "cancelled by somebody")
    assert events(client.get(f"/v1/jobs/{first}/events").text) == [cancelled]
    again = client.post(f"/v1/jobs/{first}/cancel")
    assert (again.status_code, again.json()["reason"]) == (409, "wrong_state")
    retried = client.post(f"/v1/jobs/{first}/retry").json()
    assert (retried["state"], retried["attempt"]) == ("waiting", 2)
    listed = client.get("/v1/jobs", params={"state": "waiting", "kind": "cluster"}).json()["items"]
    assert {job["id"] for job in listed} == {first, second}
    for path in ("/v1/jobs/none", "/v1/jobs/none/events"):
        assert client.get(path).json()["reason"] == "unknown_job"
    for name in (first, second):
        client.post(f"/v1/jobs/{name}/cancel")


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("ingest", {"path": "/etc"}, "kind"),
        ("export", {"slice": "day"}, "no slice 'day'"),
        ("export", {"slice": "night", "out": "/tmp/x"}, "out names a file of the server"),
        ("export", {"slice": "night", "format": "list", "predictions": "m"}, "no place for predictions"),
        ("embed", {"weights": "/etc/passwd"}, "weights names a file of the server"),
        ("cluster", {"where": "nope = 1"}, "nope"),
        ("cluster", {"where": "image_id IN (SELECT image_id FROM labels)"}, "subquer"),
        ("cluster", {"kk": 1}, "cluster takes no 'kk'; it takes k"),
        ("cluster", {"k": 1}, "k is 1; it must be at least 2"),
        ("map", {"node": "00000000/0"}, "no node '00000000/0'"),
        ("discover", {"by": 3}, "by is 3; it must be a text"),
        ("train", {"train": ["night"], "recipe": {"ratte": 1}}, "ratte"),
        ("train", {}, "name a slice to train on"),
        ("train", {"train": ["night"], "name": "../x"}, "model name '../x'"),
        ("tune", {"train": ["night"], "name": "../x"}, "model name '../x'"),
        ("tune", {"train": ["night"], "search": "../x"}, "search name '../x'"),
        ("evaluate", {"run": "none"}, "no run 'none'"),
        ("gate", {"candidate": "none"}, "no run 'none'"),
        ("tune", {"train": ["night"], "tried": ["rate"]}, "write KEY=LOW..HIGH"),
    ],
)
def test_arguments_are_checked_when_the_job_is_started(
    client: TestClient, kind: str, arguments: dict[str, Any], said: str
) -> None:
    response = start(client, kind, arguments)
    assert response.status_code == 422
    assert said in response.json()["detail"]


def test_a_client_waits_while_a_dead_workers_job_may_continue(
    client: TestClient, lake_: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "SILENT_SECONDS", 0.0)
    job = record.started(lake_, record.submit(lake_, "cluster", {"k": 2}, Starter()))
    requests = InProcess(client)
    remote = RemoteJob(requests, requests.get(f"/v1/jobs/{job.id}"))
    assert (remote.state, remote.facts["error"], remote.facts["may_continue"]) == ("failed", "the worker died", True)

    def continues() -> None:
        record.begin_again(lake_, current.get(lake_, job.id), "another worker continues it", takeover=True)
        record.ended(lake_, record.started(lake_, current.get(lake_, job.id)), "done", result={"tree": "t"})

    timer = threading.Timer(0.5, continues)
    timer.start()
    assert remote.wait(timeout=30) == {"tree": "t"}
    timer.join()


def test_the_queue_has_an_end(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_app.jobs.starting.MOST_WAITING", 0)
    response = start(client, "maintain", {})
    assert (response.status_code, response.json()["reason"]) == (429, "too_many_jobs")


def test_a_kind_needs_its_scope(lake_: OpenLake) -> None:
    editor, reader = (keys.create(lake_, scope, [scope])[1] for scope in ("edit", "read"))
    app = make_server(Api(lake_), ui=False, hosts=["testserver"], policy=AccessPolicy(require_key=True))
    with TestClient(app) as client:
        bearer = {"Authorization": f"Bearer {editor}"}
        job = start(client, "cluster", {"k": 2}, **bearer).json()
        assert job["key_id"] == editor.split("_")[1]
        refused = start(client, "maintain", {}, **bearer)
        assert (refused.status_code, refused.json()["reason"]) == (403, "missing_scope")
        assert "needs the scope admin to start maintain" in refused.json()["detail"]
        assert client.get(f"/v1/jobs/{job['id']}", headers={"Authorization": f"Bearer {reader}"}).status_code == 200
        for caller, status in ((reader, 403), (editor, 200)):
            path, headers = f"/v1/jobs/{job['id']}/cancel", {"Authorization": f"Bearer {caller}"}
            assert client.post(path, headers=headers).status_code == status


def test_streams_opened_at_once_beyond_the_limit_are_refused(lake_: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its response at once: a stream, or 429. Streams that end make room."""
    monkeypatch.setattr("search_app.api.routes.jobs.MOST_LISTENERS", 2)
    api = Api(lake_)
    job = record.submit(lake_, "cluster", {"k": 2}, Starter()).id
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": f"/v1/jobs/{job}/events",
             "raw_path": f"/v1/jobs/{job}/events".encode(), "query_string": b"", "headers": [], "scheme": "http",
             "server": ("testserver", 80), "client": ("127.0.0.1", 1), "root_path": ""}  # fmt: skip

    async def statuses(count: int) -> list[int]:
        left, started, found = asyncio.Event(), asyncio.Semaphore(0), []

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                found.append(message["status"])
            elif message.get("body"):
                started.release()

        asked = [asyncio.ensure_future(api({**scope}, receive, send)) for _ in range(count)]
        for _ in range(count):
            await asyncio.wait_for(started.acquire(), 30)
        left.set()
        await asyncio.gather(*asked)
        return sorted(found)

    async def twice() -> list[list[int]]:
        return [await statuses(5), await statuses(5)]

    assert asyncio.run(twice()) == [[200, 200, 429, 429, 429]] * 2
    record.cancel(lake_, job, Starter())
