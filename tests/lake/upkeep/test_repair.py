"""A repair sets aside only what cannot be read: the commits after the damage stay, and nothing healthy is removed."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import lake
from embeddings.backfill.vector_columns import store_vectors
from lake import slices
from lake.backups import backup, refill
from lake.errors import CouldNot
from lake.open_lake import OpenLake
from lake.slices import export
from lake.storage import blobs, schema, store
from lake.storage.lance_files import checksums, table_files
from lake.upkeep import at_start, doctor, erasure, maintenance, repair, set_aside
from tests.conftest import MakeLake
from tests.lake import prediction_rows, stock


@pytest.fixture
def labelled(make_lake: MakeLake) -> OpenLake:
    """Twenty images, labelled in two commits of ten; three days old."""
    lk = make_lake(embedders=["x"])
    stock.bind(lk)
    stock.add(lk, range(20))
    for start in (0, 10):
        names = [stock.image_id(n) for n in range(start, start + 10)]
        prediction_rows.label(lk, *((name, f"class {start}", store.now()) for name in names))
    for name in ("labels", "samples"):  # an index knows the rows of each file
        lk.index(name)
    grow_old(lk)
    return lk


def grow_old(lk: OpenLake) -> None:
    for path in Path(lk.uri).rglob("*"):
        os.utime(path, (time.time() - 3 * 86_400,) * 2)


def data_files(lk: OpenLake, name: str) -> list[Path]:
    """The data files of the table's rows, the oldest rows first."""
    fragments = lk.dataset(name).get_fragments()
    return [Path(lk.table_uri(name)) / "data" / fragment.metadata.files[0].path for fragment in fragments]


def test_one_lost_file_costs_its_own_rows_and_no_later_commit(labelled: OpenLake) -> None:
    data_files(labelled, "labels")[0].unlink()
    finding = doctor.examine(labelled.uri).findings[0]
    assert "labels: data file data/" in finding.what
    assert "this concerns 10 rows" in finding.what
    assert set(finding.ids) == {stock.image_id(n) for n in range(10)}
    with pytest.raises(CouldNot, match="lakeloop doctor --repair"):
        at_start.mend(labelled.uri)  # as a service does: it changes nothing
    report = doctor.examine(labelled.uri, repair=True)
    assert "set aside 1 damaged file; 10 rows were in them" in report.mended[0]
    assert not report.sound
    kept = OpenLake(labelled.uri).scan("labels", ["image_id"])["image_id"].to_pylist()
    assert set(kept) == {stock.image_id(n) for n in range(10, 20)}
    ((_, aside),) = set_aside.lists(Path(labelled.uri))
    assert set(aside.ids["image_id"]) == {stock.image_id(n) for n in range(10)}


def test_maintenance_keeps_what_a_repair_kept_and_what_it_set_aside(labelled: OpenLake) -> None:
    first = data_files(labelled, "labels")[0]
    first.write_bytes(first.read_bytes()[:-1])
    doctor.examine(labelled.uri, repair=True)
    grow_old(labelled)
    maintenance.maintain(OpenLake(labelled.uri), older_than=dt.timedelta(0))
    assert OpenLake(labelled.uri).dataset("labels").count_rows() == 10
    aside = Path(labelled.uri) / "quarantine/labels/data" / first.name
    assert aside.exists()


def test_a_lost_newest_manifest_costs_no_row(labelled: OpenLake) -> None:
    """The rows of its commit are in a data file that no manifest names."""
    (version, of_index), (_, of_rows) = table_files.manifests(Path(labelled.table_uri("labels")))[:2]
    of_index.unlink()
    of_rows.unlink()
    report = doctor.examine(labelled.uri)
    assert f"labels: the manifest of version {version} is missing" in report.findings[0].what
    with pytest.raises(CouldNot, match=f"had version {version}.*doctor --repair"):
        lake.open(labelled.uri)  # writing on would make its rows look like leftovers
    maintenance.maintain(OpenLake(labelled.uri), older_than=dt.timedelta(0))  # of a process that was open before
    report = doctor.examine(labelled.uri, repair=True)
    assert any("took 10 rows from their data files" in sentence for sentence in report.mended), report.mended
    assert report.sound
    assert OpenLake(labelled.uri).dataset("labels").count_rows() == 20


def test_a_lost_manifest_comes_back_from_its_copy(labelled: OpenLake) -> None:
    checksums.record(labelled)
    for _, manifest in table_files.manifests(Path(labelled.table_uri("labels"))):
        manifest.unlink()
    assert not doctor.examine(labelled.uri).sound
    report = doctor.examine(labelled.uri, repair=True)
    assert any("put back the manifest" in sentence for sentence in report.mended)
    assert report.sound
    assert OpenLake(labelled.uri).dataset("labels").count_rows() == 20


def test_commits_after_the_recorded_one_come_back_with_their_deletions(labelled: OpenLake) -> None:
    checksums.record(labelled)
    names = [stock.image_id(n) for n in range(20)]
    for start in (0, 5):  # in two files, of which each loses a row
        prediction_rows.label(labelled, *((name, f"later {start}", store.now()) for name in names[start : start + 5]))
        labelled.delete("labels", f"image_id = '{names[start + 1]}' and label like 'later%'")
    labelled.delete("labels", f"image_id = '{names[15]}'")
    expected = sorted(labelled.scan("labels", ["event_id"])["event_id"].to_pylist())
    for _, manifest in table_files.manifests(Path(labelled.table_uri("labels"))):
        manifest.unlink()
    report = doctor.examine(labelled.uri, repair=True)
    kept = sorted(OpenLake(labelled.uri).scan("labels", ["event_id"])["event_id"].to_pylist())
    assert set(expected) <= set(kept), report.mended
    assert len(kept) <= len(expected) + 2  # what a lost commit deleted from a file of another may be back
    assert names[15] not in OpenLake(labelled.uri).scan("labels", ["image_id"])["image_id"].to_pylist()


def test_a_torn_manifest_moved_aside_hides_no_rows_once_the_doctor_looks(labelled: OpenLake) -> None:
    for _, manifest in table_files.manifests(Path(labelled.table_uri("labels")))[:2]:
        manifest.write_bytes(b"")
    lk = lake.open(labelled.uri)
    assert (len(lk.notices), lk.dataset("labels").count_rows()) == (2, 10)
    stock.add(lk, [40])  # other commits go on
    report = doctor.examine(lk.uri, repair=True)
    assert any("took 10 rows from their data files" in sentence for sentence in report.mended)
    assert OpenLake(lk.uri).dataset("labels").count_rows() == 20
    assert doctor.examine(lk.uri, repair=True).mended == []


def test_a_flipped_bit_is_found_where_a_hash_is_recorded(labelled: OpenLake) -> None:
    checksums.record(labelled)
    path = data_files(labelled, "samples")[0]
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert not any(finding.check == "files" for finding in doctor.examine(labelled.uri).findings)  # it reads sizes only
    deep = next(f for f in doctor.examine(labelled.uri, deep=True).findings if f.check == "files")
    assert "its bytes have changed" in deep.what
    assert len(deep.ids) == 20


def test_of_a_damaged_file_of_images_those_that_match_their_ids_stay(labelled: OpenLake) -> None:
    checksums.record(labelled)
    path = data_files(labelled, "images")[0]
    data = path.read_bytes()
    at = data.index(stock.data(5)[100:200])
    path.write_bytes(data[:at] + b"\0" * 100 + data[at + 100 :])
    doctor.examine(labelled.uri, repair=True)
    kept = set(OpenLake(labelled.uri).scan("images", ["image_id"])["image_id"].to_pylist())
    assert kept == {stock.image_id(n) for n in range(20) if n != 5}


def test_lost_vectors_are_missing_vectors_and_nothing_else(labelled: OpenLake) -> None:
    stock.embed(labelled, range(20))
    files = labelled.dataset("samples").get_fragments()[0].metadata.files
    (Path(labelled.table_uri("samples")) / "data" / files[-1].path).unlink()
    report = doctor.examine(labelled.uri, repair=True)
    assert "emb_x of 20 rows are empty now" in report.mended[0]
    lk = OpenLake(labelled.uri)
    assert (lk.dataset("samples").count_rows(), lk.dataset("samples").count_rows("emb_x is not null")) == (20, 0)
    stock.embed(lk, range(20))
    assert lk.dataset("samples").count_rows("emb_x is not null") == 20


def test_rows_of_slices_that_were_lost_keep_their_members(labelled: OpenLake) -> None:
    slices.create(labelled, "odd", ids=[stock.image_id(n) for n in range(3)])
    data_files(labelled, "slices")[0].unlink()
    doctor.examine(labelled.uri, repair=True)
    assert OpenLake(labelled.uri).dataset("slice_members").count_rows() == 3


# Filling the hole, and what refers to lost rows -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "archive.tar"])
def test_a_backup_fills_the_hole_and_nothing_else(labelled: OpenLake, tmp_path: Path, form: str) -> None:
    for name in ("images", "thumbnails"):
        labelled.index(name)
    backup.backup(labelled, tmp_path / form)
    stock.add(labelled, [30])
    labelled.delete("labels", f"image_id = '{stock.image_id(15)}'")  # since the backup: it must not come back
    columns = {"images": "image_id", "labels": "image_id", "samples": "prediction_id"}
    before = {n: labelled.scan(n, [*{c, "image_id"}]).to_pylist() for n, c in columns.items()}
    for name in ("labels", "images", "samples"):
        data_files(labelled, name)[0].unlink()
    doctor.examine(labelled.uri, repair=True)
    erasure.forget(OpenLake(labelled.uri), [stock.image_id(3)], alone=True)
    sentences = refill.refill(OpenLake(labelled.uri), tmp_path / form)
    assert [sentence.partition(";")[0] for sentence in sentences] == [
        "images: filled 19 of 20 lost rows",
        "labels: filled 9 of 10 lost rows",
        "samples: filled 19 of 20 lost rows",
    ]
    lk = OpenLake(labelled.uri)
    for name, column in columns.items():
        assert set(lk.scan(name, [column])[column].to_pylist()) == {
            row[column] for row in before[name] if row["image_id"] != stock.image_id(3)
        }
    assert {i.image_id for i in blobs.images(lk, [stock.image_id(n) for n in range(20)])} == {
        stock.image_id(n) for n in range(20) if n != 3
    }
    again = refill.refill(lk, tmp_path / form)
    assert all("filled 0 of" in sentence for sentence in again)


def test_a_damaged_lake_is_not_backed_up_as_if_it_were_whole(labelled: OpenLake, tmp_path: Path) -> None:
    data_files(labelled, "labels")[0].unlink()
    with pytest.raises(CouldNot, match=r"table 'labels' .* is damaged: .*lakeloop doctor --repair"):
        backup.backup(labelled, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_frozen_slices_whose_labels_are_gone_are_named_and_not_exported(labelled: OpenLake, tmp_path: Path) -> None:
    odd = slices.create(labelled, "odd", ids=[stock.image_id(n) for n in range(12)])
    data_files(labelled, "labels")[0].unlink()
    doctor.examine(labelled.uri, repair=True)
    lk = OpenLake(labelled.uri)
    finding = next(f for f in doctor.examine(lk.uri).findings if f.check == "slices")
    assert "labels of 10 images of 1 frozen slices are gone" in finding.what
    assert set(finding.ids) == {stock.image_id(n) for n in range(10)}
    with pytest.raises(CouldNot, match="10 of the labels that the slice was made with are gone"):
        export.export(lk, odd, tmp_path / "out", "coco")


def test_vectors_that_are_none_are_found_and_removed(labelled: OpenLake) -> None:
    stock.embed(labelled, range(20))
    bad = {2: np.full(stock.DIM, np.nan, np.float32), 4: np.zeros(stock.DIM, np.float32)}
    vectors_of = {stock.image_id(n): bad.get(n, stock.vector(n)) for n in range(20)}
    labelled.dataset("samples").update({"emb_x": "NULL"})
    store_vectors(labelled, stock.COLUMN, vectors_of)
    finding = next(f for f in doctor.examine(labelled.uri).findings if f.check == "vectors")
    assert set(finding.ids) == {stock.image_id(2), stock.image_id(4)}
    doctor.examine(labelled.uri, repair=True)
    assert OpenLake(labelled.uri).dataset("samples").count_rows("emb_x is not null") == 18


def test_the_files_of_runs_are_looked_at(labelled: OpenLake) -> None:
    folder = Path(labelled.uri) / "runs/12345678"
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    artifact = {"path": "runs/12345678/model.safetensors", "bytes": 7, "sha256": checksums.sha256(weights)}
    row: dict[str, Any] = {
        "id": "12345678",
        "model": "m",
        "task": "classification",
        "kind": "probe",
        "status": "done",
        "recipe": "{}",
    }
    row |= {"artifacts": json.dumps({"model": artifact}), "seed": 0, "started_at": store.now()}
    labelled.insert("runs", pa.Table.from_pylist([row], schema=schema.RUNS.arrow()))
    assert [f for f in doctor.examine(labelled.uri, deep=True).findings if f.check == "runs"] == []
    weights.write_bytes(b"Weights")
    assert [f.ids for f in doctor.examine(labelled.uri, deep=True).findings if f.check == "runs"] == [("12345678",)]
    weights.unlink()
    assert [f.ids for f in doctor.examine(labelled.uri).findings if f.check == "runs"] == [("12345678",)]


def test_forgetting_an_image_removes_damaged_files_that_may_hold_it(labelled: OpenLake) -> None:
    first = data_files(labelled, "images")[0]
    first.write_bytes(first.read_bytes()[:-1])
    doctor.examine(labelled.uri, repair=True)
    lk = OpenLake(labelled.uri)
    erasure.forget(lk, [stock.image_id(3)], alone=True)
    held = [p for p in Path(lk.uri).rglob("*") if p.is_file() and stock.data(3)[500:564] in p.read_bytes()]
    assert held == []
    assert len(list(set_aside.lists(Path(lk.uri)))) == 1  # the list stays


def test_a_lake_that_nothing_ails_is_not_touched(labelled: OpenLake) -> None:
    before = shutil.copytree(labelled.uri, labelled.uri + ".before")
    assert repair.repair(labelled) == []
    names = [p.relative_to(before) for p in Path(before).rglob("*") if p.is_file()]
    assert all((Path(labelled.uri) / name).read_bytes() == (Path(before) / name).read_bytes() for name in names)
