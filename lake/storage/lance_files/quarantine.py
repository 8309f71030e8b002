"""Moves manifests that a power loss tore aside, so that a local lake opens at its newest whole commit.

Lance writes without a sync: after a power loss, the newest manifest may be empty, cut short or full of zeros. Then
every open fails or, for zeros, finds an empty table. Such a manifest is moved to `<lake>/quarantine/<table>/`, and the
version before it opens. No acknowledged event is lost: the spool forgets an event only after a sync. Damage of any
other kind is left as it is, for `lakeloop doctor --repair`.
"""

from __future__ import annotations

import os
from pathlib import Path

from lake.errors import CouldNot
from lake.storage import schema
from lake.storage.lance_files import table_files
from lake.storage.store import local_folder

FOLDER = "quarantine"


def quarantine(uri: str) -> list[str]:
    """Moves the newest manifests aside while they are torn, table by table; returns a sentence for each.

    Does nothing for object storage. Raises CouldNot if every manifest of a table is torn.
    """
    folder = local_folder(uri)
    notices: list[str] = []
    if folder is None or not folder.is_dir():
        return notices
    for name in schema.TABLES:
        notices += _quarantine_table(folder, name)
    return notices


def suspicious(uri: str) -> bool:
    """Whether the newest manifest of any table is torn: a check before opening, of a few milliseconds."""
    folder = local_folder(uri)
    if folder is None:
        return False
    for name in schema.TABLES:
        newest = table_files.manifests(folder / f"{name}.lance")[:1]
        if newest and torn(newest[0][1]) is not None:
            return True
    return False


def torn(manifest: Path) -> str | None:
    """How a manifest is torn; None if its end is there."""
    if manifest.stat().st_size == 0:
        return "it is empty"
    return None if table_files.ends_whole(manifest) else "its end is missing"


def manifests_aside(folder: Path, name: str) -> list[Path]:
    """The manifests of a table that were moved aside here and not looked at by a repair since."""
    return sorted((folder / FOLDER / name).glob("*.manifest*"))


def _quarantine_table(folder: Path, name: str) -> list[str]:
    listed = table_files.manifests(folder / f"{name}.lance")
    bad: list[tuple[int, Path, str]] = []
    for version, path in listed:
        damage = torn(path)
        if damage is None:
            break
        bad.append((version, path, damage))
    if not bad:
        return []
    if len(bad) == len(listed):
        raise CouldNot(
            f"no version of table {name!r} in {folder} can be read; run lakeloop doctor --repair, and if that cannot"
            " mend it, restore the lake from a backup: lakeloop restore"
        )
    back_to = listed[len(bad)][0]
    notices = [_move_aside(folder, name, v, path, damage, back_to) for v, path, damage in bad]
    return [notice for notice in notices if notice]


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
