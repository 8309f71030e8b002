"""The numbers of a lake, counted by hand."""

import datetime as dt
import json
from pathlib import Path

from lake import slices
from lake.analytics import summary
from lake.ingest import ingest
from lake.open_lake import OpenLake
from tests import pictures
from tests.conftest import MakeLake


def filled(make_lake: MakeLake, tmp_path: Path) -> OpenLake:
    """Four images: one answered by a (twice) and by b, three bare; two of them with labels; one slice."""
    lk = make_lake(embedders=["resnet18"], columns={"n": "int"})
    pictures.folder(tmp_path / "in" / "cat", 2, seed=1)
    pictures.folder(tmp_path / "in" / "dog", 1, seed=2)
    pictures.folder(tmp_path / "log", 1, seed=3)
    rows = [
        {"image": "000.png", "model": m, "label": "cat", "timestamp": f"2024-05-0{d}T00:00:00Z"}
        for m, d in [("a", 1), ("a", 3), ("b", 2)]
    ]
    (tmp_path / "log" / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ingest.ingest(lk, tmp_path / "in", workers=1)
    ingest.ingest(lk, tmp_path / "log" / "log.jsonl", workers=1)
    slices.create(lk, "all", where="true")
    return lk


def test_status_counts_everything(make_lake: MakeLake, tmp_path: Path) -> None:
    lk = filled(make_lake, tmp_path)
    status = summary.status(lk)
    assert {k: status[k] for k in ("lake", "images", "samples", "predictions", "labels", "slices", "columns")} == {
        "lake": lk.uri, "images": 4, "samples": 6, "predictions": 3, "labels": 3, "slices": 1,
        "columns": {"n": "int64"},
    }  # fmt: skip
    first, second = status["models"]
    may = [dt.datetime(2024, 5, day, tzinfo=dt.UTC) for day in (1, 2, 3)]
    assert (first["model"], first["predictions"], first["first"], first["last"]) == ("a", 2, may[0], may[2])
    assert (second["model"], second["predictions"], second["first"], second["last"]) == ("b", 1, may[1], may[1])
    assert status["tables"]["slice_members"]["rows"] == 4
    assert status["tables"]["samples"]["version"] == lk.version("samples")


def test_an_image_counts_once_for_an_embedder(make_lake: MakeLake, tmp_path: Path) -> None:
    (status,) = summary.status(filled(make_lake, tmp_path))["embedders"]
    counts = {"embedded": 0, "missing": 4, "failed": 0, "unreadable": 0, "without_bytes": 0}
    assert status == {"name": "resnet18", "dim": None, "column": "emb_resnet18", **counts}


def test_an_empty_lake_has_numbers_too(lk: OpenLake) -> None:
    status = summary.status(lk)
    assert (status["images"], status["predictions"], status["models"], status["embedders"]) == (0, 0, [], [])


def test_predictions_of_models_that_are_not_listed_are_counted(lk: OpenLake) -> None:
    from tests.lake.prediction_rows import add

    add(lk, [{"model": f"m{i}"} for i in range(130)])
    status = summary.status(lk)
    assert (status["predictions"], len(status["models"])) == (130, 100)
