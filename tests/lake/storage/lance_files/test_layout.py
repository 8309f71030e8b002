"""The installed Lance lays out a table as `lake/storage/lance_files` expects. If this fails, read that room again."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from lake.open_lake import OpenLake
from lake.storage.lance_files import columns, damage, fragments, nulls, table_files
from lake.storage.vectors import to_column

DIM = 4
LANCE = f"Lance {lance.__version__} changed its layout, and lake/storage/lance_files must follow"


@pytest.fixture
def lake(tmp_path: Path) -> OpenLake:
    """Only the folder of a lake: its one table is written by Lance itself."""
    return OpenLake(str(tmp_path))


@pytest.fixture
def table(lake: OpenLake) -> Path:
    """Two fragments of ten rows: version 1 has one of them, version 2 both, version 3 two rows less."""
    path = Path(lake.table_uri("tiny"))
    schema = pa.schema([("key", pa.string()), lance.blob_field("data"), ("vector", pa.list_(pa.float32(), DIM))])
    for start in (0, 10):
        keys = [f"row {n}" for n in range(start, start + 10)]
        vectors = to_column(np.arange(10 * DIM, dtype=np.float32).reshape(10, DIM)).to_pylist()
        vectors[3 - start // 5] = None  # row 3 and row 11
        rows = [pa.array(keys), lance.blob_array([b"x" * 100_000] * 10), pa.array(vectors, schema.field("vector").type)]
        lance.write_dataset(pa.table(rows, schema=schema), path, mode="append" if start else "create")
    lance.dataset(path).delete("key in ('row 5', 'row 15')")
    return path


def test_a_manifest_per_version_counts_down_in_twenty_digits_and_ends_with_the_magic(table: Path) -> None:
    names = sorted(path.name for path in (table / table_files.VERSIONS).glob("*.manifest"))
    assert names == [f"{2**64 - 1 - version}.manifest" for version in (3, 2, 1)], f"names of manifests: {LANCE}"
    listed = table_files.manifests(table)
    assert [version for version, _ in listed] == [3, 2, 1]
    for version, path in listed:
        assert table_files.ends_whole(path), f"the end of a manifest: {LANCE}"
        assert lance.dataset(table, version=version).version == version


def test_the_folders_of_a_table_are_the_known_ones(table: Path) -> None:
    lance.dataset(table).create_scalar_index("key", "BTREE")
    known = {table_files.VERSIONS, *(folder.rstrip("/") for folder in table_files.CLAIMED)}
    present = {path.name for path in table.iterdir()}
    assert present == known, f"folders of a table: {LANCE}"


def test_every_file_is_named_by_a_manifest_or_holds_blobs_of_a_file_that_is(table: Path) -> None:
    dataset = lance.dataset(table)
    present = {file.path: file.size for file in table_files.present(dataset)}
    on_disk = {str(p.relative_to(table)): p.stat().st_size for p in table.rglob("*") if p.is_file()}
    assert present == on_disk, f"all_files(): {LANCE}"
    names = table_files.named(dataset, {1, 2, 3})
    data = {path for path in names if path.startswith("data/")}
    assert len(data) == 2, f"tracked_files(): {LANCE}"
    blobs = {path for path in present if path.startswith("data/")} - data
    assert blobs, f"blobs of 100 kB do not lie beside data files any more: {LANCE}"
    assert {f"data/{path.split('/')[1]}.lance" for path in blobs} == data, f"the folders of blobs: {LANCE}"
    assert table_files.unclaimed(dataset) == [], f"files that no manifest names: {LANCE}"


def test_a_fragment_tells_its_files_with_sizes_fields_and_deleted_rows(table: Path) -> None:
    dataset = lance.dataset(table)
    field = fragments.field_id(dataset, "vector")
    assert field is not None
    for number, fragment in enumerate(dataset.get_fragments()):
        assert fragment.metadata.id == fragment.fragment_id == number, f"ids of fragments: {LANCE}"
        [path] = fragments.paths(fragment)
        assert fragments.file_with(fragment, field) is not None, f"fields of a file: {LANCE}"
        assert fragment.metadata.files[0].file_size_bytes == (table / "data" / path).stat().st_size
        assert (table / "data" / path).read_bytes().endswith(table_files.MAGIC), f"the end of a data file: {LANCE}"
        assert (fragment.metadata.physical_rows, fragment.metadata.num_deletions) == (10, 1)
        assert (table / fragment.deletion_file()).is_file(), f"files of deletions: {LANCE}"
        assert table_files.has_bytes(table / fragment.deletion_file())
        sizes = {file.path: file.file_size_bytes for file in fragment.metadata.files}
        assert [path for path, size in sizes.items() if damage.file_damage(table / "data" / path, size)] == []


def test_a_row_address_is_its_fragment_and_offset_and_is_the_row_id_too(table: Path) -> None:
    rows = lance.dataset(table).to_table(["key"], with_row_id=True, with_row_address=True)
    numbers = [int(key.removeprefix("row ")) for key in rows["key"].to_pylist()]
    address = np.asarray(rows["_rowaddr"])
    assert [10 * f + o for f, o in zip(fragments.fragment_ids(address), fragments.offsets(address), strict=True)] == (
        numbers
    ), f"addresses of rows: {LANCE}"
    assert rows["_rowid"].to_pylist() == rows["_rowaddr"].to_pylist(), f"row ids are not addresses any more: {LANCE}"
    assert fragments.addresses(1, np.arange(3)).tolist() == [(1 << 32) + n for n in range(3)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [([[1.0] * DIM] * 9, "none"), ([None] * 9, "all"), ([None, [1.0] * DIM] * 4, "some")],
    ids=["no nulls", "only nulls", "some nulls"],
)
def test_a_footer_tells_of_every_page_whether_it_has_nulls(
    tmp_path: Path, values: list[list[float] | None], kind: str
) -> None:
    rows = pa.table({"vector": pa.array(values, pa.list_(pa.float32(), DIM))})
    dataset = lance.write_dataset(rows, tmp_path / "one.lance")
    [fragment] = dataset.get_fragments()
    file = fragments.file_with(fragment, fragments.field_id(dataset, "vector"))
    assert file is not None
    reader = nulls.session_of(dataset, None).open_reader(file[0], columns=["vector"])
    pages = [nulls.page(page) for page in reader.metadata().columns[file[1]].pages]
    assert [page.kind for page in pages] == [kind], f"descriptions of pages in footers: {LANCE}"
    assert [page.rows for page in pages] in ([len(values)], [None])
    expected = [number for number, value in enumerate(values) if value is None]
    assert nulls.of_fragment(dataset, fragment, "vector").tolist() == expected


def test_a_new_column_has_no_file_and_its_values_go_into_one_of_their_own(lake: OpenLake, table: Path) -> None:
    lance.dataset(table).add_columns(pa.field("late", pa.list_(pa.float32(), DIM)))
    dataset = lance.dataset(table)
    first, second = dataset.get_fragments()
    late = fragments.field_id(dataset, "late")
    assert fragments.file_with(first, late) is None, f"a column of nulls has files: {LANCE}"
    before = fragments.fingerprints(dataset, ["key"])
    rows = pa.table({"_rowid": fragments.addresses(0, np.array([0, 2])), "vector_row": [0, 1]})
    columns.add_files(lake, dataset, "late", [rows], np.ones((2, DIM), np.float32))
    dataset = lance.dataset(table)
    updated, untouched = dataset.get_fragments()
    assert fragments.paths(updated)[:1] == fragments.paths(first), f"an update of a column rewrites others: {LANCE}"
    assert fragments.file_with(updated, late) == (fragments.paths(updated)[1], 0), f"a column's own file: {LANCE}"
    assert fragments.paths(untouched) == fragments.paths(second)
    assert fragments.fingerprints(dataset, ["key"]).keys() == before.keys()
    live = [offset for offset in nulls.of_fragment(dataset, updated, "late").tolist() if offset != 5]
    assert live == [1, 3, 4, 6, 7, 8, 9], f"rows of a column's own file: {LANCE}"


def test_moved_rows_leave_their_fragment_for_a_new_one(lake: OpenLake, table: Path) -> None:
    whole = lance.dataset(table).to_table(["key", "vector"])
    path = table.with_name("without_blobs.lance")
    lance.write_dataset(whole.slice(0, 9), path)
    dataset = lance.write_dataset(whole.slice(9), path, mode="append")
    rows = pa.table({"_rowid": fragments.addresses(1, np.array([1])), "vector_row": [0]})
    columns.move_rows(lake, dataset, "vector", rows, np.ones((1, DIM), np.float32))
    dataset = lance.dataset(path)
    assert [(f.physical_rows, f.count_rows()) for f in dataset.get_fragments()] == [(9, 9), (9, 8), (1, 1)]
    moved = dataset.to_table(["key", "vector"], filter="key = 'row 11'").to_pylist()
    assert moved == [{"key": "row 11", "vector": [1.0] * DIM}]
