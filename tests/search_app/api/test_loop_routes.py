"""Runs, evaluations, gates and versions over HTTP: what they show, who wrote what down, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from embeddings.duplicates import threshold
from lake import slices
from lake.client.data_doors import DataDoors
from lake.client.json_requests import JsonRequests, RequestFailed
from lake.client.model_doors import JobFailed, ModelDoors, ModelInfo
from lake.jobs import current
from lake.open_lake import OpenLake
from lake.storage import schema, store
from search_app.api.app import Api
from tests.lake import stock
from tests.search_app.api_client import reason
from tests.search_app.in_process import InProcess
from tests.training.registry.test_promotion import done, judge
from training.registry import promotion, runs, versions


class Doors(ModelDoors, DataDoors):
    def __init__(self, requests: JsonRequests) -> None:
        self._requests = requests


@pytest.fixture
def http(lk: OpenLake) -> Iterator[TestClient]:
    with TestClient(Api(lk), raise_server_exceptions=False) as client:
        yield client


def every_item(http: TestClient, path: str, limit: int) -> list[Any]:
    """The items of all pages."""
    items: list[Any] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        query = f"limit={limit}" + (f"&cursor={cursor}" if cursor else "")
        page = http.get(f"{path}{'&' if '?' in path else '?'}{query}").json()
        assert len(page["items"]) <= limit
        items, cursor, pages = items + page["items"], page["next"], pages + 1
    return items


def evaluated(lake: OpenLake, run: str, name: str) -> None:
    rows = [
        {"run": run, "evaluation": name, "metric": metric, "slice": slice_, "value": value, "low": 0.8, "high": 1.0}
        | {"n": 40, "at": store.now()}
        for slice_, metric, value in (("day@1", "accuracy", 0.9), ("night@1", "accuracy", 0.95))
    ]
    lake.insert("metrics", pa.Table.from_pylist(rows, schema=schema.METRICS.arrow()))


def test_runs_are_listed_page_by_page_and_shown_with_their_metrics(http: TestClient, lk: OpenLake) -> None:
    names = [done(lk) for _ in range(5)]
    other = done(lk, "signs")
    assert [run["id"] for run in every_item(http, "/v1/runs?model=turns", 2)] == names[::-1]
    assert [run["id"] for run in http.get("/v1/runs?status=done&limit=1").json()["items"]] == [other]
    assert http.get("/v1/runs?status=failed").json() == {"items": [], "next": None}
    shown = http.get(f"/v1/runs/{names[0][:7]}").json()
    assert (shown["id"], shown["status"], shown["recipe"]["kind"]) == (names[0], "done", "probe")
    runs.log(lk, names[0], [{"metric": "loss", "value": 1 / step, "step": step, "epoch": step} for step in (1, 2, 3)])
    evaluated(lk, names[0], "0000000a")
    rows = every_item(http, f"/v1/runs/{names[0]}/metrics", 2)
    assert [(row["step"], row["slice"]) for row in rows] == [
        *((1, None), (2, None), (3, None), (None, "day@1"), (None, "night@1")),
    ]
    assert len(http.get(f"/v1/runs/{names[0]}/metrics?metric=accuracy").json()["items"]) == 2
    assert reason(http.get("/v1/runs/zzz")) == (404, "unknown_run")
    assert reason(http.get("/v1/runs?cursor=zzz")) == (422, "bad_cursor")


def test_evaluations_and_gates_do_not_change_and_have_an_etag(http: TestClient, lk: OpenLake) -> None:
    first, second = done(lk), done(lk)
    for n, run in enumerate((first, second, first)):
        evaluated(lk, run, f"0000000{n}")
    listed = every_item(http, "/v1/evaluations", 2)
    assert [record["id"] for record in listed] == ["00000002", "00000001", "00000000"]
    assert [record["id"] for record in every_item(http, f"/v1/evaluations?run={second}", 9)] == ["00000001"]
    response = http.get("/v1/evaluations/00000001")
    assert response.json() == listed[1]
    assert response.json()["slices"]["night@1"]["accuracy"] == {"value": 0.95, "low": 0.8, "high": 1.0, "n": 40}
    again = http.get("/v1/evaluations/00000001", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    verdicts = [judge(lk, second, first), judge(lk, second, first, blocks=True)]
    assert [gate["id"] for gate in every_item(http, f"/v1/gates?candidate={second}", 1)] == verdicts[::-1]
    gate = http.get(f"/v1/gates/{verdicts[1]}")
    assert (gate.json()["blocks"], gate.json()["slices"], gate.json()["policy"]) == (True, [], {})
    assert http.get(f"/v1/gates/{verdicts[1]}", headers={"If-None-Match": gate.headers["etag"]}).status_code == 304
    assert reason(http.get("/v1/gates/none")) == (404, "unknown_gate")
    assert reason(http.get("/v1/evaluations/none")) == (404, "unknown_evaluation")


def test_from_a_run_to_a_canary_to_production_and_back(http: TestClient, lk: OpenLake) -> None:
    first, second = done(lk), done(lk)
    assert http.post("/v1/models", json={"run": first, "reason": "the first"}).status_code == 201
    assert http.post(f"/v1/models/{first}:promote").json()["status"] == "promoted"
    refused = http.post(f"/v1/models/{second}:promote", json={"share": 0.1})
    assert reason(refused) == (409, "not_allowed")
    assert f"lakeloop gate --candidate {second} --baseline {first}" in refused.json()["detail"]
    verdict = judge(lk, second, first)
    key = {"Idempotency-Key": "a-canary"}
    body = {"share": 0.1, "limits": {"errors": 0.02}, "reason": "by day first"}
    canary = http.post(f"/v1/models/{second}:promote", json=body, headers=key)
    shown = http.get("/v1/models/turns@2").json()
    assert canary.json() == {name: shown[name] for name in canary.json()}
    assert (canary.json()["status"], canary.json()["share"], canary.json()["gate"]) == ("canary", 0.1, verdict)
    assert canary.json()["limits"] == {"disagreement": 0.3, "latency": 2.0, "errors": 0.02, "minimum": 30}
    assert http.post(f"/v1/models/{second}:promote", json=body, headers=key).content == canary.content  # once
    model = http.get("/v1/models/turns").json()
    assert (model["promoted"], model["canary"], model["versions"]) == ("turns@1", "turns@2", 2)
    assert http.get("/v1/models").json()["items"] == [{k: model[k] for k in model if k not in ("newest", "measured")}]

    assert http.post("/v1/models/turns@2:promote").json()["status"] == "promoted"
    back = http.post("/v1/models/turns:rollback", json={"reason": "blind at dusk"})
    assert (back.json()["id"], versions.get(lk, second).reason) == ("turns@1", "blind at dusk")
    assert http.post(f"/v1/models/{second}:shadow").json()["status"] == "shadow"
    assert http.post("/v1/models/turns@2:retire", json={"reason": "slow"}).json()["status"] == "retired"
    events = every_item(http, "/v1/models/turns/releases", 3)
    assert [event["action"] for event in events] == [
        *("retired", "shadowed", "rolled_back", "promoted", "canary", "registered", "promoted", "registered"),
    ]
    assert events[4]["limits"]["errors"] == 0.02
    assert [version["id"] for version in every_item(http, "/v1/models/turns/versions", 1)] == ["turns@2", "turns@1"]
    http.app.sql.log.flush()  # type: ignore[attr-defined]
    rows = lk.sql("SELECT action, target, detail FROM audit ORDER BY timestamp").to_pylist()
    assert [row["action"].removeprefix("models ") for row in rows] == [
        *("register", "promote", "promote", "promote", "rollback", "shadow", "retire"),
    ]
    assert json.loads(rows[2]["detail"]) == {
        "run": second, "gate": verdict, "reason": "by day first", "force": False, "share": 0.1,
    }  # fmt: skip


WRONG: list[tuple[str, Any, int, str]] = [
    ("/v1/models", {"run": "zzz"}, 422, "invalid"),
    ("/v1/models", {}, 422, "invalid"),
    ("/v1/models/turn@1:promote", {}, 404, "unknown_model"),
    ("/v1/models/turns@1:promote", {"share": 1.0}, 422, "invalid"),
    ("/v1/models/turns@1:promote", {"share": 0.5, "limits": {"speed": 1}}, 422, "invalid"),
    ("/v1/models/turns@1:promote", {"limits": {}}, 422, "invalid"),
    ("/v1/models/turns@1:promote", {"force": True}, 422, "invalid"),
    ("/v1/models/turns@1:promote", {"share": 0.5}, 409, "not_allowed"),
    ("/v1/models/turns@1:promote", {"more": 1}, 422, "invalid"),
    ("/v1/models/turns@1:rollback", {}, 404, "unknown_model"),
    ("/v1/models/turns:rollback", {}, 409, "not_allowed"),
    ("/v1/models/turns:shadow", {}, 404, "unknown_model"),
    ("/v1/models/turns@7:retire", {}, 404, "unknown_model"),
]


def test_what_is_wrong_is_refused_with_a_reason(http: TestClient, lk: OpenLake) -> None:
    promotion.register(lk, done(lk))
    for path, body, status, word in WRONG:
        assert reason(http.post(path, json=body)) == (status, word), (path, body)
    for path in ("/v1/models/turn", "/v1/models/turn/versions", "/v1/models/turns@1/releases", "/v1/models/x/card"):
        assert reason(http.get(path)) == (404, "unknown_model"), path
    assert len(lk.scan("releases", ["event_id"])) == 1


def test_the_threshold_of_near_duplicates_is_kept(http: TestClient, lk: OpenLake) -> None:
    lk.register_embedder("random")
    assert [record["name"] for record in http.get("/v1/embedders").json()["embedders"]] == ["random"]
    assert http.put("/v1/embedders/random/threshold", json={"threshold": 0.999}).json()["duplicates_from"] == 0.999
    assert threshold.threshold_of(lk, lk.embedders()[0]) == 0.999
    assert reason(http.put("/v1/embedders/randon/threshold", json={"threshold": 0.9})) == (404, "unknown_embedder")
    assert reason(http.put("/v1/embedders/random/threshold", json={"threshold": 2})) == (422, "invalid")


def test_the_clients_doors_to_models_have_types(http: TestClient, lk: OpenLake) -> None:
    doors = Doors(InProcess(http))
    first, second = done(lk), done(lk)
    assert [run.id for run in doors.runs("turns")] == [second, first]
    assert doors.runs(status="failed") == []
    assert (doors.run(first[:7]).wait(1).id, doors.run(first).info().status) == (first, "done")
    assert doors.register(first, "the first").id == "turns@1"
    assert doors.promote("turns@1").status == "promoted"
    with pytest.raises(RequestFailed, match="has no gate verdict") as refused:
        doors.promote(second)
    assert (refused.value.status, refused.value.reason) == (409, "not_allowed")
    verdict = judge(lk, second, first)
    assert doors.verdict(verdict)["outcome"] == "passed"
    canary = doors.promote(second, share=0.1, limits={"errors": 0.02})
    assert (canary.share, canary.gate, canary.limits and canary.limits["errors"]) == (0.1, verdict, 0.02)
    assert doors.models() == [ModelInfo("turns", "turns@1", "turns@2", [], 2)]
    assert doors.rollback("turns", "blind at dusk").id == "turns@1"
    assert doors.shadow(second).status == "shadow"
    assert doors.retire("turns@2").status == "retired"
    assert [(version.id, version.status) for version in doors.versions("turns")] == [
        ("turns@2", "retired"),
        ("turns@1", "promoted"),
    ]
    runs.log(lk, first, [{"metric": "loss", "value": 0.5, "step": 1}])
    assert [row["value"] for row in doors.run(first).metrics("loss")] == [0.5]
    assert "turns@1" in doors.card("turns")
    lk.register_embedder("random")
    doors.set_duplicate_threshold("random", 0.99)
    assert threshold.threshold_of(lk, lk.embedders()[0]) == 0.99


def test_a_card_comes_as_markdown_or_json_and_changes_its_etag_with_the_record(http: TestClient, lk: OpenLake) -> None:
    run = done(lk)
    evaluated(lk, run, "0000000a")
    promotion.promote(lk, run)
    card = http.get("/v1/models/turns/card")
    assert card.headers["content-type"].startswith("text/markdown")
    assert "turns@1" in card.text
    document = http.get("/v1/models/turns@1/card", headers={"Accept": "application/json"}).json()
    assert (document["name"], document["run"], document["text"]) == ("turns@1", run, card.text)
    tag = {"If-None-Match": card.headers["etag"]}
    assert http.get("/v1/models/turns/card", headers=tag).status_code == 304
    promotion.promote(lk, done(lk), force=True, reason="a test")
    assert "turns@2" in http.get("/v1/models/turns/card", headers=tag).text


def test_training_evaluation_and_gate_start_as_jobs_whose_arguments_are_checked_first(
    http: TestClient, lk: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search_app.jobs.supervisor.ensure", lambda lake: None)  # nothing runs them here
    run = done(lk)
    names = stock.add(lk, range(4))
    slices.create(lk, "first", ids=names)
    started = [
        ("/v1/runs", {"train": ["first"], "name": "turns", "recipe": {"kind": "probe"}}, "train"),
        ("/v1/runs:tune", {"train": ["first"], "tried": ["rate=1e-4..1e-2"], "trials": 3}, "tune"),
        ("/v1/evaluations", {"run": run, "slices": ["first"]}, "evaluate"),
        ("/v1/gates", {"candidate": run, "policy": {"slices": {"first": {}}}}, "gate"),
    ]
    for path, body, kind in started:
        key = {"Idempotency-Key": f"key-{kind}"}
        response = http.post(path, json=body, headers=key)
        assert response.status_code == 202, response.text
        job = response.json()
        assert (job["kind"], job["state"], job["arguments"]) == (kind, "waiting", body)
        assert http.post(path, json=body, headers=key).json() == job  # once
    refused: list[tuple[str, Any, str]] = [
        ("/v1/runs", {"train": ["frist"]}, "did you mean first"),
        ("/v1/runs", {"train": ["first"], "recipe": {"kind": "prob"}}, "probe"),
        ("/v1/runs", {"train": ["first"], "weights": "/etc/passwd"}, "names a file of the server"),
        ("/v1/runs:tune", {"train": ["first"], "tried": ["speed=1..2"]}, "speed"),
        ("/v1/evaluations", {}, "needs run"),
        ("/v1/gates", {"candidate": run, "policy": {"margn": 1}}, "did you mean margin"),
    ]
    for path, body, message in refused:
        response = http.post(path, json=body)
        assert reason(response) == (422, "invalid"), (path, body)
        assert message in response.json()["detail"]
    doors = Doors(InProcess(http))
    (evaluation,) = doors.jobs(kind="evaluate")
    assert (evaluation.state, evaluation.result, doors.job(evaluation.id[:8]).id) == ("waiting", None, evaluation.id)
    with pytest.raises(TimeoutError, match=r"had not ended after 0\.01 s"):
        evaluation.wait(0.01)
    with pytest.raises(JobFailed, match=r"\(evaluate\) cancelled"):
        evaluation.cancel().wait(1)
    again = doors.train(["first"], model="turns", recipe={"kind": "probe"})
    assert (again.kind, again.facts["arguments"]["name"]) == ("train", "turns")
    assert sorted(job.kind for job in current.list(lk)) == ["evaluate", "gate", "train", "train", "tune"]
