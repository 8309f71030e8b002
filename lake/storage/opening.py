"""Creates a lake or opens one: checks first, migrations last."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from lake.errors import BadInput, CouldNot, NotALake
from lake.storage import migrations, renaming, schema, views
from lake.storage.lance_files import damage, quarantine, table_files
from lake.storage.store import Lake

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

L = TypeVar("L", bound=Lake)
# Four times as long as the kernel keeps a written page before it writes it to the disk.
UNSYNCED_SECONDS = 120.0


def create(
    uri: str,
    *,
    embedders: Sequence[str] = (),
    columns: dict[str, str] | None = None,
    storage_options: dict[str, str] | None = None,
) -> Lake:
    """Creates an empty lake at `uri` (a folder or an object store's URI) and opens it.

    `embedders` are registered in order; the first is the default. `columns` are metadata columns promoted to typed
    columns of samples: name -> string, int, float, bool or timestamp.
    Raises BadInput for an invalid column, or if there is a lake already.
    """
    return create_as(Lake, uri, embedders=embedders, columns=columns, storage_options=storage_options)


def create_as(
    kind: type[L],
    uri: str,
    *,
    embedders: Sequence[str],
    columns: dict[str, str] | None,
    storage_options: dict[str, str] | None,
) -> L:
    """`create`, for a class that adds methods to Lake."""
    promoted = {name: _promoted_type(name, type_) for name, type_ in (columns or {}).items()}
    lake = kind(uri, storage_options)
    if migrations.applied(lake):
        raise BadInput(f"{uri} is a lake already; `lakeloop embed --embedder NAME` adds an embedder to it")
    _refuse_foreign_folder(uri)
    if lake.folder is not None:  # images and predictions are not for every user of the machine
        lake.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The record of the migrations comes last and is the commit: the next `create` completes an interrupted one.
    for table in schema.TABLES.values():
        lake.create_table(table)
    for name, type_ in promoted.items():
        lake.add_column("samples", pa.field(name, type_))
    for name in embedders:
        lake.register_embedder(name)
    migrations.apply(lake)
    return lake


def open(uri: str, *, storage_options: dict[str, str] | None = None) -> Lake:
    """Opens the lake at `uri`, applying migrations it lacks.

    On a local disk, newest manifests that a power loss tore are moved aside first
    (`lake/storage/lance_files/quarantine.py`); the lake's `notices` report it.
    Raises NotALake if there is none, NewerLake if a later lakeloop wrote it, CouldNot if a table is damaged.
    """
    return open_as(Lake, uri, storage_options=storage_options)


def open_as(kind: type[L], uri: str, *, storage_options: dict[str, str] | None) -> L:
    """`open`, for a class that adds methods to Lake."""
    lake = kind(uri, storage_options)
    renaming.rename_table(lake)  # before the tables are checked, by their new names
    notices: list[str] = []
    if lake.folder is not None and quarantine.suspicious(uri):
        notices = quarantine.quarantine(uri)
        lake = kind(uri, storage_options)
        lake.notices += notices
    if lake.folder is not None:
        for name in schema.TABLES:
            _check_manifest(lake, lake.folder, name)
    if notices and migrations.applied(lake):
        try:
            restore_columns(lake)
        except (OSError, ValueError) as error:  # Lance's words for a file that it cannot read
            raise CouldNot(
                f"{uri} is damaged ({str(error)[:200]}); run: lakeloop doctor --repair --lake {uri}"
            ) from error
    if not migrations.applied(lake):
        raise NotALake(f"no lake at {uri}; make one with: lakeloop init --lake {uri}")
    migrations.apply(lake)
    return lake


def _check_manifest(lake: Lake, folder: Path, name: str) -> None:
    """Raises CouldNot if the table's newest manifest is missing or damaged: now, not at the first query or write."""
    lost = damage.lost_manifest(folder, name, UNSYNCED_SECONDS)
    newest = max((version for version, _ in table_files.manifests(folder / f"{name}.lance")), default=0)
    with suppress(NotALake):  # a table of a later migration
        if lost is None and lake.dataset(name).version >= newest:
            return
        what = (
            f"had version {lost}, and its manifest is missing" if lost else f"has a wrong manifest of version {newest}"
        )
        raise CouldNot(
            f"table {name!r} of {lake.uri} {what}; writing on would make it worse. Run: lakeloop doctor --repair --lake"
            f" {lake.uri}"
        )


def restore_columns(lake: Lake) -> None:
    """Adds the columns again that lost versions had added: other tables record that they exist."""
    migrations.repeat(lake)
    for record in lake.embedders():
        if record.dim is not None:
            lake.add_column("samples", pa.field(record.column, schema.vector_type(record.dim)))


def _promoted_type(name: str, type_: str) -> pa.DataType:
    columns = {c.name for c in schema.SAMPLES.columns} | {*views.REVIEWED}
    if not name.isidentifier() or not name.isascii():
        raise BadInput(f"column name {name!r}: use letters, digits and underscores")
    if name.startswith(schema.VECTOR_PREFIX) or name in columns:
        raise BadInput(f"column name {name!r} is taken by lakeloop")
    if type_ not in schema.PROMOTABLE:
        raise BadInput(f"column {name}: type {type_!r} is not one of {', '.join(schema.PROMOTABLE)}")
    return schema.PROMOTABLE[type_]


def _refuse_foreign_folder(uri: str) -> None:
    """Refuses a folder with other files in it: a typing error in --lake would litter it."""
    if "://" in uri or not os.path.exists(uri):
        return
    if not os.path.isdir(uri):
        raise BadInput(f"{uri} is a file, not a folder")
    ours = {f"{name}.lance" for name in schema.TABLES}
    others = [entry for entry in os.listdir(uri) if entry not in ours and not entry.startswith(".")]
    if others:
        raise BadInput(f"{uri} has other files in it ({sorted(others)[0]} ...); choose an empty one")
