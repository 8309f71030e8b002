"""A lake is created whole, opened at its newest version, and never written over something else."""

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import lake
from lake import ids
from lake.access import audit
from lake.errors import BadInput, LakeloopError, NewerLake, NotALake
from lake.ingest import ingest
from lake.open_lake import OpenLake
from lake.storage import migrations, schema, store
from lake.upkeep import maintenance
from tests import pictures
from tests.conftest import MakeLake


def slices_row(name: str) -> pa.Table:
    row = {"id": f"{name}@1", "name": name, "version": 1, "kind": "ids", "predictions_version": 1, "size": 1}
    return pa.Table.from_pylist([row | {"created_at": store.now()}], schema=schema.SLICES.arrow())


def test_a_created_lake_can_be_opened(tmp_path: Path) -> None:
    created = lake.create(str(tmp_path / "new" / "lake"), embedders=["resnet18", "efficientnet-lite0"])
    opened = lake.open(created.uri)
    assert [e.name for e in opened.embedders()] == ["resnet18", "efficientnet-lite0"]
    assert all(
        opened.dataset(name).count_rows() == 0 for name in schema.TABLES if name not in ("migrations", "embedders")
    )


def test_a_new_lake_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = Path(lake.create(str(tmp_path / "lake")).uri)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_trailing_slash_names_the_same_lake(lk: OpenLake) -> None:
    assert lake.open(lk.uri + "/").uri == lk.uri


def test_an_empty_place_is_not_a_lake(tmp_path: Path) -> None:
    with pytest.raises(NotALake, match="lakeloop init"):
        lake.open(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_a_lake_is_created_once(lk: OpenLake) -> None:
    with pytest.raises(BadInput, match="is a lake already"):
        lake.create(lk.uri)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"other files in it \(holiday.jpg"):
        lake.create(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_lake_cannot_be_created_at_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        lake.create(str(tmp_path / "file"))


def test_a_lake_of_a_later_lakeloop_is_refused(lk: OpenLake) -> None:
    row = {"number": 99, "name": "from the future", "applied_at": store.now(), "lakeloop_version": "9.0"}
    lk.insert("migrations", pa.Table.from_pylist([row], schema=schema.MIGRATIONS.arrow()))
    with pytest.raises(NewerLake, match=r"step 99.*upgrade") as caught:
        lake.open(lk.uri)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("fatal", [1, 4, 9, 10, 11, 12, 13])
def test_an_interrupted_create_is_completed_by_the_next(tmp_path: Path, monkeypatch, fatal: int) -> None:
    """Stopped before its n-th step (ten tables, a column, an embedder, the record): no lake until all is there."""
    steps = 0

    def stopping(step):
        def counted(*arguments):
            nonlocal steps
            steps += 1
            if steps == fatal:
                raise KeyboardInterrupt
            return step(*arguments)

        return counted

    uri, options = str(tmp_path / "lake"), dict[str, Any](columns={"line": "int"}, embedders=["resnet18"])
    with monkeypatch.context() as patch:
        patch.setattr(OpenLake, "create_table", stopping(OpenLake.create_table))
        patch.setattr(OpenLake, "add_column", stopping(OpenLake.add_column))
        patch.setattr(OpenLake, "insert", stopping(OpenLake.insert))
        with pytest.raises(KeyboardInterrupt):
            lake.create(uri, **options)
    with pytest.raises(NotALake):
        lake.open(uri)
    created = lake.create(uri, **options)
    assert created.promoted() == {"line": pa.int64()}
    assert [e.name for e in created.embedders()] == ["resnet18"]
    assert migrations.applied(created) == [number for number, _, _ in migrations.STEPS]
    for name, table in schema.TABLES.items():
        assert len(created.dataset(name).describe_indices()) == len(table.indexed)


def test_migrations_are_recorded_once(lk: OpenLake) -> None:
    assert migrations.apply(lk) == []
    lake.open(lk.uri)
    numbers = lk.sql("SELECT number FROM migrations ORDER BY number")["number"].to_pylist()
    assert numbers == [number for number, _, _ in migrations.STEPS] == list(range(1, len(numbers) + 1))


def test_two_handles_see_each_others_commits(lk: OpenLake) -> None:
    other = lake.open(lk.uri)
    before = other.version("slices")
    assert lk.insert("slices", slices_row("a")) == 1
    assert other.sql("SELECT name FROM slices")["name"].to_pylist() == ["a"]
    assert other.version("slices") > before
    assert other.insert("slices", slices_row("b")) == 1
    assert sorted(lk.frame("slices").collect()["name"]) == ["a", "b"]


def test_a_version_does_not_change(lk: OpenLake) -> None:
    lk.insert("slices", slices_row("a"))
    version = lk.version("slices")
    lk.insert("slices", slices_row("b"))
    assert lk.dataset("slices", version).count_rows() == 1
    assert lk.dataset("slices").count_rows() == 2


def test_a_known_key_is_not_inserted_again(lk: OpenLake) -> None:
    assert lk.insert("slices", slices_row("a")) == 1
    assert lk.insert("slices", slices_row("a")) == 0
    assert lk.dataset("slices").count_rows() == 1


def test_a_key_inserted_by_many_at_once_is_stored_once(lk: OpenLake) -> None:
    added: list[int] = []
    handles = [lake.open(lk.uri) for _ in range(4)]
    threads = [threading.Thread(target=lambda h=h: added.append(h.insert("slices", slices_row("a")))) for h in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == 1
    assert lk.dataset("slices").count_rows() == 1


def test_a_write_whose_files_maintenance_removes_meanwhile_is_tried_again(lk: OpenLake) -> None:
    for name in ("tail", "night"):
        lk.insert("slices", slices_row(name))
    attempts = []

    def write() -> None:
        started_from = lk.dataset("slices")
        attempts.append(started_from.version)
        if len(attempts) == 1:
            other = lake.open(lk.uri)
            other.dataset("slices").optimize.compact_files()
            maintenance.remove_versions(other, "slices", dt.timedelta(0))
        started_from.update({"size": "2"})

    lk.commit("slices", write)
    assert len(attempts) == 2
    assert lk.scan("slices", ["size"])["size"].to_pylist() == [2, 2]


def test_a_write_to_a_table_that_lost_a_file_fails_and_says_which(lk: OpenLake) -> None:
    lk.insert("slices", slices_row("tail"))
    (lost,) = Path(lk.table_uri("slices"), "data").iterdir()
    lost.unlink()
    with pytest.raises(OSError, match=lost.name):
        lk.commit("slices", lambda: lake.open(lk.uri).dataset("slices").update({"size": "2"}))


def test_embedders_that_would_share_a_column_are_refused(make_lake: MakeLake) -> None:
    lk = make_lake(embedders=["my-net"])
    assert lk.register_embedder("my-net") == lk.embedders()[0]
    with pytest.raises(BadInput, match="would share the column emb_my_net"):
        lk.register_embedder("my.net")


def test_images_come_back_as_they_were_received(lk: OpenLake, tmp_path: Path) -> None:
    paths = pictures.folder(tmp_path / "in", 3)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    for path in paths:
        image = lk.image(ids.image_id(path.read_bytes()))
        assert image is not None
        assert (image.data, image.format, image.width, image.height) == (path.read_bytes(), "PNG", 24, 16)
        assert image.source == str(path)
    assert lk.image("0" * 64) is None
    assert lk.thumbnail("0" * 64) is None
    assert lk.image("' OR '1' = '1") is None


def test_a_table_is_a_polars_frame(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path / "in", 3)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    frame = lk.frame("images")
    assert isinstance(frame, pl.LazyFrame)
    assert "data" not in frame.collect_schema()
    assert frame.filter(pl.col("width") == 24).collect().height == 3


def test_a_frame_stays_at_its_version(lk: OpenLake, tmp_path: Path) -> None:
    pictures.folder(tmp_path / "in", 2)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    lk.dataset("images").tags.create("before", lk.version("images"))
    version, now = lk.version("images"), lk.frame("images")
    pictures.folder(tmp_path / "more", 5)
    ingest.ingest(lk, tmp_path / "more", workers=1)
    heights = [f.collect().height for f in (now, lk.frame("images", version), lk.frame("images", "before"))]
    assert heights == [2, 2, 2]
    assert lk.frame("images").collect().height > 2


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [("image", None, "did you mean images"), ("images", 999, "no version 999"), ("images", "v1", "no tag 'v1'")],
)
def test_a_frame_of_an_unknown_table_or_version_is_refused(
    lk: OpenLake, name: str, version: int | str | None, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        lk.frame(name, version)


def test_the_current_time_has_a_zone() -> None:
    assert store.now().utcoffset() == dt.timedelta(0)


def test_every_error_has_an_exit_code() -> None:
    codes = {
        cls.__name__: cls.exit_code for base in LakeloopError.__subclasses__() for cls in (base, *base.__subclasses__())
    }
    assert set(codes.values()) == {2, 3}
    assert codes["NotALake"] == 2
    assert codes["LakeBusy"] == 3


def test_threads_that_write_to_one_table_do_not_disturb_each_other(lk: OpenLake) -> None:
    """Lance panics when two threads write through one handle of a table."""
    with ThreadPoolExecutor(8) as threads:
        assert len({*threads.map(lambda number: audit.record(lk, "test", str(number)), range(40))}) == 40
    assert lk.dataset("audit").count_rows() == 40
