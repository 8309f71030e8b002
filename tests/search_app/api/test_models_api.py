"""POST /v1/models/{model}:predict on the real server, and the client that asks it and logs what it says."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from lake.client import AsyncClient, Client, NotAnswered
from lake.errors import CouldNot, UnreadableImage
from lake.ids import image_id
from lake.open_lake import OpenLake
from search_app.api.app import Api
from search_app.backend import model_server
from search_app.backend.model_server import Busy, ModelServer
from tests import pictures as drawn
from tests.crash.service import Service
from tests.hostile.files import png, scans
from tests.search_app.api_client import PROBLEM
from tests.training.conftest import stripes
from tests.training.served import two_versions
from training.inference import image_preparation, model_process
from training.models import trained_model
from training.registry import canary, promotion, versions
from training.registry.runs import Run
from training.tasks.task import Prediction

IMAGE = drawn.encoded(stripes(77, True))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenLake, Run, Run]:
    """Four images; of the model `lines`, version 1 is promoted and 2 says something else."""
    return two_versions(tmp_path_factory.mktemp("served") / "lake", 4)


@pytest.fixture(scope="module")
def service(registered: tuple[OpenLake, Run, Run]) -> Iterator[Service]:
    running = Service(Path(registered[0].uri), [])
    asyncio.run(running.ready())
    yield running
    assert "Traceback" not in running.output()
    running.kill()


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=120) as client:
        yield client


def ask(http: httpx.Client, name: str = "lines", body: bytes = IMAGE, kind: str = "image/png", **more: Any) -> Any:
    return http.post(f"/v1/models/{name}:predict", content=body, headers={"Content-Type": kind}, **more)


def test_the_promoted_version_predicts_and_nothing_is_written(
    http: httpx.Client, registered: tuple[OpenLake, Run, Run]
) -> None:
    lake, first, second = registered
    versions = {name: lake.version(name) for name in ("images", "samples", "scores", "audit")}
    response = ask(http)
    assert response.status_code == 200, response.text
    prediction = response.json()
    (direct,) = trained_model.load(lake, first.id).predictions([("x", stripes(77, True))])
    assert (prediction["model"], prediction["model_version"], prediction["run"], prediction["task"]) == (
        "lines",
        "1",
        first.id,
        "classification",
    )
    assert (prediction["label"], prediction["image_id"]) == (direct.label, image_id(IMAGE))
    assert prediction["confidence"] == pytest.approx(direct.confidence, abs=1e-6)
    assert [s["label"] for s in prediction["scores"]] == [label for label, _ in direct.scores]
    assert (prediction["boxes"], prediction["masks"]) == ([], [])
    assert prediction["latency_ms"] > 0
    again = ask(http).json()
    assert again["prediction_id"] != prediction["prediction_id"]
    assert again["scores"] == prediction["scores"]
    stored = lake.sql("SELECT image_id FROM images ORDER BY image_id")["image_id"][0].as_py()
    named = ask(http, body=json.dumps({"image_id": stored}).encode(), kind="application/json")
    assert named.json()["image_id"] == stored
    assert ask(http, "lines@2").json()["run"] == ask(http, params={"version": 2}).json()["run"] == second.id
    assert {name: lake.version(name) for name in versions} == versions


@pytest.mark.parametrize(
    ("name", "body", "kind", "status", "reason", "message"),
    [
        ("linse", IMAGE, "image/png", 404, "unknown_model", "did you mean lines"),
        ("lines@3", IMAGE, "image/png", 404, "unknown_model", "lines@2"),
        ("lines", IMAGE, "text/plain", 415, "media_type", "image/*"),
        ("lines", b"", "image/png", 422, "unreadable_image", "empty"),
        ("lines", IMAGE[: len(IMAGE) // 2], "image/png", 422, "unreadable_image", "truncated"),
        ("lines", b"[]", "application/json", 422, "not_json", "not an object"),
        ("lines", b'{"image_id": "x"}', "application/json", 422, "bad_id", "64 hexadecimal"),
        ("lines", b'{"image_id": 1}', "application/json", 422, "invalid", "image_id"),
        ("lines", json.dumps({"image_id": "0" * 64}).encode(), "application/json", 404, "unknown_image", "no image"),
        ("lines@1?version=1", IMAGE, "image/png", 404, "unknown_model", "lines@1"),
        ("lines", bytes((32 << 20) + 1), "image/png", 413, "too_large", "32 MiB"),
    ],
)
def test_refusals_are_problems(
    http: httpx.Client, name: str, body: bytes, kind: str, status: int, reason: str, message: str
) -> None:
    answer = ask(http, name.replace("?", "%3F"), body, kind)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    assert answer.json()["reason"] == reason
    assert message in answer.json()["detail"]


def test_a_version_cannot_be_given_twice(http: httpx.Client) -> None:
    assert ask(http, "lines@1", params={"version": 1}).json()["reason"] == "invalid"
    assert ask(http, params={"version": 0}).status_code == 422


def test_hostile_images_harm_nobody(http: httpx.Client) -> None:
    """Those that cost memory and time: they are refused, and others are answered meanwhile and afterwards."""
    hostile = [png(6_300, 6_300, 16, 6, b""), scans(5_000, 2_000), png(50_000, 50_000, 8, 2, b"")]
    with ThreadPoolExecutor(4) as several:
        refused = several.map(lambda data: ask(http, body=data), hostile)
        assert several.submit(ask, http).result().status_code == 200
        assert [(response.status_code, response.json()["reason"]) for response in refused] == [
            (422, "unreadable_image")
        ] * 3
    assert ask(http).status_code == 200


def test_the_client_predicts_and_logs_the_prediction(
    http: httpx.Client, service: Service, registered: tuple[OpenLake, Run, Run], tmp_path: Path
) -> None:
    _, first, _ = registered
    url = f"http://127.0.0.1:{service.port}"
    own = "00000000-0000-4000-8000-00000000000b"
    with Client(url, spill=tmp_path / "spill") as client:
        result = client.predict(IMAGE, model="lines", line="B")
        assert (result.model, result.model_version, result.run) == ("lines", "1", first.id)
        assert (
            client.predict(IMAGE, model="lines", version=2, prediction_id=own, source="camera 1").prediction_id == own
        )
        with pytest.raises(NotAnswered, match="did you mean lines") as refused:
            client.predict(IMAGE, model="lanes")
        assert refused.value.status == 404
        with pytest.raises(ValueError, match="empty"):
            client.predict(b"", model="lines")
        assert client.flush(30)
        assert client.stats().sent == 2
    logged = http.get(f"/v1/predictions/{result.prediction_id}").json()
    assert (logged["label"], logged["confidence"]) == (result.label, pytest.approx(result.confidence))
    assert (logged["model"], logged["model_version"]) == ("lines", "1")
    metadata = logged["metadata"] if isinstance(logged["metadata"], dict) else json.loads(logged["metadata"])
    assert metadata == {"run": first.id, "line": "B"}
    assert http.get(f"/v1/predictions/{own}").json()["source"] == "camera 1"

    async def predict_async() -> str:
        async with AsyncClient(url, spill=None) as client:
            prediction = await client.predict(IMAGE, model="lines")
            assert await client.flush(30)
            return prediction.prediction_id

    assert http.get(f"/v1/predictions/{asyncio.run(predict_async())}").status_code == 200
    with Client("http://127.0.0.1:9", spill=None) as nobody, pytest.raises(NotAnswered, match="does not answer"):
        nobody.predict(IMAGE, model="lines")


def test_a_promotion_holds_in_the_running_server(http: httpx.Client, registered: tuple[OpenLake, Run, Run]) -> None:
    lake, first, second = registered
    assert ask(http).json()["run"] == first.id
    promotion.promote(lake, second.id, force=True, reason="a test")
    time.sleep(model_server.LOOK_SECONDS)
    assert ask(http).json()["run"] == second.id
    promotion.rollback(lake, "lines")
    time.sleep(model_server.LOOK_SECONDS)
    assert ask(http).json()["run"] == first.id


def test_a_canary_predicts_its_share_and_every_response_names_its_version(
    http: httpx.Client, registered: tuple[OpenLake, Run, Run]
) -> None:
    lake, first, second = registered
    limits = canary.Limits(minimum=20)
    promotion.promote(lake, second.id, force=True, reason="a test", share=0.5, limits=limits)
    time.sleep(model_server.LOOK_SECONDS)
    by_version = {"1": first.id, "2": second.id}
    chosen = Counter[str]()
    for n in range(20):
        image = drawn.encoded(stripes(1_000 + n, True))
        prediction = ask(http, body=image).json()
        version = "2" if canary.predicts(0.5, "lines", image_id(image)) else "1"
        assert (prediction["model_version"], prediction["run"]) == (version, by_version[version])
        chosen[version] += 1
    assert {*chosen} == {"1", "2"}
    assert ask(http, "lines@1").json()["model_version"] == "1"
    (measured,) = http.get("/v1/models/lines").json()["measured"]
    assert 0 < measured["images"] <= chosen["2"]  # written at most every two seconds
    # The two versions predict the same label for a third of these images: the server takes the canary back.
    sent = 0
    while versions.canary(lake, "lines") is not None and sent < 400:
        assert ask(http, body=drawn.encoded(stripes(2_000 + sent, True))).status_code == 200
        sent += 1
    assert "rolled back automatically: it disagrees with the promoted version" in str(
        versions.get(lake, "lines@2").reason
    )
    time.sleep(model_server.LOOK_SECONDS)
    assert {ask(http, body=drawn.encoded(stripes(n, True))).json()["model_version"] for n in range(5)} == {"1"}


def test_requests_beyond_the_queue_are_refused(
    registered: tuple[OpenLake, Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without processes: a request to a full queue is refused, and so are those that wait when the server closes."""
    monkeypatch.setattr(model_server, "MOST_WAITING", 2)
    holding, working = threading.Event(), threading.Event()

    def block(self: ModelServer, batch: list[Any]) -> None:
        working.set()
        holding.wait(30)
        raise sqlite3.OperationalError("gone")

    monkeypatch.setattr(ModelServer, "_serve", block)
    line = ModelServer(registered[0])
    first = line.submit("run", "a", IMAGE)
    assert working.wait(30)
    waiting = [line.submit("run", name, IMAGE) for name in "bc"]
    with pytest.raises(Busy):
        line.submit("run", "d", IMAGE)
    closing = threading.Thread(target=line.close)
    closing.start()
    while not line._closing:
        time.sleep(0.001)
    holding.set()
    closing.join()
    with pytest.raises(CouldNot, match="gone"):
        first.result(5)
    for future in waiting:
        with pytest.raises(CouldNot, match="stopping"):
            future.result(5)
    with pytest.raises(CouldNot, match="stopping"):
        line.submit("run", "e", IMAGE)


def test_a_process_that_dies_is_replaced(
    registered: tuple[OpenLake, Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for both processes: a decoder that dies costs its image, a model that dies its batch."""
    monkeypatch.setattr(image_preparation, "WORKER", "tests.search_app.stand_ins:decode")
    monkeypatch.setattr(model_process, "WORK", "tests.search_app.stand_ins:think")
    line = ModelServer(registered[0])
    try:
        bad, good = line.submit("run", "a", b"crash"), line.submit("run", "b", b"fine")
        with pytest.raises(UnreadableImage, match="crashed"):
            bad.result(60)
        assert good.result(60) == ("run", Prediction("b", "fine"))
        with pytest.raises(CouldNot, match="ended"):
            line.submit("run", "c", b"lethal").result(60)
        assert line.submit("run", "d", b"fine").result(60) == ("run", Prediction("d", "fine"))
        with pytest.raises(CouldNot, match="no vector"):
            line.submit("run", "e", b"blank").result(60)
    finally:
        line.close()


def test_the_document_names_the_route(registered: tuple[OpenLake, Run, Run]) -> None:
    document = Api(registered[0])._api.openapi()["paths"]["/v1/models/{model}:predict"]["post"]
    assert {*document["requestBody"]["content"]} == {"image/*", "application/json"}
    assert {"200", "404", "413", "415", "422", "429", "503"} <= {*document["responses"]}
    assert [parameter["name"] for parameter in document["parameters"]] == ["model", "version"]
