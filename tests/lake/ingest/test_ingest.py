"""Whatever lies on disk comes in once, in its place, or is named with a reason."""

import datetime as dt
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lake import ids
from lake.ingest import ingest
from lake.ingest.report import IngestReport
from lake.open_lake import OpenLake
from lake.storage import image_rows as decoding
from lake.storage import schema
from tests import pictures
from tests.conftest import MakeLake
from tests.lake import worker_functions
from tests.pictures import encoded

# Columns that say when, not what.
MOMENTS = {"ingested_at"}


def run(lk: OpenLake, path: Path, layout: Any = "auto") -> IngestReport:
    return ingest.ingest(lk, path, layout, workers=1)


def counts(report: IngestReport) -> tuple[int, int, int, int, int, int]:
    r = report
    return (r.images_new, r.images_known, r.predictions_new, r.predictions_known, r.labels_new, len(r.rejected))


def content(lk: OpenLake) -> dict[str, list[str]]:
    """Everything the lake holds but moments, in an order of its own."""
    rows_by_table = {}
    for name in ("images", "thumbnails", "samples", "labels"):
        columns = [f.name for f in lk.dataset(name).schema if f.name not in {"data", "timestamp", *MOMENTS} or
                   (f.name == "timestamp" and name == "samples")]  # fmt: skip
        rows_by_table[name] = sorted(map(repr, lk.scan(name, columns).to_pylist()))
    return rows_by_table


def log(root: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = root / name
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_a_folder_gives_one_findable_row_an_image(lk: OpenLake, tmp_path: Path) -> None:
    paths = pictures.folder(tmp_path / "in", 3)
    assert counts(run(lk, tmp_path / "in")) == (3, 0, 3, 0, 0, 0)
    rows = lk.sql("SELECT * FROM samples ORDER BY source").to_pylist()
    for row, path in zip(rows, paths, strict=True):
        image = ids.image_id(path.read_bytes())
        assert (row["image_id"], row["source"]) == (image, str(path))
        assert row["prediction_id"] == ids.bare_prediction_id(image)
        assert (row["model"], row["label"], row["confidence"], row["metadata"]) == (None,) * 4
        assert row["ingested_at"].tzinfo is not None
        assert lk.thumbnail(image)


def test_an_imagefolder_gives_labels_and_no_predictions(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path / "in" / "cat", 2, seed=1)
    pictures.folder(tmp_path / "in" / "dog", 1, seed=2)
    assert counts(run(lk, tmp_path / "in")) == (3, 0, 3, 0, 3, 0)
    rows = lk.sql(
        "SELECT label, task, origin, count(*) AS n FROM labels_current GROUP BY ALL ORDER BY label"
    ).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("cat", "classification", "import", 2), ("dog", "classification", "import", 1),
    ]  # fmt: skip
    assert lk.sql("SELECT count(*) AS n FROM predictions")["n"].to_pylist() == [0]


def test_ingesting_again_adds_nothing(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path / "in" / "cat", 2, seed=1)
    pictures.folder(tmp_path / "in" / "dog", 1, seed=2)
    run(lk, tmp_path / "in")
    before = content(lk)
    assert counts(run(lk, tmp_path / "in")) == (0, 3, 0, 3, 0, 0)
    assert content(lk) == before


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_log_gives_the_same_rows_in_every_format(make_lake: MakeLake, tmp_path: Path, suffix: str) -> None:
    pictures.folder(tmp_path, 2)
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 1] = 255
    (tmp_path / "m.png").write_bytes(encoded(Image.fromarray(mask)))
    scores, boxes = {"cat": 0.75, "dog": 0.25}, [{"label": "ear", "score": 0.5, "bbox": [1, 2, 3, 4]}]
    first = {
        "image": "000.png", "timestamp": "2024-05-06T12:00:00Z", "model": "m", "model_version": "1", "label": "cat",
        "confidence": 0.75, "scores": scores, "boxes": boxes, "latency_ms": 12.5, "source": "line 1", "line": "A",
        "shift": 2, "heat": 0.5, "night": True, "shot_at": "2024-05-06T11:00:00Z", "operator": "eve", "mask": None,
    }  # fmt: skip
    second = dict.fromkeys(first) | {"image": "001.png", "model": "m", "label": "dog", "mask": "m.png"}
    path = tmp_path / f"log.{suffix}"
    if suffix in ("csv", "tsv"):
        gap = "," if suffix == "csv" else "\t"
        payload = [
            ["" if v is None else json.dumps(v) if isinstance(v, dict | list) else str(v) for v in row.values()]
            for row in (first, second)
        ]
        quoted = [gap.join('"' + v.replace('"', '""') + '"' for v in row) for row in [list(first), *payload]]
        path.write_text("\n".join(quoted))
    else:
        log(tmp_path, path.name, first, second)
    lk = make_lake(columns={"line": "string", "shift": "int", "heat": "float", "night": "bool", "shot_at": "timestamp"})
    report = run(lk, path)
    assert report.rejected == []
    assert counts(report) == (2, 0, 2, 0, 0, 0)
    cat, dog = lk.sql(
        "SELECT * EXCLUDE (ingested_at, prediction_id, image_id, image_status, image_share)"
        " FROM predictions ORDER BY label"
    ).to_pylist()
    noon = dt.datetime(2024, 5, 6, 12, tzinfo=dt.UTC)
    assert cat == {
        "timestamp": noon, "model": "m", "model_version": "1", "task": "detection", "label": "cat", "confidence": 0.75,
        "scores": [{"label": "cat", "score": 0.75}, {"label": "dog", "score": 0.25}],
        "boxes": [{"label": "ear", "score": 0.5, "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}], "masks": None,
        "source": "line 1", "latency_ms": 12.5, "metadata": '{"operator": "eve"}', "line": "A", "shift": 2, "heat": 0.5,
        "night": True, "shot_at": noon - dt.timedelta(hours=1),
    }  # fmt: skip
    assert dog["masks"] == [{"label": "dog", "score": None, "height": 16, "width": 24, "counts": "`0`0P;"}]
    assert (dog["task"], dog["source"], dog["metadata"], dog["night"]) == (
        "segmentation",
        "001.png",
        None,
        None,
    )


def test_paths_are_relative_to_the_log_or_absolute(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path / "a" / "deep", 2)
    absolute = str(tmp_path / "a" / "deep" / "001.png")
    path = log(
        tmp_path / "a", "log.jsonl", {"image": "deep/000.png"}, {"image": absolute}, {"image": "https://x/y.png"}
    )
    report = run(lk, path)
    assert counts(report) == (2, 0, 2, 0, 0, 1)
    assert report.rejected[0]["source"] == f"{path}:3"
    assert "lakeloop fetches nothing" in report.rejected[0]["reason"]


def test_known_images_are_named_by_their_id(lk: OpenLake, tmp_path: Path) -> None:
    image = ids.image_id(pictures.folder(tmp_path / "in", 1)[0].read_bytes())
    run(lk, tmp_path / "in")
    unknown = "0" * 64
    path = log(
        tmp_path, "log.jsonl",
        {"image_id": image, "label": "cat"}, {"image_id": image.upper(), "label": "dog", "model": "b"},
        {"image_id": unknown, "label": "cat"}, {"image_id": "7", "label": "cat"},
    )  # fmt: skip
    report = run(lk, path)
    assert counts(report) == (0, 0, 2, 0, 0, 2)
    assert [r["reason"] for r in report.rejected] == [
        f"the lake has no image {unknown}", "image_id is '7', not 64 hex digits",
    ]  # fmt: skip


def test_an_image_with_three_predictions_is_one_image(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path, 1)
    shutil.copy(tmp_path / "000.png", tmp_path / "copy.png")
    path = log(
        tmp_path,
        "log.jsonl",
        *({"image": n, "model": m, "label": "x"} for n, m in [("000.png", "a"), ("000.png", "b"), ("copy.png", "c")]),
    )
    assert counts(run(lk, path)) == (1, 2, 3, 0, 0, 0)
    assert [lk.dataset(n).count_rows() for n in ("images", "thumbnails", "samples")] == [1, 1, 3]
    assert counts(run(lk, path)) == (0, 3, 0, 3, 0, 0)


def test_a_callers_uuid_is_the_predictions_id(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path, 1)
    own = "7099C41C-4EDA-5A1B-B05E-EADDB9B56CBB"
    run(lk, log(tmp_path, "log.jsonl", {"image": "000.png", "label": "a", "prediction_id": own}))
    assert lk.sql("SELECT prediction_id FROM predictions")["prediction_id"].to_pylist() == [own.lower()]


def test_another_prediction_under_a_known_id_is_rejected_with_a_message(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path, 1)
    payload = {"image": "000.png", "model": "m", "confidence": 0.5}
    path = log(
        tmp_path, "log.jsonl", payload | {"label": "cat"}, payload | {"label": "dog"}, payload | {"label": "cat"}
    )
    report = run(lk, path)
    assert counts(report) == (1, 2, 1, 1, 0, 1)
    assert report.rejected[0]["source"] == f"{path}:2"
    assert "another prediction is stored under the id" in report.rejected[0]["reason"]
    assert counts(run(lk, path)) == (0, 3, 0, 2, 0, 1)


def test_bad_rows_change_nothing_for_the_others(make_lake: MakeLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path, 6)
    (tmp_path / "broken.png").write_bytes((tmp_path / "000.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("not an image")
    os.mkfifo(tmp_path / "pipe.png")
    good = [{"image": f"{i:03}.png", "label": f"l{i}", "confidence": i / 10, "n": i} for i in range(6)]
    bad: list[dict[str, Any]] = [
        {"image": "gone.png"}, {"image": "broken.png"}, {"label": "x"}, {"image": "text.png"}, {"image": "pipe.png"},
        {"image": "000.png", "confidence": 7}, {"image": "a\0b.png"}, {"image": "/dev/zero"},
        {"image": "000.png", "n": 1e30},
    ]  # fmt: skip
    mixed: list[dict[str, Any]] = [row for pair in zip(good, bad, strict=False) for row in pair] + bad[6:]
    clean, dirty = make_lake("clean", columns={"n": "int"}), make_lake("dirty", columns={"n": "int"})
    assert run(clean, log(tmp_path, "clean.jsonl", *good)).rejected == []
    path = log(tmp_path, "dirty.jsonl", *mixed)
    report = run(dirty, path)
    assert content(dirty) == content(clean)
    assert [r["source"] for r in report.rejected] == [f"{path}:{n}" for n in (2, 4, 6, 8, 10, 12, 13, 14, 15)]
    reasons = [r["reason"] for r in report.rejected]
    for reason, expected in zip(
        reasons,
        [
            "No such file",
            "",
            "no image",
            "not an image",
            "not a regular file",
            "between 0 and 1",
            "not a path",
            "regular",
            "64 bits",
        ],
        strict=True,
    ):
        assert expected in reason


def test_broken_files_are_named_beside_good_ones(make_lake: MakeLake, tmp_path: Path) -> None:
    paths = pictures.folder(tmp_path / "in", 5)
    clean, dirty = make_lake("clean"), make_lake("dirty")
    run(clean, tmp_path / "in")
    (tmp_path / "in" / "000-empty.jpg").touch()
    (tmp_path / "in" / "001-cut.jpg").write_bytes(encoded(pictures.scene(1), "JPEG")[:900])
    (tmp_path / "in" / "002-drawing.svg").write_text("<svg/>")
    shutil.copy(tmp_path / "in" / "001-cut.jpg", tmp_path / "in" / "zz-same-cut.jpg")
    report = run(dirty, tmp_path / "in")
    assert content(dirty) == content(clean)
    assert report.images_new == len(paths)
    # Files come in order but are decoded in parallel: the report is in the order of their names, too.
    named = [Path(r["source"]).name for r in report.rejected]
    assert named == ["000-empty.jpg", "001-cut.jpg", "002-drawing.svg", "zz-same-cut.jpg"]
    assert [bool(r["reason"]) for r in report.rejected] == [True] * 4
    assert run(dirty, tmp_path / "in").images_new == 0


def test_too_large_an_image_is_refused_by_the_callers_limit(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path, 1)
    report = ingest.ingest(lk, tmp_path, workers=1, max_megapixels=0.0001)
    assert "over 0.0001 megapixels" in report.rejected[0]["reason"]


def test_a_file_that_kills_its_worker_is_found_and_named(make_lake: MakeLake, tmp_path: Path, monkeypatch) -> None:
    pictures.folder(tmp_path / "in", 8)
    clean, dirty = make_lake("clean"), make_lake("dirty")
    run(clean, tmp_path / "in")
    (tmp_path / "in" / "003b.png").write_bytes(encoded(pictures.noise(99)) + worker_functions.DEADLY)
    monkeypatch.setattr(decoding, "DECODER", "tests.lake.worker_functions:decode_or_die")
    report = ingest.ingest(dirty, tmp_path / "in", workers=2)
    assert [(Path(r["source"]).name, "signal 11" in r["reason"]) for r in report.rejected] == [("003b.png", True)]
    assert content(dirty) == content(clean)


def test_files_whose_names_are_not_utf8_are_ingested(lk: OpenLake, tmp_path: Path) -> None:
    folder = tmp_path / b"in-\xff".decode("utf-8", "surrogateescape")
    pictures.folder(folder, 1)
    assert run(lk, tmp_path).images_new == 1
    assert lk.sql("SELECT source FROM images")["source"].to_pylist() == [f"{tmp_path}/in-�/000.png"]


def test_a_commit_a_few_rows_gives_the_same_lake(make_lake: MakeLake, tmp_path: Path, monkeypatch) -> None:
    """Steps, groups and tasks of any size make no difference."""
    paths = pictures.folder(tmp_path / "in", 9)
    paths[5].write_bytes(b"broken")
    shutil.copy(paths[2], paths[7])
    whole, pieces = make_lake("whole"), make_lake("pieces")
    expected = counts(run(whole, tmp_path / "in"))
    for name, value in {"COMMIT_ROWS": 2, "GROUP_ITEMS": 3, "TASK_ITEMS": 2, "INDEX_ROWS": 4}.items():
        monkeypatch.setattr(ingest, name, value)
    assert counts(run(pieces, tmp_path / "in")) == expected == (7, 1, 7, 1, 0, 1)
    assert content(pieces) == content(whole)


def test_progress_counts_every_item(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path, 4)[1].write_bytes(b"broken")
    seen: list[int] = []
    ingest.ingest(lk, tmp_path, workers=1, progress=seen.append)
    assert sum(seen) == 4


def test_a_report_is_plain_data(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path, 1)
    report = json.loads(json.dumps(run(lk, tmp_path).as_dict()))
    assert list(report) == [
        "images_new", "images_known", "predictions_new", "predictions_known", "labels_new", "labels_known", "rejected",
        "converted", "incomplete", "passed_over", "notes", "seconds",
    ]  # fmt: skip


def test_the_tables_keep_their_schema(make_lake: MakeLake, tmp_path: Path) -> None:
    lk = make_lake(columns={"n": "int"})
    pictures.folder(tmp_path, 1)
    run(lk, tmp_path)
    for name, table in schema.TABLES.items():
        extra = ["n"] if name == "samples" else []
        assert lk.dataset(name).schema.names == [c.name for c in table.columns] + extra
