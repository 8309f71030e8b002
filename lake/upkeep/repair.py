"""Repairs a damaged lake: sets aside only what cannot be read, so that every readable row of every commit stays.

A table loses the fragments whose files are damaged, or only the columns of a damaged file where these may be null. A
lost newest manifest is put back from its recorded copy, or else the rows of the commits after the one before it are
read from their data files. Damaged indexes are built again. What is set aside is kept, with a list of what was in it
(`set_aside.py`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake import ids
from lake.sql import columnar
from lake.storage import image_rows, migrations, schema, store
from lake.storage.lance_files import checksums, damage, fragments, quarantine, table_files
from lake.storage.lance_files.damage import TableDamage
from lake.upkeep import lost_commits, set_aside
from lake.upkeep.set_aside import AsideList

if TYPE_CHECKING:
    import lance

    from lake.storage.store import Lake

# Rows read at once from a damaged fragment of images, which have their bytes.
READ_AT_ONCE = 100


def repair(lake: Lake) -> list[str]:
    """Repairs every damaged table of a local lake; returns a sentence for each thing done.

    The caller holds the leader lock. Reads every file: those with a recorded hash to compare it, the others as tables.
    """
    if lake.folder is None:
        return []
    return repair_tables(lake, damage.of_lake(lake.folder, [*schema.TABLES], deep=True))


def repair_tables(lake: Lake, damaged: Sequence[TableDamage]) -> list[str]:
    """`repair` of what was found damaged."""
    folder = lake.folder
    assert folder is not None
    if not any(found.table == "migrations" for found in damaged):
        migrations.refuse_newer(lake)
    done = [sentence for found in damaged for sentence in _repair_table(lake, folder, found)]
    if done:
        shutil.rmtree(folder / columnar.FOLDER, ignore_errors=True)  # a copy of rows that may be gone now
        if any(found.table == "migrations" for found in damaged):
            migrations.record_again(lake)
        checksums.record(lake)
    return done


def _repair_table(lake: Lake, folder: Path, found: TableDamage) -> list[str]:
    name = found.table
    table = folder / f"{name}.lance"
    done: list[str] = []
    for manifest in quarantine.manifests_aside(folder, name):  # of a power loss: their rows are looked for below
        os.renames(manifest, set_aside.folder_of(folder, name) / table_files.VERSIONS / manifest.name)
    for version, manifest, reason in found.manifests:
        set_aside.move(folder, name, manifest.relative_to(table).as_posix())
        done.append(f"{name}: set aside the manifest of version {version}: {reason}")
    for path, reason in damage.tag_damage(table).items():  # also of the versions just set aside
        set_aside.move(folder, name, path)
        done.append(f"{name}: set aside the tag {Path(path).stem}: {reason}")
    record = checksums.read(folder, name)
    if found.from_copy:
        shutil.copy2(checksums.manifest_copy(folder, name), _manifest_path(table, record.version))
        found = damage.TableDamage(name, base=record.version, lost=_beyond(found.lost, record.version))
        done.append(f"{name}: put back the manifest of version {record.version} from its copy")
        lake.reopen(name)
        damage.examine_version(found, table, lake.dataset(name), record, deep=True)
        damage.read_all([found])
    lake.reopen(name)
    if found.base is None:  # nothing says any more which rows were in the table
        (table / table_files.VERSIONS / damage.HINT).unlink(missing_ok=True)
        lake.create_table(schema.TABLES[name])
        found.lost = max(1, found.lost or 0)
        done.append(f"{name}: made the table again, because no manifest can be read; deleted rows may be back")
    indexes = _Keys(lake, name, record)
    aside = AsideList(name, store.now().isoformat())
    if found.deletions or found.files:
        _drop(lake, found, indexes, aside)
    if found.lost is not None or found.torn_aside:
        sentence, unreadable = lost_commits.recover(lake, table, found)
        done.append(sentence)
        aside.files |= unreadable
    for index in found.indexes:
        lake.commit(name, partial(_drop_index, lake, name, index))
        done.append(f"{name}: built the index {index} again")
    if found.indexes:
        lake.create_table(schema.TABLES[name])
    aside.files |= found.files | found.deletions
    for path in aside.files:
        blob_files = [blob.relative_to(table).as_posix() for blob in (table / path).with_suffix("").glob("*")]
        for moved in (path, *blob_files):
            set_aside.move(folder, name, moved)
    if aside.files:
        set_aside.write(folder, aside)
        done.append(f"{name}: {_sentence(aside)}")
    return done


def rows_in(lake: Lake, found: TableDamage) -> tuple[int, list[str]]:
    """How many rows are in the damaged data files of a table, and the ids of those whose ids are known."""
    if lake.folder is None or not found.files:
        return 0, []
    keys = _Keys(lake, found.table, checksums.read(lake.folder, found.table))
    listed: dict[str, list[str]] = {}
    rows = 0
    for fragment in lake.dataset(found.table).get_fragments():
        if any(_names(fragment, path) for path in found.files):
            rows += fragment.metadata.physical_rows - fragment.metadata.num_deletions
            keys.add(listed, fragment, ())
    return rows, next(iter(listed.values()), [])


def _sentence(aside: AsideList) -> str:
    count = len(aside.files)
    parts = [f"set aside {count} damaged file{'s' if count > 1 else ''}"]
    if aside.rows:
        known = sorted(aside.ids)
        first = f", the first {known[0]} is {aside.ids[known[0]][0]}" if known and aside.ids[known[0]] else ""
        parts.append(f"{aside.rows:,} rows were in them{first}")
    if aside.nulled:
        parts.append(f"{', '.join(aside.columns)} of {aside.nulled:,} rows are empty now")
    if aside.undeleted:
        parts.append(f"up to {aside.undeleted:,} deleted rows are back")
    return "; ".join(parts)


# Rows that cannot be read ----------------------------------------------------------------------------------------


def _drop(lake: Lake, found: TableDamage, keys: _Keys, aside: AsideList) -> None:
    """Commits a version without the damaged files, and notes in `aside` what was in them."""
    import lance

    name = found.table
    salvaged: list[dict[str, Any]] = []

    def write() -> None:
        dataset = lake.dataset(name)
        removed, changed, fields = [], [], set()
        aside.rows = aside.nulled = aside.undeleted = 0
        aside.ids, aside.columns = {}, []
        salvaged.clear()
        for fragment in dataset.get_fragments():
            metadata = json.loads(json.dumps(fragment.metadata.to_json()))
            bad = [f for f in metadata["files"] if f"data/{f['path']}" in found.files]
            deletions = fragment.deletion_file()
            lost_deletions = deletions in found.deletions
            if not bad and not lost_deletions:
                continue
            if lost_deletions:
                aside.undeleted += metadata["deletion_file"]["num_deleted_rows"]
                metadata["deletion_file"] = None
            live = metadata["physical_rows"] - ((metadata["deletion_file"] or {}).get("num_deleted_rows") or 0)
            columns = _columns_of(dataset, {number for file in bad for number in file["fields"]})
            if any(not nullable or column == schema.TABLES[name].key for column, nullable in columns.items()):
                rescued = _intact_images(lake, dataset, fragment, found) if name == "images" else []
                salvaged.extend(rescued)
                aside.rows += live - len(rescued)
                keys.add(aside.ids, fragment, {row["image_id"] for row in rescued})
                removed.append(fragment.fragment_id)
                continue
            if bad:
                metadata["files"] = [f for f in metadata["files"] if f not in bad]
                fields |= {number for file in bad for number in file["fields"] if number >= 0}
                aside.nulled += live
                aside.columns = sorted({*aside.columns, *columns})
            changed.append(lance.FragmentMetadata.from_json(json.dumps(metadata)))
        operation = lance.LanceOperation.Update(removed, changed, [], sorted(fields), update_mode="rewrite_columns")
        lance.LanceDataset.commit(
            lake.table_uri(name), operation, read_version=dataset.version, storage_options=lake.storage_options
        )

    lake.commit(name, write)
    lake.reopen(name)
    if salvaged:  # rows of another file, if one file was written over another, are in the table already
        distinct = [*{row["image_id"]: row for row in salvaged}.values()]
        aside.rows += len(salvaged) - lake.insert(name, image_rows.images_table(distinct))
    if aside.undeleted:
        lost_commits.drop_superseded(lake, name)


def _columns_of(dataset: lance.LanceDataset, numbers: set[int]) -> dict[str, bool]:
    """The top-level columns with any of these fields, and whether each may be null."""
    columns = {}
    for field in dataset.lance_schema.fields():
        if numbers & set(fragments.nested(field)):
            columns[field.name()] = dataset.schema.field(field.name()).nullable
    return columns


def _intact_images(
    lake: Lake, dataset: lance.LanceDataset, fragment: lance.LanceFragment, found: TableDamage
) -> list[dict[str, Any]]:
    """The rows of a damaged fragment of images whose bytes still hash to their ids: these are proven."""
    columns = [column.name for column in schema.IMAGES.columns if column.name != "data"]
    rows: list[dict[str, Any]] = []
    if any(reason.startswith("it is missing") for path, reason in found.files.items() if _names(fragment, path)):
        return rows
    try:
        listed = fragment.scanner(columns=columns, with_row_id=True).to_table().to_pylist()
        for start in range(0, len(listed), READ_AT_ONCE):
            part = listed[start : start + READ_AT_ONCE]
            data = dict(dataset.read_blobs("data", ids=[row["_rowid"] for row in part]))
            for row in part:
                content = data[row.pop("_rowid")]
                if ids.image_id(content) == row["image_id"]:
                    rows.append(row | {"data": content})
    except KeyboardInterrupt:
        raise
    except BaseException:  # Lance's panics are no Exception; what was read so far is proven
        return rows
    return rows


def _names(fragment: lance.LanceFragment, path: str) -> bool:
    return path.removeprefix("data/") in fragments.paths(fragment)


class _Keys:
    """The keys of a table's rows by fragment, from its indexes and its record, which outlive the rows."""

    def __init__(self, lake: Lake, name: str, record: checksums.Record) -> None:
        self._table = Path(lake.table_uri(name))
        self._key = schema.TABLES[name].key
        self._record = record
        self._indexed = [column for column in schema.TABLES[name].indexed if column != "id"]
        self._dataset = lake.dataset(name)
        self._by_column: dict[str, dict[int, list[str]]] | None = None

    def add(self, listed: dict[str, list[str]], fragment: lance.LanceFragment, without: Iterable[str]) -> None:
        """Adds the values of the fragment's rows to `listed`, by column, except those in `without`."""
        if self._by_column is None:
            self._by_column = {column: self._read(column) for column in self._indexed}
        known = {column: of.get(fragment.fragment_id, []) for column, of in self._by_column.items()}
        for file in fragments.paths(fragment):
            if file in self._record.keys:
                known[self._key] = self._record.keys[file]
        for column, values in known.items():
            listed.setdefault(column, []).extend(sorted({*values} - {*without}))

    def _read(self, column: str) -> dict[int, list[str]]:
        from lance.file import LanceFileReader

        by_fragment: dict[int, list[str]] = {}
        try:
            for _, uuid in damage.index_segments(self._dataset, column):
                pages = self._table / "_indices" / uuid / "page_data.lance"
                rows = LanceFileReader(str(pages)).read_all().to_table()
                for value, address in zip(rows["values"].to_pylist(), rows["ids"].to_pylist(), strict=True):
                    by_fragment.setdefault(address >> 32, []).append(value)
        except KeyboardInterrupt:
            raise
        except BaseException:  # the index is damaged, too: the rows are counted, not named
            return {}
        return by_fragment


def _drop_index(lake: Lake, name: str, index: str) -> None:
    lake.writable(name).drop_index(index)


def _manifest_path(table: Path, version: int) -> Path:
    return table / table_files.VERSIONS / f"{2**64 - 1 - version:020d}.manifest"


def _beyond(lost: int | None, version: int) -> int | None:
    return lost if lost is not None and lost > version else None
