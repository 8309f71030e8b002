"""Data sets from a folder to rows of the lake: statements, splits, and what the report says of the rest."""

from __future__ import annotations

from pathlib import Path

from lake.ingest import ingest
from lake.open_lake import OpenLake
from tests import pictures
from tests.lake.formats import sets


def test_roboflows_layout_and_refused_lines_of_yolo(lk: OpenLake, tmp_path: Path) -> None:
    """Both splits of the first count with their own ids; of the second nothing is said, and its lines are named."""
    for number, (split, name) in enumerate((("train", "cat"), ("valid", "dog"))):
        document = sets.coco({"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]})
        document |= {"images": [{"id": 0, "file_name": f"{number}.png"}], "categories": [{"id": 1, "name": name}]}
        picture = pictures.encoded(pictures.noise(number, 40, 30), "PNG")
        sets.put(tmp_path / "coco" / split, {f"{number}.png": picture, "_annotations.coco.json": document})
    sets.put(tmp_path / "coco", {"README.roboflow.txt": "hello", "train/extra.png": None})
    report = ingest.ingest(lk, tmp_path / "coco", workers=1)
    query = "SELECT s.metadata->>'split' AS split, l.boxes[1].label AS label, l.source FROM labels_current l JOIN samples s USING (image_id) ORDER BY 1"  # fmt: skip  # noqa: E501
    assert [(r["split"], r["label"]) for r in lk.sql(query).to_pylist()] == [("train", "cat"), ("valid", "dog")]
    assert dict(report.passed_over) == {"an image that no document names": 1, "not an image (.txt)": 1}
    again = ingest.ingest(lk, tmp_path / "coco", workers=1)
    assert (again.labels_new, again.labels_known) == (0, 2)

    lines = "imagesource:x\ngsd:1\n10 10 50 10 50 50 10 50 cat 0\n"
    sets.put(tmp_path / "yolo", {"data.yaml": "names: [cat]", "images/a.png": None, "labels/a.txt": lines})
    report = ingest.ingest(lk, tmp_path / "yolo", workers=1)
    assert (report.images_new, report.labels_new, dict(report.incomplete)) == (1, 0, {"detection": 1})
    assert [r["source"].rpartition("/")[2] for r in report.rejected] == ["a.txt:1", "a.txt:2", "a.txt:3"]
