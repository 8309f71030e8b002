"""Canaries in the server that predicts: which image goes where, and that bad ones are rolled back by themselves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lake import ids
from lake.open_lake import OpenLake
from search_app.backend import model_server
from search_app.backend.canaries import Canaries
from search_app.backend.model_server import ModelServer
from tests.training.registry.test_promotion import done, judge
from training.inference import canary_measurements, image_preparation, model_process
from training.registry import canary, promotion, releases, versions
from training.registry.versions import Version

pytestmark = pytest.mark.slow

SHARE = 0.5
MOST = 60


def with_canary(lake: OpenLake) -> Version:
    """Of the model `turns`, version 1 is promoted and version 2 is the canary, which is returned."""
    first, second = done(lake), done(lake)
    promotion.promote(lake, first)
    judge(lake, second, first)
    return promotion.promote(lake, second, share=SHARE, limits=canary.Limits(minimum=10))


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("disagreeing", "it disagrees with the promoted version on 100.0%"),
        ("slow", "its 95th percentile of prediction times is"),
        ("failing", "it failed to predict 100.0%"),
        ("good", None),
    ],
)
def test_a_canary_that_passes_a_limit_is_rolled_back_and_a_good_one_is_not(
    lk: OpenLake, monkeypatch: pytest.MonkeyPatch, behaviour: str, reason: str | None
) -> None:
    version = with_canary(lk)
    promoted = versions.get(lk, "turns@1")
    monkeypatch.setattr(image_preparation, "WORKER", "tests.search_app.stand_ins:decode")
    monkeypatch.setattr(model_process, "WORK", "tests.search_app.stand_ins:canary")
    monkeypatch.setattr(model_server, "COMPARISON_REST", 0.0)
    monkeypatch.setattr(model_server, "LOOK_SECONDS", 0.1)
    monkeypatch.setenv("CANARY", version.run)
    monkeypatch.setenv("CANARY_IS", behaviour)
    server = ModelServer(lk)
    by_canary = 0
    try:
        for n in range(400):
            image_id = ids.image_id(b"%d" % n)
            source = server.source("turns")
            chosen, trial = source.choose(image_id)
            run, _ = server.submit(chosen.run, image_id, b"an image", trial).result(60)
            if trial is None:
                assert run == promoted.run
                if source.trial is None:
                    break  # the roll back has reached this server
            else:
                assert canary.predicts(SHARE, "turns", image_id)
                assert run == (promoted.run if behaviour == "failing" else version.run)  # a failure costs nobody
                by_canary += 1
            if by_canary == MOST:
                break
        (measured,) = canary_measurements.read(lk, version) if reason is None else [{}]
    finally:
        server.close()
    state = versions.get(lk, version.run)
    if reason is None:
        assert (state.status, state.share) == ("canary", SHARE)
        assert 0 < measured["images"] <= MOST  # written at most every two seconds
        assert (measured["errors"]["value"], measured["disagreement"]["value"]) == (0.0, 0.0)
        assert canary_measurements.sentence(measured).startswith(f"{measured['images']} images, errors 0.0% (0.0% to ")
        assert canary_measurements.read(lk, version) == []  # a server that ends takes them along
        return
    assert by_canary < MOST
    assert state.status == "registered"
    assert str(state.reason).startswith(f"rolled back automatically: {reason}")
    row = lk.sql("SELECT target, detail FROM audit WHERE action = 'models rollback'").to_pylist()[0]
    assert row["target"] == "turns@1"
    detail = json.loads(row["detail"])
    assert (detail["taken_back"], detail["automatic"], detail["reason"]) == ("turns@2", True, state.reason)
    again = Canaries(lk).source("turns")  # after a restart
    assert (again.version.version, again.trial) == (1, None)


def test_of_two_servers_one_rolls_back_and_neither_the_next_canary(lk: OpenLake) -> None:
    version = with_canary(lk)
    servers = [Canaries(lk), Canaries(OpenLake(lk.uri))]
    trials = [server.source("turns").trial for server in servers]
    for server, trial in zip(servers, trials, strict=True):
        assert trial is not None
        assert server.source("turns").trial is trial  # with what was measured
    for server, trial in zip(servers, trials, strict=True):
        assert trial is not None
        trial.evidence.add_results(0, failed=100)
        server.judge(trial)
        assert trial.over
        assert not any(trial.predicts(ids.image_id(b"%d" % n)) for n in range(20))
    deadline = time.monotonic() + 30
    while versions.canary(lk, "turns") is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    judge(lk, version.run, versions.get(lk, "turns@1").run)
    promotion.promote(lk, version.run, share=0.1)
    for server, trial in zip(servers, trials, strict=True):
        assert trial is not None
        server._end(trial, "what an overtaken server still thinks of the canary before")
        fresh = server.source("turns").trial
        assert fresh is not None
        assert (fresh.version.share, fresh.evidence.images, fresh.over) == (0.1, 0, False)
    assert [event.action for event in releases.history(lk, "turns")].count("rolled_back") == 1


def test_a_lake_that_cannot_be_written_learns_of_the_roll_back_later(
    lk: OpenLake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_canary(lk)
    monkeypatch.setattr("search_app.backend.canaries.RETRY_SECONDS", 0.01)
    end, attempts = promotion.end_canary, []

    def refused_twice(lake: OpenLake, of: Version, reason: str | None = None) -> Version | None:
        attempts.append(of)
        if len(attempts) < 3:
            raise OSError("the disk is full")
        return end(lake, of, reason)

    monkeypatch.setattr(promotion, "end_canary", refused_twice)
    server = Canaries(lk)
    trial = server.source("turns").trial
    assert trial is not None
    server._end(trial, "slow")
    assert len(attempts) == 3
    assert versions.canary(lk, "turns") is None
