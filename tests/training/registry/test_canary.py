"""A canary in the registry: a share of the images, its limits, and the two ways out of it."""

from __future__ import annotations

import hashlib
import math

import pytest

from lake.errors import BadInput, LakeBusy
from lake.open_lake import OpenLake
from tests.training.registry.test_promotion import done, judge
from training.registry import canary, promotion, releases, versions
from training.registry.canary import Limits


def test_a_version_is_promoted_to_a_share_then_a_larger_one_then_whole(lk: OpenLake) -> None:
    first, second, third = (done(lk) for _ in range(3))
    with pytest.raises(BadInput, match="no version of turns is promoted to compare a canary with"):
        promotion.promote(lk, first, share=0.1)
    promotion.promote(lk, first)
    with pytest.raises(BadInput, match="has no gate verdict against turns@1"):  # a canary needs the gate as well
        promotion.promote(lk, second, share=0.1)
    verdict = judge(lk, second, first)
    version = promotion.promote(lk, second, share=0.1, limits=Limits(errors=0.02))
    assert (version.id, version.status, version.share, version.gate) == ("turns@2", "canary", 0.1, verdict)
    assert canary.limits_of_json(version.limits) == Limits(errors=0.02)
    assert versions.promoted(lk, "turns") == versions.get(lk, "turns@1")
    rows = lk.sql("SELECT version, status, share FROM models ORDER BY version").to_pylist()
    assert [tuple(row.values()) for row in rows] == [(1, "promoted", None), (2, "canary", 0.1)]

    judge(lk, third, first)
    with pytest.raises(BadInput, match="turns@2 is a canary for 10% of the images; promote it, or take it out with"):
        promotion.promote(lk, third)
    assert promotion.promote(lk, second, share=0.5).share == 0.5
    whole = promotion.promote(lk, second)
    assert (whole.status, whole.share) == ("promoted", None)
    assert [event.action for event in releases.history(lk, "turns")] == [
        *("registered", "promoted", "registered", "canary", "canary", "promoted"),
    ]
    assert promotion.rollback(lk, "turns").id == "turns@1"


def test_a_rollback_ends_the_canary_first_and_it_needs_a_newer_verdict_then(lk: OpenLake) -> None:
    first, second = done(lk), done(lk)
    promotion.promote(lk, first)
    judge(lk, second, first)
    promotion.promote(lk, second, share=0.2)
    assert promotion.rollback(lk, "turns", "blind at dusk").id == "turns@1"
    version = versions.get(lk, second)
    assert (version.status, version.share, version.reason) == ("registered", None, "blind at dusk")
    with pytest.raises(BadInput, match=r"turns@2 was rolled back at .* evaluate it again"):
        promotion.promote(lk, second, share=0.2)
    judge(lk, second, first)
    promotion.promote(lk, second, share=0.2)
    assert promotion.shadow(lk, second).status == "shadow"  # the other way out: it predicts nothing for callers
    assert versions.canary(lk, "turns") is None


def test_who_decides_about_an_older_state_of_a_canary_changes_nothing(
    lk: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = done(lk), done(lk)
    promotion.promote(lk, first)
    judge(lk, second, first)
    seen = promotion.promote(lk, second, share=0.1)
    promotion.promote(lk, second, share=0.3)
    assert promotion.end_canary(lk, seen, "by a server that saw 10 %") is None
    monkeypatch.setattr(versions, "canary", lambda lake, model: seen)
    with pytest.raises(LakeBusy, match="another process was faster: turns@2 changed"):
        promotion.rollback(lk, "turns")
    current = versions.get(lk, second)
    assert (current.status, current.share) == ("canary", 0.3)
    assert promotion.end_canary(lk, current, "slow") == versions.get(lk, first)
    assert promotion.end_canary(lk, current, "slow") is None  # two servers: one event
    assert [event.action for event in releases.history(lk, "turns")].count("rolled_back") == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"disagreement": 0.0}, "limit disagreement is 0; it must be between 0 and 1"),
        ({"errors": 2}, "limit errors is 2; it must be between 0 and 1"),
        ({"latency": 0.5}, "limit latency is 0.5; it must be at least 1"),
        ({"latency": math.nan}, "limit latency is nan"),
        ({"minimum": 3}, "limit minimum is 3; it must be 10 to 10,000"),
        ({"minimum": 30.5}, "limit minimum is 30.5; it must be a whole number"),
        ({"errors": "1"}, "limit errors is '1'; it must be a number"),
        ({"speed": 1}, "no limit 'speed'; the limits are disagreement, latency, errors, minimum"),
    ],
)
def test_a_limit_out_of_range_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        canary.limits_of(values)


def test_a_share_is_that_of_the_images_and_a_larger_one_has_them_all() -> None:
    images = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(10_000)]
    chosen = [{i for i in images if canary.predicts(share, "turns", i)} for share in (0.01, 0.1, 0.5)]
    for share, selected in zip((0.01, 0.1, 0.5), chosen, strict=True):
        deviation = math.sqrt(len(images) * share * (1 - share))
        assert abs(len(selected) - share * len(images)) < 4 * deviation  # beyond it once in 16,000 drawings
    assert chosen[0] < chosen[1] < chosen[2]
    of_another_model = {i for i in images if canary.predicts(0.5, "signs", i)}
    assert abs(len(of_another_model & chosen[2]) - 2_500) < 4 * math.sqrt(10_000 * 0.25 * 0.75)
