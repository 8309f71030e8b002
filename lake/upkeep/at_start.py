"""Looks at a lake's files before a service starts on it, and mends only what an unclean stop explains.

Lance does not sync, and the kernel writes every page back within half a minute. So a power loss can tear only what was
committed in the last moments, and the spool still has the events of those commits. Damage that is older has another
cause: then the service does not start, because it would write on and make it harder to see what was lost.
"""

from __future__ import annotations

import time
from pathlib import Path

from lake.errors import CouldNot
from lake.storage import schema
from lake.storage.lance_files import damage, quarantine, table_files
from lake.storage.lance_files.damage import TableDamage
from lake.storage.leader_lock import leader
from lake.storage.opening import UNSYNCED_SECONDS
from lake.storage.store import Lake, local_folder
from lake.upkeep import repair

LEADER_WAIT = 60.0


def mend(uri: str) -> list[str]:
    """Sets aside what an unclean stop tore of the commits of the last two minutes; returns a sentence for each thing.

    It compares sizes and ends of files, so it takes milliseconds. Does nothing for object storage or without a lake.
    Raises CouldNot, with what to run, if anything older is damaged.
    """
    folder = local_folder(uri)
    if folder is None or not folder.is_dir():
        return []
    notices = quarantine.quarantine(uri)
    damaged = damage.of_lake(folder, [*schema.TABLES], deep=False)
    older = [found for found in damaged if not _unclean_stop(folder, found)]
    if older:
        raise CouldNot(
            f"table {older[0].table!r} of {uri} is damaged: {older[0].sentences()[0]}; nothing was repaired. Stop every"
            f" process that writes to the lake, and run: lakeloop doctor --repair --lake {uri}"
        )
    if damaged:
        lake = Lake(uri)
        with leader(lake, LEADER_WAIT):  # whoever held it may have changed what was found
            damaged = damage.of_lake(folder, [*schema.TABLES], deep=False)
            notices += repair.repair_tables(lake, [found for found in damaged if _unclean_stop(folder, found)])
    return notices


def _unclean_stop(folder: Path, found: TableDamage) -> bool:
    """Whether everything that is damaged was written in the last two minutes, or moved aside when opening."""
    table = folder / f"{found.table}.lance"
    since = time.time() - UNSYNCED_SECONDS
    if found.manifests or found.tags or found.from_copy or found.base is None:
        return False
    if damage.lost_manifest(folder, found.table, UNSYNCED_SECONDS) is not None:
        return False
    older = [version for version, path in table_files.manifests(table) if path.stat().st_mtime < since]
    named = _named(table, older[0]) if older else set()
    return not any(path in named for path in (*found.files, *found.deletions)) and not (
        found.indexes and not found.files
    )


def _named(table: Path, version: int) -> set[str]:
    import lance

    from_version = lance.dataset(str(table), version=version)
    return table_files.named(from_version, {version})
