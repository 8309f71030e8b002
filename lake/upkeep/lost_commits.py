"""Brings back what only lost commits named: rows of data files that no manifest names, and their deletions.

A table whose newest manifest is gone opens at an older one. The data files of the commits after it are still there, and
a file has its rows' keys, so that its rows can be added to the table again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.errors import LakeloopError
from lake.storage import schema
from lake.storage.lance_files import damage, table_files
from lake.storage.lance_files.damage import TableDamage

if TYPE_CHECKING:
    from lake.storage.store import Lake


def recover(lake: Lake, table: Path, found: TableDamage) -> tuple[str, dict[str, str]]:
    """Adds rows that only lost commits named: of data files that no version names, written after the base.

    Returns a sentence, and the files that cannot be read, with reasons.
    """
    name = found.table
    listed = dict(table_files.manifests(table))
    since = os.stat(listed[found.base]).st_mtime if found.base in listed else 0.0
    unnamed = [file for file in table_files.unclaimed(lake.dataset(name)) if file.modified.timestamp() >= since - 1.0]
    data_files = [file for file in unnamed if file.path.startswith("data/") and file.path.endswith(".lance")]
    # Deletions first: they name fragments by number, and fragments that are added get the numbers of lost ones.
    deleted = _delete_again(lake, table, name, [f.path for f in unnamed if f.path.startswith("_deletions/")])
    added = 0
    unreadable: dict[str, str] = {}
    for file in sorted(data_files, key=lambda f: f.modified, reverse=True):  # of an updated row, the newest stays
        try:
            added += _add_rows(lake, table, name, file.path)
        except LakeloopError:
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Lance's panics are no Exception
            unreadable[file.path] = f"of a lost commit: {str(error).split(', /')[0][:200]}"
    if name == "images":
        drop_superseded(lake, name)
    damage.write_hint(table, lake.version(name))
    words = f"{name}: the commits after version {found.base or 0} are lost"
    also = f", and deleted {deleted:,} again" if deleted else ""
    also += f"; {len(unreadable)} of these files cannot be read" if unreadable else ""
    return f"{words}; took {added:,} rows from their data files{also}", unreadable


def _add_rows(lake: Lake, table: Path, name: str, path: str) -> int:
    """Adds the rows of a data file whose keys the table lacks; returns their number. Raises what reading it raises."""
    import lance
    from lance.file import LanceFileReader

    dataset = lake.dataset(name)
    harm = damage.file_damage(table / path)
    if harm is not None:
        raise OSError(harm)
    reader = LanceFileReader(str(table / path))
    if name == "images":  # with their bytes, which only a fragment can read
        shape = next(
            (f for fr in dataset.get_fragments() for f in fr.metadata.to_json()["files"] if len(f["fields"]) > 1),
            None,
        )
        numbers = shape["fields"] if shape else [field.id() for field in dataset.lance_schema.fields()]
        if len(reader.metadata().columns) != len(numbers):
            return 0
        file = {
            "path": path.removeprefix("data/"), "fields": numbers, "column_indices": [*range(len(numbers))],
            "file_major_version": 2, "file_minor_version": 2, "file_size_bytes": (table / path).stat().st_size,
            "base_id": None,
        }  # fmt: skip
        fragment = {
            "id": 0, "files": [file], "overlays": [], "physical_rows": reader.metadata().num_rows,
            "deletion_file": None, "row_id_meta": None, "created_at_version_meta": None,
            "last_updated_at_version_meta": None,
        }  # fmt: skip
        before = dataset.count_rows()
        append = lance.LanceOperation.Append([lance.FragmentMetadata.from_json(json.dumps(fragment))])
        lake.commit(
            name,
            lambda: lance.LanceDataset.commit(table.as_posix(), append, read_version=lake.dataset(name).version),
        )
        lake.reopen(name)
        return int(lake.dataset(name).count_rows() - before)
    rows = reader.read_all().to_table()
    for field in rows.schema:
        if field.name not in dataset.schema.names and field.nullable:  # a typed column of metadata, or of vectors
            lake.add_column(name, field.remove_metadata())
    dataset = lake.dataset(name)
    columns = dataset.schema
    key = schema.TABLES[name].key
    if not {key or rows.schema.names[0]} <= set(rows.schema.names):
        return 0  # the columns of a file without keys belong to rows that are unknown now
    fields = [field for field in columns if field.name in rows.schema.names]
    if any(field.name not in rows.schema.names and not field.nullable for field in columns):
        return 0
    rows = rows.select([field.name for field in fields]).cast(pa.schema([field.remove_metadata() for field in fields]))
    full = pa.table(
        {f.name: rows[f.name] if f.name in rows.schema.names else pa.nulls(rows.num_rows, f.type) for f in columns},
        schema=columns,
    )
    if key:
        return lake.insert(name, full)
    present = {json.dumps(row, default=str, sort_keys=True) for row in dataset.to_table().to_pylist()}
    fresh = [row for row in full.to_pylist() if json.dumps(row, default=str, sort_keys=True) not in present]
    return lake.insert(name, pa.Table.from_pylist(fresh, schema=columns)) if fresh else 0


def _delete_again(lake: Lake, table: Path, name: str, paths: Sequence[str]) -> int:
    """Deletes the rows that lost commits had deleted from fragments that are still there; returns their number."""
    newest: dict[int, tuple[int, str]] = {}
    for path in paths:
        stem = Path(path).stem.split("-")
        if path.endswith(".arrow") and len(stem) == 3 and all(part.isdigit() for part in stem):
            number, version = int(stem[0]), int(stem[1])
            newest[number] = max(newest.get(number, (0, "")), (version, path))
    present = {fragment.fragment_id for fragment in lake.dataset(name).get_fragments()}
    addresses: list[int] = []
    for number, (_, path) in newest.items():
        if number not in present:
            continue
        try:
            offsets = pa.ipc.open_file(str(table / path)).read_all()["row_id"].to_pylist()
        except (OSError, pa.ArrowInvalid, KeyError):
            continue
        addresses += [(number << 32) + offset for offset in offsets]
    if not addresses:
        return 0
    before = lake.dataset(name).count_rows()
    lake.delete(name, f"_rowid in ({','.join(map(str, addresses))})")
    return int(before - lake.dataset(name).count_rows())


def drop_superseded(lake: Lake, name: str) -> None:
    """Removes rows whose key a later row has: they were deleted by an update, and that list of deletions is lost."""
    key = schema.TABLES[name].key
    if not key:
        return
    rows = lake.dataset(name).scanner(columns=[key], with_row_id=True).to_table()
    newest: dict[Any, int] = {}
    older: list[int] = []
    for value, row_id in zip(rows[key].to_pylist(), rows["_rowid"].to_pylist(), strict=True):
        if value in newest:
            older.append(min(newest[value], row_id))
        newest[value] = max(newest.get(value, row_id), row_id)
    if older:
        lake.delete(name, f"_rowid in ({','.join(map(str, older))})")
