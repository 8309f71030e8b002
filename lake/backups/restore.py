"""Makes a new lake from a backup. It trusts nothing in the backup: see `archive.py`.

The new lake appears only after everything is checked. Waiting events of the spools are drained, and images that were
erased, from this lake or from another one that you name, do not come back.
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
class RestoreReport:
    """A finished restore. `waiting` events could not be drained and are still in the spool of the new lake."""

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
) -> archive.ArchiveContents:
    """Reads a whole backup and compares it with its list. `expect` is the expected SHA-256 of the list.

    Raises BadInput for the first error, NewerLake for a backup of a newer lakeloop.
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
) -> RestoreReport:
    """Makes a lake at `uri` from the backup at `source`. `uri` must be an empty folder or not exist.

    Images erased from `forgotten_from`, the lake in use now, are also erased from the new one, because a backup may be
    older than an erasure. Raises as `verify` does, and BadInput if `uri` is not empty.
    """
    started = time.monotonic()
    target = store.local_folder(uri)
    if target is None:
        raise CouldNot(f"{uri} is on object storage: restore to a folder, then copy it with the store's own tool")
    half = target.with_name(target.name + ".part")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists already; choose another folder")
    if half.exists():
        raise BadInput(f"{half} exists already, left by an interrupted run: remove it")
    contents = archive.read_list(source)
    if contents is not None:
        _refuse_newer(source, contents)
    half.mkdir(parents=True)
    try:
        contents = archive.read(source, half, expect, progress)
        _refuse_newer(source, contents)
        report = RestoreReport(uri, str(contents.facts.get("made_at")), len(contents.files), contents.bytes)
        lake = opening.open(str(half))
        _drain(lake, half, report)
        report.erased = _erase(lake, forgotten_from)
        lake.sync()
        if target.exists():
            target.rmdir()
        half.rename(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    segments.sync_folder(target.parent)
    report.seconds = time.monotonic() - started
    return report


def _refuse_newer(source: Path, contents: archive.ArchiveContents) -> None:
    facts = contents.facts
    format, steps = facts.get("format"), facts.get("migrations")
    if not isinstance(format, int) or not isinstance(steps, list) or not isinstance(facts.get("tables"), dict):
        raise BadInput(
            f"{source} is not a backup of lakeloop: its {archive.LIST} lacks its format, migrations or tables"
        )
    newest = migrations.STEPS[-1][0]
    if format > backup.FORMAT or any(not isinstance(s, int) or s > newest for s in steps):
        raise NewerLake(f"{source} was made by a newer lakeloop ({facts.get('lakeloop')}): upgrade lakeloop")


def _drain(lake: Lake, folder: Path, report: RestoreReport) -> None:
    """Drains the copied spools into the tables."""
    from lake.spool.drain import drain
    from lake.spool.spool import Spool

    for path in sorted(folder.glob("spool*")):
        spool = Spool(path)
        try:
            drained = drain(lake, spool)
            report.drained += 0 if drained is None else drained.events
            depth = spool.depth()
        finally:
            spool.close()
        report.waiting += depth.events + depth.parked
        if path.name != "spool" and not depth.events and not depth.parked:
            shutil.rmtree(path)


def _erase(lake: Lake, other: Lake | None) -> int:
    """Erases the images with tombstones in this lake or the other. Returns how many were still there."""
    tombstones = {i for source in (lake, other) if source is not None for i in _forgotten(source)}
    unknown = sorted(tombstones - _forgotten(lake))
    present: set[str] = set()
    for name in erasure.TABLES:
        present |= lake.known(name, "image_id", sorted(tombstones))
    if present or unknown:
        erasure.forget(lake, sorted(present | set(unknown)), reason="erased before the restore", alone=True)
    return len(present)


def _forgotten(lake: Lake) -> set[str]:
    return set(lake.scan(schema.FORGOTTEN.name, ["image_id"])["image_id"].to_pylist())
