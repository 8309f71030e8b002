"""What arrives at this moment, as `GET /v1/arrivals` tells it: from the spool at once, from the lake after a drain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lance
import pytest

from lake.open_lake import OpenLake
from search_app.backend import arrivals
from search_app.backend.arrivals import Arrivals
from tests.lake.prediction_rows import add
from tests.pictures import damaged
from tests.search_app.api_client import ApiClient, api_client, event, named, picture


@pytest.fixture
def client(lk: OpenLake, tmp_path: Path) -> Iterator[ApiClient]:
    with api_client(lk, tmp_path / "spool") as opened:
        yield opened


def news(opened: ApiClient) -> dict[str, object]:
    document: dict[str, object] = opened.client.get("/v1/arrivals").json()
    return document


def test_watching_without_arrivals_shows_nothing(client: ApiClient) -> None:
    counts = news(client)
    assert (counts["last_minute"], counts["verdicts"], counts["waiting"], counts["images"]) == (0, 0, 0, [])
    assert counts["newest_seconds"] is None
    assert counts["unembedded"] is None  # nobody embeds here


def test_a_prediction_counts_from_its_acknowledgement_and_has_an_image_after_the_drain(client: ApiClient) -> None:
    before = news(client)["version"]
    for seed in range(3):
        assert client.predict(event(label=f"kind {seed}", confidence=seed / 4), picture(seed)).status_code == 201
    counts = news(client)
    assert (counts["last_minute"], counts["waiting"], counts["images"], counts["version"]) == (3, 3, [], before)
    assert 0 <= counts["newest_seconds"] < 5  # type: ignore[operator]

    client.drain()
    counts = news(client)
    assert (counts["last_minute"], counts["waiting"]) == (3, 0)
    assert counts["version"] != before
    assert counts["images"] == [
        {"image_id": named(picture(seed)), "label": f"kind {seed}", "confidence": seed / 4} for seed in (2, 1, 0)
    ]


def test_an_image_with_two_predictions_is_shown_once_with_the_newest(client: ApiClient) -> None:
    for label, seed in (("first", 1), ("other", 2), ("second", 1)):
        client.predict(event(label=label), picture(seed))
    client.drain()
    counts = news(client)
    assert counts["last_minute"] == 3
    assert [image["label"] for image in counts["images"]] == ["second", "other"]  # type: ignore[attr-defined]


def test_the_number_of_images_is_bounded(client: ApiClient) -> None:
    for seed in range(arrivals.IMAGES + 3):
        client.predict(event(label=str(seed)), picture(seed))
    client.drain()
    counts = news(client)
    assert counts["last_minute"] == arrivals.IMAGES + 3
    assert [image["label"] for image in counts["images"]] == [str(seed) for seed in range(10, 2, -1)]  # type: ignore[attr-defined]


def test_an_image_that_does_not_decode_counts_and_is_not_shown(client: ApiClient) -> None:
    assert client.predict(event(), damaged(picture(1))).status_code == 201
    client.drain()
    counts = news(client)
    assert (counts["last_minute"], counts["images"]) == (1, [])


def test_a_verdict_counts_as_a_verdict_and_not_as_a_prediction(client: ApiClient) -> None:
    answer = event()
    client.predict(answer, picture(1))
    client.feedback({"prediction_id": answer["prediction_id"], "verdict": "incorrect"})
    counts = news(client)
    assert (counts["last_minute"], counts["waiting"], counts["verdicts"]) == (1, 2, 0)
    before = counts["version"]
    client.drain()
    counts = news(client)
    assert (counts["last_minute"], counts["waiting"], counts["verdicts"]) == (1, 0, 1)
    assert counts["version"] != before


def test_earlier_rows_do_not_count_as_arrivals(lk: OpenLake) -> None:
    add(lk, [{"label": "old"}])
    arriving = Arrivals(lk, None)
    assert arriving.look()["last_minute"] == 0
    add(lk, [{"label": "new"}, {"label": "bare", "model": None}])  # a row without an answer is none
    counts = arriving.look()
    assert (counts["last_minute"], [image["label"] for image in counts["images"]]) == (1, ["new"])


def test_arrivals_expire(lk: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    arriving = Arrivals(lk, None)
    add(lk, [{"label": "new"}])
    assert arriving.look()["last_minute"] == 1
    monkeypatch.setattr(arrivals, "RECENT_SECONDS", 0.0)
    counts = arriving.look()
    assert (counts["last_minute"], counts["newest_seconds"], counts["images"]) == (0, None, [])


def test_polling_without_arrivals_reads_nothing(lk: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every open page asks every few seconds: without a new version no table is read."""
    add(lk, [{"label": str(number)} for number in range(50)])
    arriving = Arrivals(lk, None)
    before = arriving.look()
    read: list[object] = []
    scanner = lance.LanceDataset.scanner
    monkeypatch.setattr(lance.LanceDataset, "scanner", lambda *a, **k: read.append(k) or scanner(*a, **k))  # type: ignore[func-returns-value]
    assert arriving.look()["version"] == before["version"]
    assert read == []
    add(lk, [{"label": "new"}])
    assert arriving.look()["last_minute"] == 1
    assert read
