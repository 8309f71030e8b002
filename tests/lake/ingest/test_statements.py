"""Absence is not a statement: what was refused leaves its task incomplete, and says nothing of the rest."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lake import ids
from lake.formats import annotation
from lake.formats.annotation import DETECTION, Annotations, GroundTruth, box
from lake.formats.item import Item
from lake.ingest import ingest
from lake.ingest.report import IngestReport
from lake.labels import label_events
from lake.open_lake import OpenLake
from lake.storage import schema
from tests import pictures

CAT = box("cat", (1, 2, 3, 4))
CROWD = box("cat", (0, 0, 9, 9))


def said(lk: OpenLake, path: Path, annotations: Annotations) -> IngestReport:
    """The report after an ingest of one image with these annotations."""
    item = Item(str(path), path=path, read_annotations=lambda width, height: annotations)
    return ingest.ingest_items(lk, [item], "/data/set.json", workers=1)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return pictures.folder(tmp_path / "in", 1)[0]


def labels(lk: OpenLake) -> list[dict[str, Any]]:
    return lk.sql("SELECT * FROM labels_current ORDER BY task").to_pylist()


def test_what_is_sound_is_kept_and_marked_incomplete(lk: OpenLake, picture: Path) -> None:
    annotations = Annotations(
        [GroundTruth(DETECTION, boxes=[CAT])], rejected=[("set.json: annotation 2", "no box")], incomplete={DETECTION}
    )
    report = said(lk, picture, annotations)
    (row,) = labels(lk)
    assert (row["boxes"], row["incomplete"], row["source"]) == ([CAT], True, "/data/set.json")
    assert (report.labels_new, dict(report.incomplete)) == (1, {DETECTION: 1})
    assert report.rejected == [{"source": "set.json: annotation 2", "reason": "no box"}]


def test_nothing_sound_is_no_statement(lk: OpenLake, picture: Path) -> None:
    report = said(lk, picture, Annotations([GroundTruth(DETECTION, boxes=[])], incomplete={DETECTION}))
    assert (labels(lk), dict(report.incomplete), report.labels_new) == ([], {DETECTION: 1}, 0)


def test_an_annotation_read_whole_and_empty_says_that_nothing_is_there(lk: OpenLake, picture: Path) -> None:
    assert said(lk, picture, Annotations([GroundTruth(DETECTION, boxes=[])])).labels_new == 1
    (row,) = labels(lk)
    assert (row["boxes"], row["incomplete"]) == ([], False)


def test_crowd_regions_are_kept_beside_the_instances(lk: OpenLake, picture: Path) -> None:
    said(lk, picture, Annotations([GroundTruth(DETECTION, boxes=[], crowd_boxes=[CROWD])]))
    (row,) = labels(lk)
    assert (row["boxes"], row["crowd_boxes"], row["incomplete"]) == ([], [CROWD], False)


def test_what_was_converted_or_passed_over_is_counted_by_reason(lk: OpenLake, picture: Path) -> None:
    annotations = Annotations(converted=[("a.txt: line 1", "keypoints are not kept"), ("b", "keypoints are not kept")])
    items = [
        Item(str(picture), path=picture, read_annotations=lambda width, height: annotations),
        Item("notes.txt", passed_over="no image"),
        Item("more.txt", passed_over="no image"),
    ]
    report = ingest.ingest_items(lk, items, workers=1)
    assert (report.images_new, report.rejected) == (1, [])
    assert report.as_dict()["converted"] == {"keypoints are not kept": 2}
    assert report.as_dict()["passed_over"] == {"no image": 2}
    assert report.lines()[1:] == ["converted    2: keypoints are not kept", "passed over  2: no image"]


def saying(label: str) -> Annotations:
    return Annotations([GroundTruth("classification", label)])


def test_the_latest_statement_counts(lk: OpenLake, picture: Path) -> None:
    """Cat, dog, cat ends as cat; every unchanged file adds nothing."""
    for label in ("cat", "dog", "cat"):
        assert said(lk, picture, saying(label)).labels_new == 1
        again = said(lk, picture, saying(label))
        assert (again.labels_new, again.labels_known) == (0, 1)
        assert [row["label"] for row in labels(lk)] == [label]
    assert lk.dataset("labels").count_rows() == 3


def test_an_unchanged_file_never_overrides_a_correction(lk: OpenLake, picture: Path) -> None:
    said(lk, picture, saying("cat"))
    image_id = ids.image_id(picture.read_bytes())
    label_events.write(lk, [{"image_id": image_id, "label": "dog"}])
    item = Item(str(picture), path=picture, read_annotations=lambda width, height: saying("cat"))
    for source in ("/data/set.json", "/moved/set.json"):
        assert ingest.ingest_items(lk, [item], source, workers=1).labels_new == 0
    assert [row["label"] for row in labels(lk)] == ["dog"]
    assert said(lk, picture, saying("bird")).labels_new == 1
    assert [row["label"] for row in labels(lk)] == ["bird"]


def test_an_empty_label_of_an_earlier_release_is_taken_back_by_its_source(lk: OpenLake, picture: Path) -> None:
    """It was stored where every annotation had been refused."""
    refused = Annotations(incomplete={DETECTION})
    empty = GroundTruth(DETECTION, boxes=[])
    said(lk, picture, Annotations([empty]))
    image_id = ids.image_id(picture.read_bytes())
    older = {"event_id": annotation.event_id(image_id, empty), "source": None, "incomplete": None}
    rows = pa.Table.from_pylist([labels(lk)[0] | older], schema=schema.LABELS.arrow())
    lk.delete("labels", "true")
    lk.insert("labels", rows)
    assert said(lk, picture, Annotations([empty])).labels_new == 0
    assert said(lk, picture, refused).labels_new == 1
    (row,) = labels(lk)
    assert (row["boxes"], row["incomplete"]) == ([], True)
    assert said(lk, picture, refused).labels_new == 0


def test_ground_truth_for_a_known_image_adds_no_sample(lk: OpenLake, picture: Path) -> None:
    log = picture.parent / "log.jsonl"
    log.write_text(json.dumps({"image": picture.name, "label": "cat", "model": "m"}))
    ingest.ingest(lk, log, workers=1)
    report = said(lk, picture, saying("cat"))
    assert (report.predictions_new, report.labels_new) == (0, 1)
    assert lk.sql("SELECT model FROM samples")["model"].to_pylist() == ["m"]
    ingest.ingest(lk, picture.parent, "folder", workers=1)
    assert lk.sql("SELECT model FROM samples")["model"].to_pylist() == ["m"]
