"""The columnar copy says what the lake says, at every version, costs what is new, and forgets what is erased."""

from __future__ import annotations

import threading
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake import open_lake
from lake.open_lake import OpenLake
from lake.sql import columnar, columnar_parts, connections
from lake.storage import schema
from lake.upkeep import maintenance
from tests.conftest import MakeLake
from tests.lake import stock

pytestmark = pytest.mark.slow

SECRET = "secret_sha256"


def read(pinned: columnar.PinnedTables, text: str) -> pa.Table:
    """What a query finds in the files alone, without the lake."""
    with duckdb.connect() as connection:
        for statement in (*pinned.statements(), "SET TimeZone = 'UTC'"):
            connection.execute(statement)
        return connection.sql(text).to_arrow_table()


def same(lake: OpenLake, name: str, pinned: columnar.PinnedTables) -> None:
    """Every row and narrow column, as Lance has them."""
    names = columnar.columns(name, lake.dataset(name))
    stored = lake.scan(name, names)
    copied = read(pinned, f"SELECT * FROM {name}")
    assert copied.column_names == names
    assert sorted(map(repr, copied.to_pylist())) == sorted(map(repr, stored.to_pylist()))


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6)),
        st.tuples(st.sampled_from(["embed", "delete", "compact", "status", "pin"]), st.integers(0, 5)),
    ),
    max_size=12,
)


@settings(max_examples=6)
@given(actions)
def test_the_copy_equals_the_table_after_any_change(tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, int]]) -> None:  # fmt: skip  # noqa: E501
    lake = open_lake.create(str(tmp_path_factory.mktemp("copy") / "lake"), embedders=["x"])
    stock.bind(lake)
    there: list[int] = []
    count = 0
    for deed, number in done:
        if deed == "add":
            new = range(count, count + number)
            stock.add(lake, new)
            there, count = [*there, *new], count + number
        elif deed == "embed" and there:  # a new data file beside the rows
            stock.embed(lake, there[: number + 1])
        elif deed == "delete" and there:
            gone = there.pop(number % len(there))
            lake.delete("samples", f"prediction_id = '{stock.prediction_id(gone)}'")
        elif deed == "compact":
            lake.commit("samples", lambda: lake.dataset("samples").optimize.compact_files())
        elif deed == "status" and there:  # rows written anew
            row = lake.dataset("samples").to_table(filter=f"prediction_id = '{stock.prediction_id(there[0])}'")
            row = row.set_column(row.column_names.index("image_status"), "image_status", pa.array([f"s{number}"]))
            lake.update("samples", row)
        elif deed == "pin":
            same(lake, "samples", columnar.pin(lake, ["samples"]))
    names = ("samples", "images", "thumbnails")
    pinned = columnar.pin(lake, names)
    assert pinned.versions == {name: lake.version(name) for name in names}
    for name in names:
        same(lake, name, pinned)


def test_only_new_rows_are_copied(make_lake: MakeLake) -> None:
    lake = make_lake(embedders=["x"])
    copied: list[int] = []
    stock.add(lake, range(100))
    first = columnar.pin(lake, ["samples"], progress=copied.append)
    assert sum(copied) == 100
    stock.add(lake, range(100, 103))
    second = columnar.pin(lake, ["samples"], progress=copied.append)
    assert sum(copied) == 103
    assert set(first.files["samples"]) < set(second.files["samples"])
    stock.bind(lake)  # a vector column: nothing narrow changes
    stock.embed(lake, range(103))
    third = columnar.pin(lake, ["samples"], progress=copied.append)
    assert (sum(copied), third.files) == (103, second.files)
    assert third.versions["samples"] == lake.version("samples") > second.versions["samples"]


def test_many_commits_give_few_files(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar_parts, "PART_ROWS", 16)
    lake = make_lake(embedders=["x"])
    copied: list[int] = []
    for n in range(24):
        stock.add(lake, [n])
        parts = columnar.pin(lake, ["samples"], progress=copied.append).files["samples"]
        assert len(parts) <= 6
    same(lake, "samples", columnar.pin(lake, ["samples"]))
    assert sum(copied) == 24  # from Lance each row came once; merging reads the copy
    left = {path.name for path in columnar.folder(lake).glob("samples-*")}
    assert len(left) <= 2 * 6  # the files of the last version stay for those about to open them


def test_pinned_tables_can_be_read_after_the_next_pin(make_lake: MakeLake) -> None:
    lake = make_lake(embedders=["x"])
    stock.add(lake, range(5))
    before = columnar.pin(lake, ["samples"])
    stock.add(lake, range(5, 9))
    columnar.pin(lake, ["samples"])
    assert read(before, "SELECT count(*) AS n FROM samples")["n"].to_pylist() == [5]


def test_maintenance_refreshes_the_copies_of_large_tables(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip  # noqa: E501
    monkeypatch.setattr(columnar, "WORTH_ROWS", 12)
    lake = make_lake(embedders=["x"])
    for n in range(12):
        stock.add(lake, [n])
    maintenance.maintain(lake)
    there = {path.name for path in columnar.folder(lake).glob("*.json")}
    assert there == {"samples.json", "images.json", "thumbnails.json"}
    assert columnar.pin(lake, ["samples"], most_rows=0).versions == {"samples": lake.version("samples")}


def test_the_copy_has_no_bytes_vectors_or_secrets(make_lake: MakeLake) -> None:
    lake = make_lake(embedders=["x"])
    stock.bind(lake)
    stock.add(lake, range(3))
    stock.embed(lake, range(3))
    pinned = columnar.pin(lake)
    assert {*pinned.versions} == {*schema.TABLES}
    columns = {name: read(pinned, f"SELECT * FROM {name}").column_names for name in pinned.files}
    hidden = {"images": "data", "thumbnails": "jpeg", "keys": SECRET, "samples": stock.COLUMN}
    assert not [column for name, column in hidden.items() if column in columns[name]]
    with pytest.raises(Exception, match=SECRET):
        lake.sql(f"SELECT {SECRET} FROM keys")


def test_erased_images_are_erased_from_the_copy(make_lake: MakeLake) -> None:
    lake = make_lake(embedders=["x"])
    names = stock.add(lake, range(50))
    columnar.pin(lake)
    stock.add(lake, range(50, 53))
    pinned = columnar.pin(lake)
    newest = pinned.files["samples"][-1]
    erased = names[7]
    assert read(pinned, f"SELECT 1 FROM samples WHERE image_id = '{erased}'").num_rows
    assert columnar.forget(lake, [erased]) >= 3  # of samples, images and thumbnails
    assert not pinned.files["samples"][0].exists()
    assert newest.exists()
    lake.delete("samples", f"image_id = '{erased}'")
    rows = read(columnar.pin(lake, ["samples"]), "SELECT image_id FROM samples")["image_id"].to_pylist()
    assert len(rows) == 52
    assert erased not in rows


@pytest.mark.parametrize("harm", ["gone", "manifest", "cut", "version"])
def test_a_damaged_copy_is_made_again(make_lake: MakeLake, harm: str) -> None:
    lake = make_lake(embedders=["x"])
    stock.add(lake, range(5))
    [part] = columnar.pin(lake, ["samples"]).files["samples"]
    manifest = part.with_name("samples.json")
    if harm == "gone":
        part.unlink()
    elif harm == "manifest":
        manifest.unlink()
    elif harm == "cut":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(manifest.read_text().replace(duckdb.__version__, "1.0.0"))
    again = open_lake.open(lake.uri)
    same(again, "samples", columnar.pin(again, ["samples"]))


def test_concurrent_readers_see_whole_versions(make_lake: MakeLake) -> None:
    lake = make_lake(embedders=["x"])
    stock.add(lake, range(3))
    wrong: list[object] = []

    def reader() -> None:
        own = open_lake.open(lake.uri)
        last = 0
        for _ in range(12):
            pinned = columnar.pin(own, ["samples"])
            rows = read(pinned, "SELECT count(*) AS n, count(DISTINCT prediction_id) AS d FROM samples").to_pylist()[0]
            if rows["n"] != rows["d"] or rows["n"] % 3 or rows["n"] < last:
                wrong.append(rows)
            last = rows["n"]

    readers = [threading.Thread(target=reader) for _ in range(3)]
    for thread in readers:
        thread.start()
    for n in range(1, 8):
        stock.add(lake, range(3 * n, 3 * n + 3))
    for thread in readers:
        thread.join()
    assert not wrong


def test_sql_gives_the_same_rows_from_the_copy_of_a_large_table(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip  # noqa: E501
    monkeypatch.setattr(columnar, "WORTH_ROWS", 10)
    lake = make_lake(embedders=["x"])
    stock.bind(lake)
    stock.add(lake, range(30))
    text = "SELECT image_id, confidence, timestamp FROM predictions ORDER BY prediction_id"
    rows = lake.sql(text)
    assert (columnar.folder(lake) / "samples.json").exists()
    monkeypatch.setattr(columnar, "WORTH_ROWS", 10**9)
    assert open_lake.open(lake.uri).sql(text) == rows
    monkeypatch.setattr(columnar, "WORTH_ROWS", 10)
    stock.add(lake, range(30, 31))
    assert lake.sql("SELECT count(*) AS n FROM samples")["n"].to_pylist() == [31]
    # Vectors are no part of it, and are there when they are named.
    assert stock.COLUMN not in lake.sql("SELECT * FROM samples").column_names
    assert stock.COLUMN in lake.sql(f"SELECT * FROM samples WHERE {stock.COLUMN} IS NULL").column_names


def test_a_query_does_not_copy_too_many_rows(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "WORTH_ROWS", 10)
    monkeypatch.setattr(connections, "COPIED_AT_ONCE_ROWS", 20)
    lake = make_lake(embedders=["x"])
    stock.add(lake, range(30))
    assert lake.sql("SELECT count(*) AS n FROM samples")["n"].to_pylist() == [30]
    assert not (columnar.folder(lake) / "samples.json").exists()
    columnar.pin(lake, ["samples"])
    stock.add(lake, range(30, 40))
    assert lake.sql("SELECT count(*) AS n FROM samples")["n"].to_pylist() == [40]
    assert "samples" in columnar.pin(lake, ["samples"], most_rows=0).versions


def test_a_folder_that_cannot_be_written_costs_only_time(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # fmt: skip  # noqa: E501
    monkeypatch.setattr(columnar, "WORTH_ROWS", 10)
    lake = make_lake(embedders=["x"])
    stock.add(lake, range(30))
    (Path(lake.uri) / columnar.FOLDER).write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        columnar.pin(lake, ["samples"])
    assert lake.sql("SELECT count(*) AS n FROM samples")["n"].to_pylist() == [30]


def test_the_files_have_absolute_paths(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(make_lake(embedders=["x"]).uri)
    monkeypatch.chdir(path.parent)
    pinned = columnar.pin(open_lake.open(path.name), ["samples"])
    assert all(path.is_absolute() and path.exists() for path in pinned.files["samples"])
