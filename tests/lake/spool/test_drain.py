"""The drain: from the spool to the lake, exactly once, whatever the images are like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from lake import ids
from lake.analytics import summary
from lake.errors import CouldNot
from lake.open_lake import OpenLake
from lake.spool import events
from lake.spool.drain import Drainer, Sampling, drain
from lake.spool.spool import Spool
from lake.storage import schema
from lake.storage.store import now
from tests.lake.live_events import name, picture, prediction, upload, verdict
from tests.pictures import encoded

BROKEN = picture(99)[: len(picture(99)) // 2]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()


def rows(lk: OpenLake, query: str) -> list[dict[str, Any]]:
    return lk.sql(query).to_pylist()


def test_everything_that_waits_comes_into_the_lake(lk: OpenLake, spool: Spool) -> None:
    logged = prediction(1, confidence=0.75, timestamp="2026-11-22T10:00:00Z", source="cam/1.png", camera=7)
    spool.put([logged, prediction(2), upload(picture(3)), verdict(logged, comment="a dog")])
    report = drain(lk, spool)
    assert report is not None
    assert (report.events, report.images, report.predictions, report.reviews) == (4, 3, 3, 1)
    assert spool.depth().events == 0
    [row] = rows(lk, f"SELECT * FROM predictions WHERE prediction_id = '{name(1)}'")
    assert (row["label"], row["confidence"], row["metadata"], row["source"]) == (
        "cat",
        0.75,
        '{"camera": 7}',
        "cam/1.png",
    )
    assert row["timestamp"].isoformat() == "2026-11-22T10:00:00+00:00"
    stored = lk.image(logged.image_id)
    assert stored is not None
    assert stored.data == picture(1)
    assert lk.thumbnail(logged.image_id) is not None
    [review] = rows(lk, "SELECT * FROM reviews_current")
    assert (review["verdict"], review["comment"], review["origin"]) == ("incorrect", "a dog", "customer")
    assert (review["prediction_id"], review["image_id"]) == (name(1), logged.image_id)
    assert rows(lk, "SELECT count(*) AS n FROM labels") == [{"n": 0}]  # a verdict is no label


def test_a_prediction_without_a_time_gets_that_of_its_arrival(lk: OpenLake, spool: Spool) -> None:
    before = now()
    spool.put([prediction(1)])
    drain(lk, spool)
    [row] = rows(lk, "SELECT timestamp FROM predictions")
    assert before <= row["timestamp"] <= now()


def test_every_event_leaves_an_entry_in_the_audit_log(lk: OpenLake, spool: Spool) -> None:
    with_key = prediction(1)
    with_key.key_id = "k1"
    spool.put([with_key, upload(picture(2))])
    drain(lk, spool)
    entries = rows(lk, "SELECT action, target, key_id FROM audit ORDER BY action DESC")
    assert entries == [
        {"action": "prediction", "target": name(1), "key_id": "k1"},
        {"action": "image", "target": ids.image_id(picture(2)), "key_id": None},
    ]


def test_a_drain_that_is_killed_before_it_forgets_is_repeated_without_a_trace(lk: OpenLake, spool: Spool) -> None:
    logged = prediction(1)
    spool.put([logged, prediction(2), prediction(3, data=BROKEN), upload(picture(4)), verdict(logged)])
    forget = spool.forget

    def killed(_: object) -> None:
        raise CouldNot("killed")

    spool.forget = killed  # type: ignore[method-assign, assignment]
    with pytest.raises(CouldNot):
        drain(lk, spool)
    spool.forget = forget  # type: ignore[method-assign]
    before = {
        t: rows(lk, f"SELECT * EXCLUDE (ingested_at) FROM {t} ORDER BY ALL") for t in ("samples", "reviews", "images")
    }
    report = drain(lk, spool)
    assert report is not None
    assert (report.predictions, report.images, report.reviews, report.contradictions) == (0, 0, 0, 0)
    for table, was in before.items():
        assert rows(lk, f"SELECT * EXCLUDE (ingested_at) FROM {table} ORDER BY ALL") == was
    assert rows(lk, "SELECT count(*) AS n FROM audit") == [{"n": 5}]


def test_an_image_that_does_not_decode_keeps_its_prediction_and_the_reason(lk: OpenLake, spool: Spool) -> None:
    spool.put([prediction(1, data=BROKEN), prediction(2)])
    report = drain(lk, spool)
    assert report is not None
    assert sum(report.unreadable.values()) == 1
    status = {
        r["prediction_id"]: r["image_status"] for r in rows(lk, "SELECT prediction_id, image_status FROM predictions")
    }
    assert status[name(2)] is None
    assert "truncated" in status[name(1)]
    assert lk.thumbnail(ids.image_id(BROKEN)) is None
    stored = lk.image(ids.image_id(BROKEN))
    assert stored is not None
    assert stored.data == BROKEN
    spool.put([prediction(3, image_id=ids.image_id(BROKEN)), prediction(4, data=BROKEN)])  # asked about again
    drain(lk, spool)
    assert rows(lk, "SELECT count(DISTINCT image_status) AS n, count(image_status) AS all FROM predictions") == [
        {"n": 1, "all": 3}
    ]


def test_bytes_damaged_in_the_spool_lose_the_image_not_the_prediction(lk: OpenLake, spool: Spool) -> None:
    spool.put([prediction(1)])
    bytes_at = spool.oldest(1, 1)[0].bytes_at
    assert bytes_at is not None
    (spool.segments / bytes_at.segment).write_bytes(b"\0" * bytes_at.length)
    drain(lk, spool)
    assert rows(lk, "SELECT image_status FROM predictions") == [{"image_status": "its bytes were damaged in the spool"}]
    assert lk.image(prediction(1).image_id) is None


def test_an_uploaded_image_is_findable_until_its_prediction_is(lk: OpenLake, spool: Spool) -> None:
    data = picture(1)
    spool.put([upload(data), upload(picture(2)), prediction(5, image_id=ids.image_id(data))])
    drain(lk, spool)
    bare = rows(lk, "SELECT image_id FROM samples WHERE model IS NULL")
    assert bare == [{"image_id": ids.image_id(picture(2))}]


def test_a_share_of_the_bytes_is_kept_and_always_those_of_unsure_or_reviewed_predictions(
    lk: OpenLake, spool: Spool
) -> None:
    sure = [prediction(i, confidence=0.9) for i in range(40)]
    unsure = [prediction(100 + i, confidence=0.2) for i in range(5)]
    judged = prediction(200, confidence=0.9)
    spool.put([*sure, *unsure, judged, verdict(judged), upload(picture(300))])
    sampling = Sampling(share=0.25, below_confidence=0.5)
    with Drainer(lk, spool, sampling) as drainer:
        drainer.batch()
    stored_ids = {r["image_id"] for r in rows(lk, "SELECT image_id FROM images")}
    assert {e.image_id for e in unsure} | {judged.image_id, ids.image_id(picture(300))} <= stored_ids
    by_share = {e.image_id for e in sure if sampling.selects(e.image_id)}
    assert stored_ids & {e.image_id for e in sure} == by_share
    assert 2 <= len(by_share) <= 20
    assert rows(lk, "SELECT DISTINCT image_share FROM predictions") == [{"image_share": 0.25}]
    left_out = rows(lk, "SELECT count(*) AS n FROM predictions WHERE image_status = 'its bytes were not kept'")
    assert left_out == [{"n": 40 - len(by_share)}]
    assert lk.dataset("thumbnails").count_rows() == 47  # those are kept of all
    [progress] = summary.embedding_progress(lk, [lk.register_embedder("any")])
    assert (progress["without_bytes"], progress["unreadable"]) == (40 - len(by_share), 0)


def test_the_share_is_one_of_images(lk: OpenLake) -> None:
    sampling = Sampling(share=0.3)
    chosen = sum(sampling.selects(ids.image_id(str(i).encode())) for i in range(10_000))
    assert abs(chosen - 3_000) < 200
    assert all(Sampling().selects(ids.image_id(str(i).encode())) for i in range(100))


def test_an_erased_image_is_not_stored_again(lk: OpenLake, spool: Spool) -> None:
    logged = prediction(1)
    gone = {"image_id": logged.image_id, "forgotten_at": now()}
    lk.insert("forgotten", pa.Table.from_pylist([gone], schema=schema.FORGOTTEN.arrow()))
    spool.put([logged, upload(picture(1))])
    drain(lk, spool)
    assert rows(lk, "SELECT image_status FROM samples") == [{"image_status": "it was erased"}]
    assert lk.dataset("images").count_rows() == lk.dataset("thumbnails").count_rows() == 0


def test_an_event_that_cannot_be_written_is_set_aside_and_the_others_go_on(lk: OpenLake, spool: Spool) -> None:
    good = [prediction(i) for i in range(5)]
    bad = prediction(50)
    bad.row = '{"model": "m", "label": "x", "confidence": "not a number"}'  # what no door lets in
    spool.put([*good[:2], bad, *good[2:]])
    report = drain(lk, spool)
    assert report is not None
    assert (report.predictions, report.parked) == (5, 1)
    assert spool.depth().events == 0
    assert spool.depth().parked == 1
    assert spool.parked.list()[0].event_id == name(50)


def test_two_spools_feed_one_lake_and_each_id_comes_in_once(lk: OpenLake, tmp_path: Path) -> None:
    first, second = Spool(tmp_path / "one"), Spool(tmp_path / "two")
    first.put([prediction(1), prediction(2)])
    second.put([prediction(2), prediction(3), prediction(1, label="dog")])
    drain(lk, first)
    report = drain(lk, second)
    assert report is not None
    assert (report.predictions, report.contradictions) == (1, 1)
    assert rows(lk, "SELECT label, count(*) AS n FROM predictions GROUP BY 1") == [{"label": "cat", "n": 3}]
    first.close()
    second.close()


def test_while_another_drains_nothing_is_done(lk: OpenLake, spool: Spool) -> None:
    spool.put([prediction(1)])
    other = Spool(spool.folder)
    with other.drainer() as mine:
        assert mine
        assert drain(lk, spool) is None
    assert drain(lk, spool) is not None
    other.close()


def test_scores_boxes_and_masks_arrive_as_a_log_would_bring_them(lk: OpenLake, spool: Spool) -> None:
    mask = {"label": "cat", "score": 0.5, "size": [4, 4], "counts": [4, 8, 4]}
    spool.put(
        [
            prediction(1, label=None, scores={"cat": 0.75, "dog": 0.25}),
            prediction(2, label=None, boxes=[{"label": "cat", "score": 0.5, "bbox": [1, 2, 3, 4]}]),
            prediction(3, label=None, masks=[mask]),
        ]
    )
    drain(lk, spool)
    predictions = rows(lk, "SELECT task, label, confidence, boxes, masks FROM predictions ORDER BY prediction_id")
    assert [(r["task"], r["label"], r["confidence"]) for r in predictions] == [
        ("classification", "cat", 0.75), ("detection", "cat", 0.5), ("segmentation", "cat", 0.5),
    ]  # fmt: skip
    assert predictions[1]["boxes"][0]["width"] == 3


def test_fields_without_a_column_become_metadata(lk: OpenLake, spool: Spool) -> None:
    """Events of a spool that belonged to a lake with other promoted columns."""
    fields = {"model": "m", "label": "c", "prediction_id": name(1), "camera": 7, "site": "a"}
    event = events.prediction(fields, {"camera": pa.int64()}, ids.image_id(picture(1)), picture(1), None)
    spool.put([event])
    drain(lk, spool)
    assert rows(lk, "SELECT metadata FROM predictions") == [{"metadata": '{"camera": 7, "site": "a"}'}]


def test_an_image_of_12_bits_has_the_white_point_of_its_own_values(lk: OpenLake, spool: Spool) -> None:
    deep = encoded(Image.fromarray(np.linspace(0, 4000, 600).reshape(20, 30).astype(np.uint16)))
    spool.put([upload(deep), upload(picture(1))])
    drain(lk, spool)
    query = "SELECT pixel_type, black, white, white_from FROM images ORDER BY white"
    assert [tuple(row.values()) for row in rows(lk, query)] == [("uint16", 0, 4095, "image"), (None, None, None, None)]
