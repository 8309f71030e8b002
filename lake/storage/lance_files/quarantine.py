"""Putting aside what a power loss tore, so that a local lake opens at the newest commit that is whole.

Lance writes without a sync: after a power loss the newest manifest may be empty, cut short or full of zeros, and
every open fails (or, full of zeros, finds an empty table). Such a manifest is moved to `<lake>/quarantine/<table>/`;
the version before it is what opens then. Nothing acknowledged is lost by it: the spool forgets an event only after a
sync.
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
# The kernel writes every page back within half a minute: only commits of the last moments can be torn by a power loss.
UNSYNCED_SECONDS = 120.0


def quarantine(uri: str, *, files: bool = False) -> list[str]:
    """Moves damaged newest manifests aside, table by table, until each opens; returns what was done, a sentence each.

    With `files`, commits of the last two minutes whose data files are torn go the same way (a look at every data
    file: for the start of a service, not for every open). Does nothing for object storage.
    Raises CouldNot when no version of a table is whole.
    """
    folder = local_folder(uri)
    said: list[str] = []
    if folder is None or not folder.is_dir():
        return said
    for name in schema.TABLES:
        said += _one_table(folder, name, files)
    return said


def suspicious(uri: str) -> bool:
    """Whether the newest manifest of any table lacks its end: a cheap look before opening, a few milliseconds."""
    folder = local_folder(uri)
    if folder is None:
        return False
    for name in schema.TABLES:
        newest = table_files.manifests(folder / f"{name}.lance")[:1]
        if newest and not table_files.ends_whole(newest[0][1]):
            return True
    return False


def _one_table(folder: Path, name: str, files: bool) -> list[str]:
    table = folder / f"{name}.lance"
    listed = table_files.manifests(table)
    if not listed:  # not made yet
        return []
    bad: list[tuple[int, Path, str]] = []
    for version, path in listed:
        why = _damage(table, version, path)
        if why is None:
            break
        bad.append((version, path, why))
    else:
        raise CouldNot(
            f"no version of table {name!r} in {folder} can be read; restore the lake from a backup: lakeloop restore"
        )
    if files:
        bad += _torn(table, listed[len(bad) :], listed[0][1].stat().st_mtime)
    back_to = listed[len(bad)][0]
    done = [_put_aside(folder, name, v, path, why, back_to) for v, path, why in bad]
    return [sentence for sentence in done if sentence]


def _torn(table: Path, listed: Sequence[tuple[int, Path]], newest: float) -> list[tuple[int, Path, str]]:
    """Commits of the two minutes before `newest`, seconds since 1970, whose data files are torn.

    None when an older commit is torn just so: going back would cost commits and mend nothing.
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
    """What is wrong with a manifest, or None."""
    if path.stat().st_size == 0:
        return "it is empty"
    if not table_files.ends_whole(path):
        return "its end is missing"
    try:
        opened = _open(table, version)
    except (ValueError, OSError) as error:
        return str(error).split(", /")[0]
    return None if opened.version == version else "it says another version"


def _open(table: Path, version: int) -> lance.LanceDataset:
    import lance

    return lance.dataset(str(table), version=version)


def _put_aside(folder: Path, name: str, version: int, path: Path, why: str, back_to: int) -> str | None:
    place = folder / FOLDER / name
    place.mkdir(parents=True, exist_ok=True)
    target = place / path.name
    # The name may be taken: after a second power loss the same version can be torn again.
    number = 1
    while target.exists():
        target = place / f"{path.name}.{number}"
        number += 1
    try:
        os.rename(path, target)
    except FileNotFoundError:  # another process that opens the lake was quicker
        return None
    return f"table {name}: version {version} is damaged ({why}); moved it to {target}, version {back_to} is what opens"
