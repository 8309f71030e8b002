"""What arrives at this moment, as `GET /v1/arrivals` tells it: from the spool at once, from the lake after a drain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import lance
import pytest

from lake.storage.store import Lake
from search_app.backend import arrivals
from search_app.backend.arrivals import Arrivals
from tests.lake.answers import add
from tests.search_app.intake import Door, door, event, named, picture


@pytest.fixture
def open_door(lk: Lake, tmp_path: Path) -> Iterator[Door]:
    with door(lk, tmp_path / "spool") as opened:
        yield opened


def news(opened: Door) -> dict[str, object]:
    found: dict[str, object] = opened.client.get("/v1/arrivals").json()
    return found


def test_nothing_arrives(open_door: Door) -> None:
    said = news(open_door)
    assert (said["last_minute"], said["verdicts"], said["waiting"], said["images"]) == (0, 0, 0, [])
    assert said["newest_seconds"] is None
    assert said["unembedded"] is None  # nobody embeds here


def test_an_answer_is_news_from_its_acknowledgement_and_has_a_face_after_the_drain(open_door: Door) -> None:
    before = news(open_door)["version"]
    for seed in range(3):
        assert open_door.predict(event(label=f"kind {seed}", confidence=seed / 4), picture(seed)).status_code == 201
    said = news(open_door)
    assert (said["last_minute"], said["waiting"], said["images"], said["version"]) == (3, 3, [], before)
    assert 0 <= said["newest_seconds"] < 5  # type: ignore[operator]

    open_door.drain()
    said = news(open_door)
    assert (said["last_minute"], said["waiting"]) == (3, 0)
    assert said["version"] != before
    assert said["images"] == [
        {"image_id": named(picture(seed)), "label": f"kind {seed}", "confidence": seed / 4} for seed in (2, 1, 0)
    ]


def test_an_image_answered_twice_has_one_face_with_its_newest_answer(open_door: Door) -> None:
    for label, seed in (("first", 1), ("other", 2), ("second", 1)):
        open_door.predict(event(label=label), picture(seed))
    open_door.drain()
    said = news(open_door)
    assert said["last_minute"] == 3
    assert [one["label"] for one in said["images"]] == ["second", "other"]  # type: ignore[attr-defined]


def test_only_so_many_faces_are_told_of(open_door: Door) -> None:
    for seed in range(arrivals.IMAGES + 3):
        open_door.predict(event(label=str(seed)), picture(seed))
    open_door.drain()
    said = news(open_door)
    assert said["last_minute"] == arrivals.IMAGES + 3
    assert [one["label"] for one in said["images"]] == [str(seed) for seed in range(10, 2, -1)]  # type: ignore[attr-defined]


def test_what_does_not_decode_counts_and_has_no_face(open_door: Door) -> None:
    whole = picture(1)
    assert open_door.predict(event(), whole[: len(whole) // 2]).status_code == 201
    open_door.drain()
    said = news(open_door)
    assert (said["last_minute"], said["images"]) == (1, [])


def test_a_verdict_is_news_and_no_answer(open_door: Door) -> None:
    answer = event()
    open_door.predict(answer, picture(1))
    open_door.judge({"prediction_id": answer["prediction_id"], "verdict": "incorrect"})
    said = news(open_door)
    assert (said["last_minute"], said["waiting"], said["verdicts"]) == (1, 2, 0)
    before = said["version"]
    open_door.drain()
    said = news(open_door)
    assert (said["last_minute"], said["waiting"], said["verdicts"]) == (1, 0, 1)
    assert said["version"] != before


def test_what_was_there_before_did_not_arrive(lk: Lake) -> None:
    add(lk, [{"label": "old"}])
    here = Arrivals(lk, None)
    assert here.look()["last_minute"] == 0
    add(lk, [{"label": "new"}, {"label": "bare", "model": None}])  # a row without an answer is none
    said = here.look()
    assert (said["last_minute"], [one["label"] for one in said["images"]]) == (1, ["new"])


def test_news_grow_old(lk: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "RECENT_SECONDS", 0.3)
    here = Arrivals(lk, None)
    add(lk, [{"label": "new"}])
    assert here.look()["last_minute"] == 1
    time.sleep(0.4)
    said = here.look()
    assert (said["last_minute"], said["newest_seconds"], said["images"]) == (0, None, [])


def test_a_look_without_news_reads_nothing(lk: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every open page asks every few seconds: without a new version no table is read."""
    add(lk, [{"label": str(number)} for number in range(50)])
    here = Arrivals(lk, None)
    before = here.look()
    read: list[object] = []
    scanner = lance.LanceDataset.scanner
    monkeypatch.setattr(lance.LanceDataset, "scanner", lambda *a, **k: read.append(k) or scanner(*a, **k))
    assert here.look()["version"] == before["version"]
    assert read == []
    add(lk, [{"label": "new"}])
    assert here.look()["last_minute"] == 1
    assert read
