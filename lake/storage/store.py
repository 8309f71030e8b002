"""Reads and writes the Lance tables of a lake: at their newest version, by key, with retries.

It knows tables, versions and commits. It does not know what an embedding means, how an image is decoded, or what a
user typed.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import functools
import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lake.errors import BadInput, CouldNot, LakeBusy, NotALake
from lake.storage import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import lance
    import pyarrow as pa

T = TypeVar("T")

# Lance warns on stderr for every query; its default caches are 7 GiB for each open table.
os.environ.setdefault("LANCE_LOG", "error")
INDEX_CACHE_BYTES = 512 << 20
METADATA_CACHE_BYTES = 128 << 20
# Twice the longest run of conflicts that was observed on a loaded two-core machine.
COMMIT_ATTEMPTS = 12
# A data file that is missing this often was not removed meanwhile: it is lost.
REMOVED_ATTEMPTS = 5
# Values in one IN list: limits the length of a filter.
LOOK_UP_VALUES = 5_000


@dataclass(frozen=True)
class EmbedderRecord:
    """A row of `embedders`. `dim` and `weights_sha256` are None until the first `embed`."""

    name: str
    column: str
    dim: int | None
    weights_sha256: str | None
    weights: str | None
    preprocessing: str | None
    licence: str | None
    embeds_text: bool

    def require_dim(self) -> int:
        """The length of its vectors. Raises BadInput if the lake has no vectors of it yet."""
        if self.dim is None:
            raise BadInput(f"the lake has no {self.name} vectors yet; run: lakeloop embed --embedder {self.name}")
        return self.dim


class Lake:
    """The tables of a lake. Safe to share between threads, not across fork. Readers see the newest commit."""

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None) -> None:
        self.uri = uri.rstrip("/") if len(uri) > 1 else uri
        self.storage_options = storage_options
        self._datasets: dict[str, lance.LanceDataset] = {}
        self._lock = threading.Lock()
        self._session: Any = None
        self._connection: Any = None
        self.notices: list[str] = []  # what opening it repaired, for its opener to report
        self.guard: Callable[[], None] = _unguarded  # called before each commit; it raises to refuse it

    def __repr__(self) -> str:
        return f"Lake({self.uri!r})"

    @property
    def folder(self) -> Path | None:
        """The lake's folder, or None if it is on object storage."""
        return local_folder(self.uri)

    # Reading -----------------------------------------------------------------------------------------------

    def dataset(self, name: str, version: int | None = None) -> lance.LanceDataset:
        """The table as a Lance dataset, at its newest version or at `version`.

        Raises NotALake if the table does not exist, CouldNot if it is damaged.
        """
        import lance

        with self._lock:
            dataset = self._datasets.get(name)
            if dataset is None:
                if self._session is None:
                    self._session = lance.Session(
                        index_cache_size_bytes=INDEX_CACHE_BYTES, metadata_cache_size_bytes=METADATA_CACHE_BYTES
                    )
                try:
                    dataset = lance.dataset(
                        self.table_uri(name), session=self._session, storage_options=self.storage_options
                    )
                except ValueError as error:
                    if any(words in str(error) for words in ("was not found", "Not a directory")):
                        raise NotALake(f"no table {name!r} in {self.uri}") from error
                    raise CouldNot(
                        f"table {name!r} of {self.uri} is damaged; see lakeloop doctor, and lakeloop doctor --repair"
                    ) from error
            # checkout_latest() changes the object under its other users; a new handle does not.
            latest = dataset.latest_version
            if dataset.version != latest:
                dataset = dataset.checkout_version(latest)
            self._datasets[name] = dataset
        return dataset if version in (None, dataset.version) else dataset.checkout_version(version)

    def reopen(self, name: str) -> None:
        """Forgets what this object has read of the table: its files were changed by other means than a commit."""
        with self._lock:
            self._datasets.pop(name, None)
            self._session = None

    def is_open(self, name: str) -> bool:
        """Whether this process has read the table before."""
        with self._lock:
            return name in self._datasets

    def version(self, name: str) -> int:
        """The number of the table's newest commit: changes with every write, so it keys caches."""
        return int(self.dataset(name).version)

    def searchable(self, name: str) -> Any:
        """The table through LanceDB, for `search()`."""
        import lancedb

        with self._lock:
            if self._connection is None:
                session = lancedb.Session(
                    index_cache_size_bytes=INDEX_CACHE_BYTES, metadata_cache_size_bytes=METADATA_CACHE_BYTES
                )
                self._connection = lancedb.connect(
                    self.uri,
                    session=session,
                    read_consistency_interval=dt.timedelta(0),
                    storage_options=self.storage_options,
                )
            connection = self._connection
        return connection.open_table(name)

    def scan(self, name: str, columns: Sequence[str], filter: str | None = None) -> pa.Table:
        """The columns of the rows that pass a Lance filter, in memory. Raises OSError if it cannot be read."""
        dataset = self.dataset(name)
        try:
            return dataset.scanner(columns=list(columns), filter=filter).to_table()
        except ValueError as error:  # Arrow's streams raise it for every error in Lance
            if "LanceError(IO)" in str(error):
                raise OSError(str(error)) from error
            raise

    def known(self, name: str, column: str, values: Sequence[str]) -> set[str]:
        """Which of `values` the table's `column` already holds."""
        return set(self.look_up(name, [column], column, values)[column].to_pylist())

    def look_up(
        self, name: str, columns: Sequence[str], key: str, values: Sequence[str], filter: str | None = None
    ) -> pa.Table:
        """The columns of the rows whose text column `key` is one of `values`, and that pass a Lance filter."""
        import pyarrow as pa

        also = f" and ({filter})" if filter else ""
        parts = [values[start : start + LOOK_UP_VALUES] for start in range(0, len(values), LOOK_UP_VALUES)]
        # Without values, one look-up is still needed for the types of the columns.
        return pa.concat_tables(
            self.scan(name, columns, f"{key} in ({literals(part)}){also}") for part in parts or [[""]]
        )

    def erased(self, image_ids: Sequence[str]) -> dict[str, dt.datetime]:
        """Those of the images that were erased, and when: they must not be stored again."""
        rows = self.look_up("forgotten", ["image_id", "forgotten_at"], "image_id", image_ids)
        return dict(zip(rows["image_id"].to_pylist(), rows["forgotten_at"].to_pylist(), strict=True))

    def embedders(self) -> list[EmbedderRecord]:
        """The lake's embedders in order of registration: the first is the default."""
        rows = self.dataset("embedders").to_table().sort_by("position").to_pylist()
        names = EmbedderRecord.__dataclass_fields__
        return [EmbedderRecord(**{k: v for k, v in row.items() if k in names}) for row in rows]

    def promoted(self) -> dict[str, pa.DataType]:
        """The typed metadata columns declared at `init`, by name."""
        core = {c.name for c in schema.SAMPLES.columns}
        return {
            f.name: f.type
            for f in self.dataset("samples").schema
            if f.name not in core and not f.name.startswith(schema.VECTOR_PREFIX)
        }

    # Writing -----------------------------------------------------------------------------------------------

    def insert(self, name: str, rows: pa.Table) -> int:
        """Adds the rows whose key the table does not have; returns their number.

        One commit. Safe with other writers and on a retry. Keys must be distinct within `rows`.
        """
        if not rows.num_rows:
            return 0
        key = schema.TABLES[name].key

        def write() -> int:
            dataset = self.writable(name)
            if not key:
                import lance

                lance.write_dataset(rows, dataset, mode="append", storage_options=self.storage_options)
                return int(rows.num_rows)
            merge = dataset.merge_insert(key).when_not_matched_insert_all()
            return int(merge.execute(rows)["num_inserted_rows"])

        return self.commit(name, write)

    def update(self, name: str, rows: pa.Table) -> None:
        """Replaces whole rows that have the same key, and adds the others. For small tables only."""
        key = schema.TABLES[name].key
        self.commit(
            name,
            lambda: (
                self.writable(name)
                .merge_insert(key)
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .execute(rows)
            ),
        )

    def delete(self, name: str, filter: str) -> None:
        """Removes the rows that pass a Lance filter."""
        self.commit(name, lambda: self.writable(name).delete(filter))

    def add_column(self, name: str, field: pa.Field) -> None:
        """Adds a column of nulls, unless it exists. Changes only metadata; no data is rewritten.

        Raises BadInput if it exists with another type.
        """

        def write() -> None:
            present = self.dataset(name).schema
            if field.name in present.names:
                if present.field(field.name).type != field.type:
                    raise BadInput(
                        f"column {field.name!r} of {name} is {present.field(field.name).type}, not {field.type}"
                    )
                return
            self.writable(name).add_columns(field)

        self.commit(name, write)

    def register_embedder(self, name: str) -> EmbedderRecord:
        """The lake's record of the embedder; adds it if it is new.

        Raises BadInput if its vector column belongs to another embedder.
        """
        import pyarrow as pa

        records = self.embedders()
        column = schema.vector_column(name)
        for record in records:
            if record.name == name:
                return record
            if record.column == column:
                raise BadInput(f"embedders {record.name!r} and {name!r} would share the column {column}")
        row = {"name": name, "position": len(records), "column": column, "embeds_text": False, "added_at": now()}
        self.insert("embedders", pa.Table.from_pylist([row], schema=schema.EMBEDDERS.arrow()))
        return next(r for r in self.embedders() if r.name == name)

    def bind_embedder(self, record: EmbedderRecord) -> None:
        """Stores what the embedder's first run found out (dim, weights) and adds its vector column."""
        import pyarrow as pa

        assert record.dim is not None
        stored = self.dataset("embedders").to_table(filter=f"name = {literal(record.name)}")
        row = stored.to_pylist()[0] | {k: getattr(record, k) for k in EmbedderRecord.__dataclass_fields__}
        self.add_column("samples", pa.field(record.column, schema.vector_type(record.dim)))
        self.update("embedders", pa.Table.from_pylist([row], schema=schema.EMBEDDERS.arrow()))

    def index(self, name: str) -> None:
        """Brings every row written so far into the table's key indexes."""
        if schema.TABLES[name].indexed:
            self.commit(name, lambda: self.writable(name).optimize.optimize_indices())

    def create_table(self, table: schema.Table) -> None:
        """Creates an empty table with its key indexes, or completes a table that an interrupted run left unfinished."""
        import lance

        uri = self.table_uri(table.name)
        try:
            dataset = lance.dataset(uri, storage_options=self.storage_options)
        except ValueError:
            empty = table.arrow().empty_table()
            dataset = lance.write_dataset(empty, uri, mode="create", storage_options=self.storage_options)
        present = {field for index in dataset.describe_indices() for field in index.field_names}
        for column in table.indexed:
            if column not in present:
                dataset.create_scalar_index(column, "BTREE")

    def sync(self) -> None:
        """Writes all commits so far to the disk. On object storage they are safe already.

        Lance does not sync: after a power loss, even the newest commit may be gone.
        """
        if self.folder is None:
            return
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc().syncfs(folder):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), self.uri)
        finally:
            os.close(folder)

    def writable(self, name: str) -> lance.LanceDataset:
        """The table at its newest version, as a handle of its own: a write changes the handle, and Lance panics if
        another thread uses it meanwhile.
        """
        dataset = self.dataset(name)
        return dataset.checkout_version(dataset.version)

    def commit(self, name: str, write: Callable[[], T]) -> T:
        """Runs `write`, again after each commit conflict with another writer.

        Raises LakeBusy if it keeps conflicting, CouldNot if the disk is full, and what `guard` raises.
        """
        self.guard()
        for attempt in range(COMMIT_ATTEMPTS):
            try:
                return write()
            except OSError as error:
                text = str(error)
                if "No space left" in text or "os error 28" in text:
                    raise CouldNot(f"the disk of {self.uri} is full; nothing of this step was committed") from error
                removed = _removed(text) and attempt < REMOVED_ATTEMPTS  # else the table is damaged
                if not _overtaken(text) and not _outdated(text) and not removed:
                    raise
                time.sleep(random.uniform(0.5, 1.0) * min(0.05 * 2**attempt, 2.0))
        raise LakeBusy(f"table {name!r} of {self.uri} kept changing under {COMMIT_ATTEMPTS} attempts; try again")

    def tags(self, name: str) -> dict[str, int]:
        """The table's tagged versions, which no clean-up removes: tag -> version."""
        return {tag: int(entry["version"]) for tag, entry in self.dataset(name).tags.list().items()}

    def table_uri(self, name: str) -> str:
        return f"{self.uri}/{name}.lance"


def _unguarded() -> None:
    """The guard of a lake that anyone who has it may write."""


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@functools.cache
def local_folder(uri: str) -> Path | None:
    """The folder of a lake's URI, or None if it is on object storage."""
    scheme, _, rest = uri.partition("://")
    if not rest:
        return Path(uri)
    return Path(rest) if scheme == "file" else None


def _overtaken(text: str) -> bool:
    """Whether other writers committed first. Lance has the second text when its own retries failed, too."""
    return "conflict" in text.lower() or "Too many concurrent writers" in text


def _outdated(text: str) -> bool:
    """Whether a write failed because the version it started from was cleaned up meanwhile; a new attempt succeeds."""
    return "Not found" in text and "_versions" in text


def _removed(text: str) -> bool:
    """Whether a write failed because a file of the version it started from was removed, by an erasure for example."""
    return "Not found" in text and ".lance/" in text


def now() -> dt.datetime:
    """The current time, UTC, as every table stores it."""
    return dt.datetime.now(dt.UTC)


def literal(text: str) -> str:
    """The text as a literal, in the SQL of Lance and DuckDB."""
    return "'" + text.replace("'", "''") + "'"


def literals(values: Sequence[str]) -> str:
    """The inside of an IN list."""
    return ",".join(map(literal, values))
