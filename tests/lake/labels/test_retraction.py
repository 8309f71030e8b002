"""Empty labels of earlier releases are named, taken back as new events, and given again."""

import datetime as dt
import json
from typing import Any

import pyarrow as pa
import pytest

from lake.formats import annotation
from lake.labels import label_events, retraction
from lake.open_lake import OpenLake
from lake.storage import schema
from lake.upkeep import consistency
from lake.upkeep.consistency import ConsistencyReport
from search_app.cli import main

THEN = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
REFUSED, UNKNOWN, SOUND, CORRECTED, SENT = (f"{n:064x}" for n in range(5))


def empty(image_id: str, task: str, moment: dt.datetime) -> dict[str, Any]:
    """The label that an earlier release wrote for an image without annotations, or with refused ones only."""
    truth = annotation.nothing(task)
    row = {"event_id": annotation.event_id(image_id, truth), "image_id": image_id, "timestamp": moment, "task": task}
    return row | {"boxes": truth.boxes, "masks": truth.masks, "origin": "import", "annotator": "yolo"}


def job(number: int, moment: dt.datetime, rejected: int) -> dict[str, Any]:
    """An ingest of an hour in the record of jobs."""
    rows: dict[str, Any] = {
        "job": f"{number:012x}",
        "kind": "ingest",
        "arguments": json.dumps({"path": f"/data/{number}"}),
    }
    rows |= {"detached": False, "attempt": 1, "takeovers": 0, "created_at": moment}
    result = json.dumps({"rejected": [], "rejected_count": rejected})
    return rows | {"event_id": f"{number}", "state": "done", "changed_at": moment + HOUR, "result": result}


@pytest.fixture
def older(lk: OpenLake) -> OpenLake:
    """Five images with an empty label: of an ingest that refused something, of an unknown one, of one that refused
    nothing, one that a person labelled since, and one that a program sent.
    """
    samples = [
        {"prediction_id": name, "image_id": name, "ingested_at": THEN}
        for name in (REFUSED, UNKNOWN, SOUND, CORRECTED, SENT)
    ]
    lk.insert("samples", pa.Table.from_pylist(samples, schema=schema.SAMPLES.arrow()))
    lk.insert("jobs", pa.Table.from_pylist([job(1, THEN, 7), job(2, THEN + 5 * HOUR, 0)], schema=schema.JOBS.arrow()))
    rows = [
        empty(REFUSED, "detection", THEN + HOUR / 2),
        empty(UNKNOWN, "segmentation", THEN - HOUR),
        empty(SOUND, "detection", THEN + 5.5 * HOUR),
        empty(CORRECTED, "detection", THEN + HOUR / 2),
    ]
    lk.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))
    label_events.write(lk, [
        {"image_id": CORRECTED, "boxes": [], "timestamp": (THEN + 9 * HOUR).isoformat()},
        {"image_id": SENT, "boxes": [], "origin": "import"},
    ])  # fmt: skip
    return lk


def says_nothing_here(lk: OpenLake) -> set[str]:
    rows = lk.sql("SELECT image_id FROM labels_current WHERE incomplete IS NOT TRUE")
    return {*rows["image_id"].to_pylist()}


def test_the_doctor_names_what_can_be_known(older: OpenLake) -> None:
    known, unknown = consistency.labels(older, ConsistencyReport(), False)
    assert (known.severity, unknown.severity) == ("wrong", "note")
    assert known.what.startswith("1 images have an empty label from /data/1 (job 000000000001), of which 7 parts")
    assert unknown.what.startswith(
        f"1 images have an empty label imported by an earlier release, the first is {UNKNOWN}"
    )


def test_they_are_taken_back_and_given_again(older: OpenLake, capsys: pytest.CaptureFixture[str]) -> None:
    before = says_nothing_here(older)
    assert [one.image_id for one in retraction.retract(older, dry_run=True).labels] == [REFUSED]
    assert says_nothing_here(older) == before
    assert retraction.retract(older).written == 1
    assert says_nothing_here(older) == before - {REFUSED}
    assert retraction.retract(older, all=True).written == 1
    assert says_nothing_here(older) == before - {REFUSED, UNKNOWN}
    assert [*consistency.labels(older, ConsistencyReport(), False)] == []
    assert main.main(["labels", "retract", "--undo", "--lake", older.uri]) == 0
    assert capsys.readouterr().out.startswith("2 empty labels given again\nfrozen slices keep the labels")
    assert says_nothing_here(older) == before
    assert retraction.undo(older).written == 0
    (entry,) = older.scan("audit", ["detail"], "action = 'labels retract'")["detail"].to_pylist()
    assert json.loads(entry) == {"labels": 2, "undo": True}
