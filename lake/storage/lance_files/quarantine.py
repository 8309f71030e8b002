"""Moves manifests that a power loss damaged aside, so that a local lake opens at its newest whole commit.

Lance writes without a sync: after a power loss, the newest manifest may be empty, cut short or full of zeros. Then
every open fails or, for zeros, finds an empty table. Such a manifest is moved to `<lake>/quarantine/<table>/`, and the
version before it opens. No acknowledged event is lost: the spool forgets an event only after a sync.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lake.errors import CouldNot
from lake.storage import schema
from lake.storage.lance_files import table_files
from lake.storage.store import local_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lance

FOLDER = "quarantine"
# The kernel writes every page back within half a minute, so a power loss can tear only the last commits.
UNSYNCED_SECONDS = 120.0


def quarantine(uri: str, *, files: bool = False) -> list[str]:
    """Moves the newest manifests aside while they are damaged, table by table; returns a sentence for each.

    With `files`, so do commits of the last two minutes whose data files are torn: this looks at every data file, for
    the start of a service, not for every open. Does nothing for object storage.
    Raises CouldNot if no version of a table is whole.
    """
    folder = local_folder(uri)
    notices: list[str] = []
    if folder is None or not folder.is_dir():
        return notices
    for name in schema.TABLES:
        notices += _quarantine_table(folder, name, files)
    return notices


def suspicious(uri: str) -> bool:
    """Whether the newest manifest of any table lacks its end: a check before opening, of a few milliseconds."""
    folder = local_folder(uri)
    if folder is None:
        return False
    for name in schema.TABLES:
        newest = table_files.manifests(folder / f"{name}.lance")[:1]
        if newest and not table_files.ends_whole(newest[0][1]):
            return True
    return False


def _quarantine_table(folder: Path, name: str, files: bool) -> list[str]:
    table = folder / f"{name}.lance"
    listed = table_files.manifests(table)
    if not listed:  # not created yet
        return []
    bad: list[tuple[int, Path, str]] = []
    for version, path in listed:
        damage = _damage(table, version, path)
        if damage is None:
            break
        bad.append((version, path, damage))
    else:
        raise CouldNot(
            f"no version of table {name!r} in {folder} can be read; restore the lake from a backup: lakeloop restore"
        )
    if files:
        bad += _torn(table, listed[len(bad) :], listed[0][1].stat().st_mtime)
    back_to = listed[len(bad)][0]
    notices = [_move_aside(folder, name, v, path, damage, back_to) for v, path, damage in bad]
    return [notice for notice in notices if notice]


def _torn(table: Path, listed: Sequence[tuple[int, Path]], newest: float) -> list[tuple[int, Path, str]]:
    """Commits of the two minutes before `newest`, seconds since 1970, whose data files are torn.

    Empty if an older commit is torn in the same way: going back would lose commits and repair nothing.
    """
    bad: list[tuple[int, Path, str]] = []
    for version, path in listed:
        torn = next(table_files.torn(_open(table, version), table), None)
        if torn is None:
            return bad
        if newest - path.stat().st_mtime > UNSYNCED_SECONDS:
            break
        bad.append((version, path, f"its file {torn} is torn"))
    return []


def _damage(table: Path, version: int, path: Path) -> str | None:
    """What is wrong with a manifest, or None if it is whole."""
    if path.stat().st_size == 0:
        return "it is empty"
    if not table_files.ends_whole(path):
        return "its end is missing"
    try:
        opened = _open(table, version)
    except (ValueError, OSError) as error:
        return str(error).split(", /")[0]
    return None if opened.version == version else "it belongs to another version"


def _open(table: Path, version: int) -> lance.LanceDataset:
    import lance

    return lance.dataset(str(table), version=version)


def _move_aside(folder: Path, name: str, version: int, path: Path, damage: str, back_to: int) -> str | None:
    target_folder = folder / FOLDER / name
    target_folder.mkdir(parents=True, exist_ok=True)
    target = target_folder / path.name
    # The name may exist: after a second power loss, the same version can be torn again.
    number = 1
    while target.exists():
        target = target_folder / f"{path.name}.{number}"
        number += 1
    try:
        os.rename(path, target)
    except FileNotFoundError:  # another process that opens the lake was faster
        return None
    return (
        f"table {name}: version {version} is damaged ({damage}); moved it to {target}; version {back_to} opens instead"
    )
