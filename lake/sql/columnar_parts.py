"""The files of a table's columnar copy: its manifest, and the DuckDB files with the rows of some fragments each.

A file never changes. Small files are merged into files at least twice as large as the next, so there are few of them
and a row is copied only a few times.
"""

from __future__ import annotations

import fcntl
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lance

# A part of this many rows is complete: it is not merged with others any more.
PART_ROWS = 1_000_000
BATCH_ROWS = 65_536


@dataclass(frozen=True)
class CopyPart:
    """One file: its name, its number of rows, and the keys of the fragments they come from."""

    file: str
    rows: int
    fragments: list[str]


@dataclass(frozen=True)
class CopyManifest:
    """A table's copy: the version it is complete at, its columns and parts, and the files of the manifest before."""

    version: int
    columns: list[list[str]]
    parts: list[CopyPart]
    previous: list[str]

    @staticmethod
    def read(folder: Path, name: str) -> CopyManifest | None:
        """None if there is no manifest, or another DuckDB or lakeloop wrote it."""
        import duckdb

        try:
            content = json.loads(path(folder, name).read_text())
            if content.pop("duckdb") != duckdb.__version__:
                return None
            return CopyManifest(**(content | {"parts": [CopyPart(**part) for part in content["parts"]]}))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path, name: str) -> None:
        import duckdb

        content = {"duckdb": duckdb.__version__, **vars(self), "parts": [vars(part) for part in self.parts]}
        new = folder / f"{name}.{uuid.uuid4().hex}.part"
        new.write_text(json.dumps(content))
        new.replace(path(folder, name))


def path(folder: Path, name: str) -> Path:
    """The table's manifest."""
    return folder / f"{name}.json"


def unchanged(
    folder: Path, manifest: CopyManifest | None, shape: list[list[str]], fragments: dict[str, tuple[Any, int]]
) -> list[CopyPart]:
    """The parts whose fragments all are still in the table, unchanged. `shape`: names and types of its columns."""
    if manifest is None or manifest.columns != shape:
        return []
    present = [part for part in manifest.parts if (folder / part.file).exists()]
    return [part for part in present if all(key in fragments for key in part.fragments)]


def extended(
    folder: Path,
    name: str,
    dataset: lance.LanceDataset,
    shape: list[list[str]],
    parts: list[CopyPart],
    missing: list[tuple[str, Any, int]],
    progress: Callable[[int], None] | None,
) -> list[CopyPart]:
    """Copies the missing fragments (key, fragment, rows) and merges small parts; returns all parts."""
    complete = [part for part in parts if part.rows >= PART_ROWS]
    small = sorted((part for part in parts if part.rows < PART_ROWS), key=lambda part: -part.rows)
    total, merged = sum(rows for _, _, rows in missing), []
    while small and (small[-1].rows <= 2 * total or not small[-1].rows) and total < PART_ROWS:
        merged.append(small.pop())
        total += merged[-1].rows
    new, group, group_rows = [], [], 0
    for entry in missing:
        group.append(entry)
        group_rows += entry[2]
        if group_rows >= PART_ROWS:
            new.append(_write(folder, name, dataset, shape, [], group, progress))
            group, group_rows = [], 0
    if group or merged or not (complete or small or new):
        new.append(_write(folder, name, dataset, shape, merged, group, progress))
    return [*complete, *small, *new]


def about_none_of(folder: Path, parts: Sequence[CopyPart], image_ids: Sequence[str]) -> list[CopyPart]:
    """The parts without a row about any of the images. A part that cannot be read is left out."""
    import duckdb

    clean = []
    for part in parts:
        with suppress(duckdb.Error), duckdb.connect(str(folder / part.file), read_only=True) as connection:
            query = "SELECT 1 FROM rows SEMI JOIN (SELECT unnest(?) AS image_id) USING (image_id) LIMIT 1"
            if connection.execute(query, [[*image_ids]]).fetchone() is None:
                clean.append(part)
    return clean


def prune(folder: Path, name: str, keep: set[str]) -> int:
    """Deletes the table's files that are not in `keep`; returns their number. Open ones stay readable."""
    deleted = 0
    for file in folder.glob(f"{name}-*"):
        if file.name not in keep:
            file.unlink(missing_ok=True)
            deleted += 1
    return deleted


@contextmanager
def locked(folder: Path, name: str, wait: bool = True) -> Iterator[bool]:
    """One process at a time changes a table's copy; gives False if another process does and `wait` is not set."""
    with (folder / f"{name}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _write(
    folder: Path,
    name: str,
    dataset: lance.LanceDataset,
    shape: list[list[str]],
    parts: list[CopyPart],
    fragments: list[tuple[str, Any, int]],
    progress: Callable[[int], None] | None,
) -> CopyPart:
    """Writes one file with the rows of these parts and fragments."""
    import duckdb

    names = [column for column, _ in shape]
    empty = pa.schema([dataset.schema.field(column).remove_metadata() for column in names]).empty_table()
    file = f"{name}-{uuid.uuid4().hex}.duckdb"
    new = folder / f"{file}.part"
    try:
        with duckdb.connect(str(new)) as connection:
            for number, part in enumerate(parts):
                quoted = str(folder / part.file).replace("'", "''")
                connection.execute(f"ATTACH '{quoted}' AS old_{number} (READ_ONLY)")
            connection.execute("BEGIN")  # one sync of the journal, not one per statement
            connection.register("incoming", empty)
            connection.execute("CREATE TABLE rows AS SELECT * FROM incoming")
            for number in range(len(parts)):
                connection.execute(f"INSERT INTO rows SELECT * FROM old_{number}.rows")
            if fragments:
                chosen = [fragment for _, fragment, _ in fragments]
                scanner = dataset.scanner(columns=names, fragments=chosen, batch_size=BATCH_ROWS, batch_readahead=4)
                connection.register("incoming", _reporting(scanner.to_reader(), progress))
                connection.execute("INSERT INTO rows SELECT * FROM incoming")
            connection.unregister("incoming")
            connection.execute("COMMIT")
            count = connection.execute("SELECT count(*) FROM rows").fetchone()
        assert count is not None
        new.replace(folder / file)
    finally:
        new.unlink(missing_ok=True)
        Path(f"{new}.wal").unlink(missing_ok=True)
    keys = [key for part in parts for key in part.fragments] + [key for key, _, _ in fragments]
    return CopyPart(file, int(count[0]), keys)


def _reporting(reader: pa.RecordBatchReader, progress: Callable[[int], None] | None) -> pa.RecordBatchReader:
    if progress is None:
        return reader

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            yield batch
            progress(batch.num_rows)

    return pa.RecordBatchReader.from_batches(reader.schema, batches())
