"""A lake made from a backup, at a new place. A backup is read as if a stranger had made it (`archive.py`).

Nothing is at the new place before everything is checked. What waited in the spools is drained then, and what was
erased, from this lake or from another that is named, does not come back.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.backups import archive, backup
from lake.errors import BadInput, CouldNot, NewerLake
from lake.spool import segments
from lake.storage import migrations, opening, schema, store
from lake.upkeep import erasure

if TYPE_CHECKING:
    from lake.storage.store import Lake


@dataclass
class Restored:
    """A restore that was done. `waiting` events could not be drained and are in the new lake's spool still."""

    lake: str
    made_at: str
    files: int = 0
    bytes: int = 0
    drained: int = 0
    waiting: int = 0
    erased: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    source: Path, expect: str | None = None, progress: Callable[[int], None] = lambda n: None
) -> archive.Contents:
    """Reads a whole backup and compares it with its list; `expect` is what the list's SHA-256 must be.

    Raises BadInput for the first thing that is wrong, NewerLake for a backup of a later lakeloop.
    """
    contents = archive.read(source, expect=expect, progress=progress)
    _refuse_newer(source, contents)
    return contents


def restore(
    source: Path,
    uri: str,
    *,
    forgotten_from: Lake | None = None,
    expect: str | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Restored:
    """Makes a lake at `uri`, a folder that does not exist or is empty, from the backup at `source`.

    Images erased from `forgotten_from`, the lake that is in use now, are erased from the new one, too: a backup may
    be older than an erasure. Raises as `verify` does, and BadInput when something is at `uri`.
    """
    started = time.monotonic()
    target = store.local_folder(uri)
    if target is None:
        raise CouldNot(f"{uri} is on object storage: restore to a folder, then copy it there with the store's own tool")
    half = target.with_name(target.name + ".part")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists already; choose another place for the lake")
    if half.exists():
        raise BadInput(f"{half} exists already, left by an interrupted run: remove it")
    listed = archive.read_list(source)
    if listed is not None:
        _refuse_newer(source, listed)
    half.mkdir(parents=True)
    try:
        contents = archive.read(source, half, expect, progress)
        _refuse_newer(source, contents)
        done = Restored(uri, str(contents.facts.get("made_at")), len(contents.files), contents.bytes)
        lake = opening.open(str(half))
        _drain(lake, half, done)
        done.erased = _erase(lake, forgotten_from)
        lake.sync()
        if target.exists():
            target.rmdir()
        half.rename(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    segments.sync_folder(target.parent)
    done.seconds = time.monotonic() - started
    return done


def _refuse_newer(source: Path, contents: archive.Contents) -> None:
    facts = contents.facts
    format, steps = facts.get("format"), facts.get("migrations")
    if not isinstance(format, int) or not isinstance(steps, list) or not isinstance(facts.get("tables"), dict):
        raise BadInput(f"{source} is no backup of lakeloop's: its {archive.LIST} does not say what is in it")
    newest = migrations.STEPS[-1][0]
    if format > backup.FORMAT or any(not isinstance(s, int) or s > newest for s in steps):
        raise NewerLake(f"{source} was made by a newer lakeloop ({facts.get('lakeloop')}): upgrade lakeloop")


def _drain(lake: Lake, folder: Path, done: Restored) -> None:
    """Brings what waited in the copies of the spools into the tables."""
    from lake.spool.drain import drain
    from lake.spool.spool import Spool

    for path in sorted(folder.glob("spool*")):
        spool = Spool(path)
        try:
            report = drain(lake, spool)
            done.drained += 0 if report is None else report.events
            depth = spool.depth()
        finally:
            spool.close()
        done.waiting += depth.events + depth.parked
        if path.name != "spool" and not depth.events and not depth.parked:
            shutil.rmtree(path)


def _erase(lake: Lake, other: Lake | None) -> int:
    """Erases what tombstones name, of this lake and of the other; returns how many images were still there."""
    tombstones = {i for held in (lake, other) if held is not None for i in _forgotten(held)}
    unknown = sorted(tombstones - _forgotten(lake))
    present: set[str] = set()
    for name in erasure.TABLES:
        present |= lake.known(name, "image_id", sorted(tombstones))
    if present or unknown:
        erasure.forget(lake, sorted(present | set(unknown)), reason="erased before the restore", alone=True)
    return len(present)


def _forgotten(lake: Lake) -> set[str]:
    return set(lake.scan(schema.FORGOTTEN.name, ["image_id"])["image_id"].to_pylist())
