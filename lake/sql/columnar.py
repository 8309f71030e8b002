"""The columnar copy: narrow columns of the lake's tables as DuckDB files, so that SQL runs at DuckDB's speed.

A table's copy is a few immutable files, each with the rows of some Lance fragments (`lake/sql/columnar_parts.py`). A
new version of the table costs only what is new in it: files whose fragments are unchanged stay, the rest is copied.
The copy is a cache: you may delete it at any time, no backup has it, and it is never older than the version that a
query needs. It has no vectors, image bytes or secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from lake.errors import NotALake
from lake.sql import columnar_parts
from lake.sql.columnar_parts import CopyManifest
from lake.sql.per_lake import PerLake
from lake.storage import schema
from lake.storage.lance_files.fragments import fingerprints
from lake.storage.side_folder import side_folder

if TYPE_CHECKING:
    import lance

    from lake.storage.store import Lake

FOLDER = "columnar"
# Smaller tables answer in a few milliseconds from Lance; for a single query, a copy costs more than it saves.
WORTH_ROWS = 20_000
# Never selectable in SQL, as image bytes.
SECRETS = {("keys", "secret_sha256")}
# By table, the version and the files that a lake's queries read.
pinned_tables: PerLake[dict[str, tuple[int, tuple[Path, ...]]]] = PerLake(dict)


@dataclass(frozen=True)
class PinnedTables:
    """Tables at one version each, as the files with their rows. The files survive the next refresh."""

    versions: dict[str, int]
    files: dict[str, tuple[Path, ...]]

    def statements(self) -> list[str]:
        """SQL that attaches the files, read-only, and gives each table its name."""
        statements = []
        for name, paths in self.files.items():
            sources = []
            for number, path in enumerate(paths):
                quoted = str(path).replace("'", "''")
                statements.append(f"ATTACH '{quoted}' AS {name}_{number} (READ_ONLY)")
                sources.append(f"SELECT * FROM {name}_{number}.rows")
            statements.append(f"CREATE VIEW {name} AS {' UNION ALL '.join(sources)}")
        return statements


def pin(
    lake: Lake,
    names: Iterable[str] | None = None,
    *,
    most_rows: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PinnedTables:
    """The named tables (all if None) at their newest versions; copies what is not copied yet.

    With `most_rows`, it leaves out a table that has more rows to copy, or that another process is copying; without
    it, it takes as long as needed. `progress` gets the number of rows after each batch. A table of a later migration
    is left out. Raises OSError if the files cannot be written.
    """
    versions, files = {}, {}
    for name in schema.TABLES if names is None else names:
        with suppress(NotALake):
            fresh = _fresh(lake, name, most_rows, progress)
            if fresh is not None:
                versions[name], files[name] = fresh
    return PinnedTables(versions, files)


def widen(lake: Lake, pinned: PinnedTables) -> PinnedTables:
    """The same tables, and all others with a fresh copy: for a connection that serves many queries."""
    more = [name for name in schema.TABLES if name not in pinned.files and exists(lake, name)]
    others = pin(lake, more, most_rows=0)
    return PinnedTables(pinned.versions | others.versions, pinned.files | others.files)


def refresh(lake: Lake, progress: Callable[[int], None] | None = None) -> PinnedTables:
    """Brings the copy of every large table to its newest version. Call it where nobody waits."""
    large = []
    for name in schema.TABLES:
        with suppress(NotALake):
            if lake.dataset(name).count_rows() >= WORTH_ROWS:
                large.append(name)
    return pin(lake, large, progress=progress)


def columns(name: str, dataset: lance.LanceDataset) -> list[str]:
    """The columns of a table that its copy has, in order."""
    hidden = {c.name for c in schema.TABLES[name].columns if c.type in ("blob", pa.binary())}
    return [
        f.name
        for f in dataset.schema
        if f.name not in hidden
        and (name, f.name) not in SECRETS
        and not (name == "samples" and f.name.startswith(schema.VECTOR_PREFIX))
    ]


def exists(lake: Lake, name: str) -> bool:
    """Whether the table was ever copied."""
    return name in pinned_tables(lake) or columnar_parts.path(folder(lake), name).exists()


def forget(lake: Lake, image_ids: Sequence[str]) -> int:
    """Deletes every file with a row about one of the images, and all files of tables without an image_id.

    Returns the number of deleted files. The next query copies the rest again.
    """
    target, deleted = folder(lake), 0
    for name, table in schema.TABLES.items():
        if not columnar_parts.path(target, name).exists():
            continue
        about_images = any(c.name == "image_id" for c in table.columns)
        with columnar_parts.locked(target, name):
            manifest = CopyManifest.read(target, name)
            parts = manifest.parts if manifest and about_images else []
            clean = columnar_parts.about_none_of(target, parts, image_ids)
            if manifest is not None:
                CopyManifest(manifest.version, manifest.columns, clean, []).write(target, name)
            deleted += columnar_parts.prune(target, name, {part.file for part in clean})
        pinned_tables(lake).pop(name, None)
    return deleted


def folder(lake: Lake) -> Path:
    """The copy's folder: in the lake's folder or, if that is on object storage or not writable, in the user's cache."""
    return side_folder(lake, FOLDER)


def _fresh(
    lake: Lake, name: str, most_rows: int | None, progress: Callable[[int], None] | None
) -> tuple[int, tuple[Path, ...]] | None:
    """The table's newest version and its files, copied if necessary; None if that is too much."""
    dataset = lake.dataset(name)
    pinned_version, paths = pinned_tables(lake).get(name, (None, ()))
    if pinned_version == int(dataset.version) and all(path.exists() for path in paths):
        return pinned_version, paths
    target = folder(lake)
    target.mkdir(parents=True, exist_ok=True)
    if most_rows is not None and _rows_to_copy(target, name, dataset) > most_rows:
        return None
    with columnar_parts.locked(target, name, wait=most_rows is None) as mine:
        if not mine:
            return None
        # Read again, because another process may have written a newer copy meanwhile.
        dataset = lake.dataset(name)
        version, shape = int(dataset.version), _shape(name, dataset)
        fragments = fingerprints(dataset, columns(name, dataset))
        manifest = CopyManifest.read(target, name)
        parts = columnar_parts.unchanged(target, manifest, shape, fragments)
        copied = {key for part in parts for key in part.fragments}
        missing = [(key, *fragment) for key, fragment in fragments.items() if key not in copied]
        if missing or not parts:
            parts = columnar_parts.extended(target, name, dataset, shape, parts, missing, progress)
        if manifest is None or (manifest.version, manifest.columns, manifest.parts) != (version, shape, parts):
            previous = [part.file for part in manifest.parts] if manifest else []
            CopyManifest(version, shape, parts, previous).write(target, name)
            columnar_parts.prune(target, name, {*previous, *(part.file for part in parts)})
    paths = tuple(target / part.file for part in parts)
    pinned_tables(lake)[name] = (version, paths)
    return version, paths


def _shape(name: str, dataset: lance.LanceDataset) -> list[list[str]]:
    return [[column, str(dataset.schema.field(column).type)] for column in columns(name, dataset)]


def _rows_to_copy(target: Path, name: str, dataset: lance.LanceDataset) -> int:
    fragments = fingerprints(dataset, columns(name, dataset))
    manifest = CopyManifest.read(target, name)
    parts = columnar_parts.unchanged(target, manifest, _shape(name, dataset), fragments)
    copied = {key for part in parts for key in part.fragments}
    return sum(rows for key, (_, rows) in fragments.items() if key not in copied)
