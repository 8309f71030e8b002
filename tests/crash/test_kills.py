"""The whole service under SIGKILL: what it acknowledged is in the lake exactly once, whatever moment it died at."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from lake.open_lake import OpenLake
from lake.spool import events
from lake.spool.drain import drain
from lake.spool.spool import Spool
from lake.storage import schema
from tests.conftest import MakeLake, Say
from tests.crash.kills import campaigns
from tests.crash.ledger import Ledger, Sent, compare


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.soak)])
def test_nothing_acknowledged_is_lost_doubled_or_torn(tmp_path: Path, kills: int, say: Say) -> None:
    short = kills < 200
    tally = asyncio.run(campaigns(tmp_path, kills, seed=kills, forked=short, damage=5 if short else 20))
    say(tally.sentence())
    say(f"{tally.damages} files damaged between the kills, {tally.spoiled_rows} rows in them: the others stayed")
    assert not tally.failed, tally.figures()["details"]
    assert tally.kills == kills
    assert tally.drainer_kills
    assert tally.mid_drain
    assert tally.damages
    if kills >= 200:  # by chance, about one kill in five; test_faults.py kills at those very points
        assert tally.retried_known, "no kill fell between a commit and its answer: the test saw nothing of retries"


@pytest.mark.soak
@pytest.mark.parametrize("kills", [4, 40])
def test_two_servers_on_one_spool_are_killed_in_turn(tmp_path: Path, kills: int, say: Say) -> None:
    tally = asyncio.run(campaigns(tmp_path, kills, seed=1_000 + kills, one_lake=True))
    say(tally.sentence())
    assert not tally.failed, tally.figures()["details"]


# The comparison itself -------------------------------------------------------------------------------------


def answered(ledger: Ledger, lk: OpenLake, count: int) -> None:
    """Puts `count` requests through the lake's own code without a server, each answered as stored."""
    spool = Spool(Path(lk.uri) / "spool")
    for _ in range(count):
        request = ledger.next()
        spool.put([event_of(sent) for sent in request.events])
        ledger.acknowledge(request)
    drain(lk, spool)
    spool.close()


def event_of(sent: Sent) -> events.Event:
    if sent.kind == "image":
        return events.image(sent.image_id, sent.data or b"", None, None)
    if sent.kind == "feedback":
        about = {sent.says["prediction_id"]: sent.image_id}
        return events.feedback({"event_id": sent.event_id, **sent.says}, about, None)
    says = {k: v.isoformat() if k == "timestamp" else v for k, v in sent.says.items()}
    return events.prediction({"prediction_id": sent.event_id, **says}, {}, sent.image_id, sent.data, None)


def lose_a_row(lk: OpenLake) -> None:
    lk.delete("samples", f"prediction_id = '{lk.scan('samples', ['prediction_id'])['prediction_id'][0]}'")


def lose_an_image(lk: OpenLake) -> None:
    lk.delete("images", f"image_id = '{lk.scan('images', ['image_id'])['image_id'][0]}'")


def double_a_review(lk: OpenLake) -> None:
    import lance

    rows = lk.dataset("reviews").to_table()
    lance.write_dataset(rows.slice(0, 1), lk.table_uri("reviews"), mode="append")


def change_a_label(lk: OpenLake) -> None:
    row = lk.scan("samples", [f.name for f in lk.dataset("samples").schema], "model is not null").slice(0, 1)
    changed = pa.Table.from_pylist([row.to_pylist()[0] | {"label": "another"}], schema=row.schema)
    lk.update("samples", changed)


def add_a_stranger(lk: OpenLake) -> None:
    row = lk.dataset("reviews").to_table().to_pylist()[0] | {"event_id": "00000000-0000-4000-8000-000000000000"}
    lk.insert("reviews", pa.Table.from_pylist([row], schema=schema.REVIEWS.arrow()))


@pytest.mark.parametrize(
    ("harm", "seen_as"),
    [
        (lambda lk: None, None),
        (lose_a_row, "lost"),
        (lose_an_image, "torn"),
        (double_a_review, "duplicates"),
        (change_a_label, "torn"),
        (add_a_stranger, "strangers"),
    ],
)
def test_the_comparison_sees_what_a_fault_would_leave(
    make_lake: MakeLake, harm: Callable[[OpenLake], None], seen_as: str | None
) -> None:
    lk = make_lake()
    ledger = Ledger(seed=5)
    answered(ledger, lk, 60)
    harm(lk)
    findings = compare(lk, None, ledger)
    assert findings.acked > 60
    assert findings.any == (seen_as is not None), findings.details
    if seen_as:
        assert getattr(findings, seen_as) >= 1, findings.details
