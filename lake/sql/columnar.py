"""The columnar copy: narrow columns of the lake's tables as native DuckDB files, so that SQL runs at DuckDB's speed.

A table's copy is a few immutable files, its parts, each with the rows of some Lance fragments. A new version of the
table costs what is new in it: parts whose fragments are all still there as they were stay, the rest is copied. Small
parts are merged into parts at least twice as large as the next, so there are few of them and a row is copied only a
few times. It is a cache: it may be deleted at any time, belongs to no backup, and is never older than the version it
is asked for. Vectors, image bytes and secrets are not in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.errors import NotALake
from lake.sql.per_lake import PerLake
from lake.storage import schema
from lake.storage.lance_files.fragments import fingerprints

if TYPE_CHECKING:
    import lance

    from lake.storage.store import Lake

FOLDER = "columnar"
# A part of this many rows is whole: it is not merged with others any more.
PART_ROWS = 1_000_000
BATCH_ROWS = 65_536
# Below, Lance answers in a few milliseconds, and a copy costs more than it saves who asks once.
WORTH_ROWS = 20_000
# Never selectable in SQL, beside image bytes and vectors.
SECRETS = {("keys", "secret_sha256")}


# By table, the version and the files that a lake's queries read.
pinned_tables: PerLake[dict[str, tuple[int, tuple[Path, ...]]]] = PerLake(dict)


@dataclass(frozen=True)
class Pinned:
    """Tables at one version each, as the files that hold their rows. The files are there for the next refresh, too."""

    versions: dict[str, int]
    files: dict[str, tuple[Path, ...]]

    def statements(self) -> list[str]:
        """SQL that attaches the files, read-only, and gives each table its name."""
        made = []
        for name, paths in self.files.items():
            sources = []
            for number, path in enumerate(paths):
                quoted = str(path).replace("'", "''")
                made.append(f"ATTACH '{quoted}' AS {name}_{number} (READ_ONLY)")
                sources.append(f"SELECT * FROM {name}_{number}.rows")
            made.append(f"CREATE VIEW {name} AS {' UNION ALL '.join(sources)}")
        return made


def pin(
    lake: Lake,
    names: Iterable[str] | None = None,
    *,
    most_rows: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Pinned:
    """The tables (all, when none are named) at their newest versions, copied as far as that is still to be done.

    With `most_rows`, a table that has more rows to copy is left out, and so is one that another process copies just
    now; without it, it takes as long as it takes. `progress` is told how many rows were copied. A table of a later
    migration is left out. Raises OSError when nothing can be written.
    """
    versions, files = {}, {}
    for name in schema.TABLES if names is None else names:
        with suppress(NotALake):
            fresh = _fresh(lake, name, most_rows, progress)
            if fresh is not None:
                versions[name], files[name] = fresh
    return Pinned(versions, files)


def widen(lake: Lake, pinned: Pinned) -> Pinned:
    """The same tables, and the others whose copy is there and fresh: for a connection that many queries are to use."""
    more = [name for name in schema.TABLES if name not in pinned.files and exists(lake, name)]
    other = pin(lake, more, most_rows=0)
    return Pinned(pinned.versions | other.versions, pinned.files | other.files)


def refresh(lake: Lake, progress: Callable[[int], None] | None = None) -> Pinned:
    """Brings the copy of every table that is worth one up to its newest version: where nobody waits for an answer."""
    worth = []
    for name in schema.TABLES:
        with suppress(NotALake):
            if lake.dataset(name).count_rows() >= WORTH_ROWS:
                worth.append(name)
    return pin(lake, worth, progress=progress)


def columns(name: str, dataset: lance.LanceDataset) -> list[str]:
    """The columns of a table that SQL sees at DuckDB's speed, in order."""
    hidden = {c.name for c in schema.TABLES[name].columns if c.type in ("blob", pa.binary())}
    return [
        f.name
        for f in dataset.schema
        if f.name not in hidden
        and (name, f.name) not in SECRETS
        and not (name == "predictions" and f.name.startswith(schema.VECTOR_PREFIX))
    ]


def exists(lake: Lake, name: str) -> bool:
    """Whether the table was ever copied."""
    return name in pinned_tables(lake) or (folder(lake) / f"{name}.json").exists()


def forget(lake: Lake, image_ids: Sequence[str]) -> int:
    """Deletes every part with a row about one of the images, and the parts of tables without rows an image.

    Returns how many files went. What is read next is copied anew.
    """
    import duckdb

    at, gone = folder(lake), 0
    for name, table in schema.TABLES.items():
        if not (at / f"{name}.json").exists():
            continue
        about_images = any(c.name == "image_id" for c in table.columns)
        with _locked(at, name):
            kept = []
            known = _Manifest.read(at, name)
            for part in known.parts if known and about_images else []:
                with suppress(duckdb.Error), duckdb.connect(str(at / part.file), read_only=True) as connection:
                    asked = "SELECT 1 FROM rows SEMI JOIN (SELECT unnest(?) AS image_id) USING (image_id) LIMIT 1"
                    if connection.execute(asked, [[*image_ids]]).fetchone() is None:
                        kept.append(part)
            if known is not None:
                _Manifest(known.version, known.columns, kept, []).write(at, name)
            gone += _prune(at, name, {part.file for part in kept})
        pinned_tables(lake).pop(name, None)
    return gone


def folder(lake: Lake) -> Path:
    """Where the copy lies: in the lake's folder, else (on object storage, or not writable) in the user's cache."""
    if lake.folder is not None and os.access(lake.folder, os.W_OK):
        return lake.folder.absolute() / FOLDER  # who attaches the files may work elsewhere
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "lakeloop" / hashlib.sha256(lake.uri.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Part:
    """One file: its name, its rows, and the keys of the fragments they come from."""

    file: str
    rows: int
    fragments: list[str]


@dataclass(frozen=True)
class _Manifest:
    """What there is of a table: the version it is whole at, and the files of the manifest before."""

    version: int
    columns: list[list[str]]
    parts: list[_Part]
    previous: list[str]

    @staticmethod
    def read(at: Path, name: str) -> _Manifest | None:
        import duckdb

        try:
            said = json.loads((at / f"{name}.json").read_text())
            if said.pop("duckdb") != duckdb.__version__:
                return None
            return _Manifest(**(said | {"parts": [_Part(**part) for part in said["parts"]]}))
        except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours: all is copied
            return None

    def write(self, at: Path, name: str) -> None:
        import duckdb

        said = {"duckdb": duckdb.__version__, **vars(self), "parts": [vars(part) for part in self.parts]}
        new = at / f"{name}.{uuid.uuid4().hex}.part"
        new.write_text(json.dumps(said))
        new.replace(at / f"{name}.json")


def _fresh(
    lake: Lake, name: str, most_rows: int | None, progress: Callable[[int], None] | None
) -> tuple[int, tuple[Path, ...]] | None:
    """The table's newest version and its files, made when they are not there; None when that is too much."""
    dataset = lake.dataset(name)
    held, paths = pinned_tables(lake).get(name, (None, ()))
    if held == int(dataset.version) and all(path.exists() for path in paths):
        return held, paths
    at = folder(lake)
    at.mkdir(parents=True, exist_ok=True)
    if most_rows is not None and _missing(at, name, dataset) > most_rows:
        return None
    with _locked(at, name, wait=most_rows is None) as mine:
        if not mine:
            return None
        # Anew, since another process may have gone further while this one waited.
        dataset = lake.dataset(name)
        version, shape = int(dataset.version), _shape(name, dataset)
        fragments = fingerprints(dataset, columns(name, dataset))
        known = _Manifest.read(at, name)
        parts = _still_whole(at, known, shape, fragments)
        there = {key for part in parts for key in part.fragments}
        missing = [(key, *found) for key, found in fragments.items() if key not in there]
        if missing or not parts:
            parts = _copy(at, name, dataset, shape, parts, missing, progress)
        if known is None or (known.version, known.columns, known.parts) != (version, shape, parts):
            previous = [part.file for part in known.parts] if known else []
            _Manifest(version, shape, parts, previous).write(at, name)
            _prune(at, name, {*previous, *(part.file for part in parts)})
    paths = tuple(at / part.file for part in parts)
    pinned_tables(lake)[name] = (version, paths)
    return version, paths


def _shape(name: str, dataset: lance.LanceDataset) -> list[list[str]]:
    return [[column, str(dataset.schema.field(column).type)] for column in columns(name, dataset)]


def _still_whole(
    at: Path, known: _Manifest | None, shape: list[list[str]], fragments: dict[str, tuple[Any, int]]
) -> list[_Part]:
    """The parts that hold nothing but fragments the table has as they were."""
    if known is None or known.columns != shape:
        return []
    there = [part for part in known.parts if (at / part.file).exists()]
    return [part for part in there if all(key in fragments for key in part.fragments)]


def _missing(at: Path, name: str, dataset: lance.LanceDataset) -> int:
    """How many rows are still to be copied."""
    fragments = fingerprints(dataset, columns(name, dataset))
    parts = _still_whole(at, _Manifest.read(at, name), _shape(name, dataset), fragments)
    there = {key for part in parts for key in part.fragments}
    return sum(rows for key, (_, rows) in fragments.items() if key not in there)


def _copy(
    at: Path,
    name: str,
    dataset: lance.LanceDataset,
    shape: list[list[str]],
    parts: list[_Part],
    missing: list[tuple[str, Any, int]],
    progress: Callable[[int], None] | None,
) -> list[_Part]:
    """The parts with the missing fragments (key, fragment, rows) added, the small ones at their end merged."""
    whole = [part for part in parts if part.rows >= PART_ROWS]
    small = sorted((part for part in parts if part.rows < PART_ROWS), key=lambda part: -part.rows)
    total, merged = sum(rows for _, _, rows in missing), []
    while small and (small[-1].rows <= 2 * total or not small[-1].rows) and total < PART_ROWS:
        merged.append(small.pop())
        total += merged[-1].rows
    made, group, held = [], [], 0
    for one in missing:
        group.append(one)
        held += one[2]
        if held >= PART_ROWS:
            made.append(_write(at, name, dataset, shape, [], group, progress))
            group, held = [], 0
    if group or merged or not (whole or small or made):
        made.append(_write(at, name, dataset, shape, merged, group, progress))
    return [*whole, *small, *made]


def _write(
    at: Path,
    name: str,
    dataset: lance.LanceDataset,
    shape: list[list[str]],
    parts: list[_Part],
    fragments: list[tuple[str, Any, int]],
    progress: Callable[[int], None] | None,
) -> _Part:
    """One file with the rows of these parts and fragments."""
    import duckdb

    names = [column for column, _ in shape]
    empty = pa.schema([dataset.schema.field(column).remove_metadata() for column in names]).empty_table()
    file = f"{name}-{uuid.uuid4().hex}.duckdb"
    new = at / f"{file}.part"
    try:
        with duckdb.connect(str(new)) as connection:
            for number, part in enumerate(parts):
                quoted = str(at / part.file).replace("'", "''")
                connection.execute(f"ATTACH '{quoted}' AS old_{number} (READ_ONLY)")
            connection.execute("BEGIN")  # one sync of the journal instead of one a statement
            connection.register("incoming", empty)
            connection.execute("CREATE TABLE rows AS SELECT * FROM incoming")
            for number in range(len(parts)):
                connection.execute(f"INSERT INTO rows SELECT * FROM old_{number}.rows")
            if fragments:
                scanner = dataset.scanner(
                    columns=names, fragments=[one for _, one, _ in fragments], batch_size=BATCH_ROWS, batch_readahead=4
                )
                connection.register("incoming", _told(scanner.to_reader(), progress))
                connection.execute("INSERT INTO rows SELECT * FROM incoming")
            connection.unregister("incoming")
            connection.execute("COMMIT")
            found = connection.execute("SELECT count(*) FROM rows").fetchone()
        assert found is not None
        new.replace(at / file)
    finally:
        new.unlink(missing_ok=True)
        Path(f"{new}.wal").unlink(missing_ok=True)
    keys = [key for part in parts for key in part.fragments] + [key for key, _, _ in fragments]
    return _Part(file, int(found[0]), keys)


def _told(reader: pa.RecordBatchReader, progress: Callable[[int], None] | None) -> pa.RecordBatchReader:
    if progress is None:
        return reader

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            yield batch
            progress(batch.num_rows)

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _prune(at: Path, name: str, kept: set[str]) -> int:
    """Deletes the table's files that are not among `kept`; returns how many. Who has them open keeps reading them."""
    gone = 0
    for path in at.glob(f"{name}-*"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
            gone += 1
    return gone


@contextmanager
def _locked(at: Path, name: str, wait: bool = True) -> Iterator[bool]:
    """One process at a time works at a table's copy; False when another does and `wait` is not set."""
    with (at / f"{name}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
