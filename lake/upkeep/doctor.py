"""What is wrong with a lake, and the way out of each: a check-up that changes nothing unless it is told to repair.

It asks of every table whether it opens, whether its files are whole and its rows under the indexes, of the disk and
the spools whether they have room and what waits, and `lake/upkeep/consistency.py` whether the rows go together.
"""

from __future__ import annotations

import datetime as dt
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lake.errors import LakeloopError, NotALake
from lake.sql import connections
from lake.storage import indexes, leader_lock, opening, schema, store
from lake.storage.lance_files import quarantine, table_files
from lake.upkeep import backup_list, consistency, maintenance
from lake.upkeep.consistency import Finding, Report

if TYPE_CHECKING:
    from lake.spool.spool import Spool
    from lake.storage.store import Lake

FREE_BYTES = 2 << 30
AHEAD = dt.timedelta(minutes=5)
WAITS_SECONDS = 300.0


def examine(
    uri: str,
    *,
    spools: Sequence[Spool] = (),
    repair: bool = False,
    full: bool = False,
    storage_options: dict[str, str] | None = None,
) -> Report:
    """Examines the lake at `uri`. `full` reads and hashes every image, else a sample of them.

    `repair` puts torn commits of the last moments aside, completes indexes, removes leftovers and repeated rows of
    one key, and erases again what was erased and came back. Raises NotALake when there is no lake.
    """
    started = time.monotonic()
    report = Report()
    folder = store.local_folder(uri)
    if repair:
        report.mended += quarantine.quarantine(uri, files=True)
    try:
        lake = opening.open(uri, storage_options=storage_options)
    except NotALake:
        raise
    except LakeloopError as error:
        report.findings.append(
            Finding("opens", "wrong", str(error), "restore the lake from a backup: lakeloop restore")
        )
        return report
    report.mended += lake.notices
    for check in (_files, _leftovers, _indexes, _clock, *consistency.CHECKS):
        _run(report, check.__name__.strip("_"), check(lake, report, repair))
    _run(report, "bytes", consistency.contents(lake, report, full))
    if folder is not None:
        report.findings += _disk(lake, folder)
    for spool in spools:
        report.findings += _spool(spool)
    report.seconds = time.monotonic() - started
    return report


def _run(report: Report, name: str, findings: Iterator[Finding]) -> None:
    """Collects what a check finds; that it cannot read the lake is a finding, too."""
    try:
        report.findings += findings
    except (LakeloopError, OSError, ValueError) as error:
        what = f"could not be checked, because the lake cannot be read: {str(error)[:300]}"
        report.findings.append(Finding(name, "wrong", what, "see the other findings; otherwise: lakeloop restore"))


def _files(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    if lake.folder is None:
        return
    for name in schema.TABLES:
        table = lake.folder / f"{name}.lance"
        dataset = lake.dataset(name)
        report.checked["fragments"] = report.checked.get("fragments", 0) + len(dataset.get_fragments())
        torn = list(table_files.torn(dataset, table))
        if torn:
            what = f"{name}: {len(torn)} files are missing or cut short, the first is {torn[0]}"
            remedy = "if the machine lost power a moment ago: lakeloop doctor --repair; otherwise: lakeloop restore"
            yield Finding("files", "wrong", what, remedy)


def _leftovers(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    if lake.folder is None:
        return
    for name in schema.TABLES:
        dataset = lake.dataset(name)
        old = table_files.unclaimed(dataset, store.now() - maintenance.LEFTOVER_AFTER)
        if old and repair:
            with leader_lock.leader(lake):
                maintenance.remove_leftovers(lake, name)
            report.mended.append(f"{name}: removed {len(old)} files that killed writers left")
        elif old:
            size = sum(f.size for f in old)
            what = f"{name}: {len(old)} files ({size:,} bytes) that killed writers left"
            yield Finding("leftovers", "note", what, "lakeloop maintain")
        many = len(dataset.version_refs())
        if many > 10_000:
            yield Finding("leftovers", "note", f"{name}: {many:,} versions are kept", "lakeloop maintain")
    parts = [p.name for p in lake.folder.iterdir() if p.name.endswith(".part")]
    if parts:
        yield Finding(
            "leftovers", "note", f"{parts[0]}: left by an interrupted run", f"remove {lake.folder / parts[0]}"
        )
    aside = lake.folder / quarantine.FOLDER
    if aside.exists():
        what = f"{sum(1 for p in aside.rglob('*') if p.is_file())} damaged versions were put aside in {aside}"
        yield Finding("leftovers", "note", what, "remove the folder once nothing is missed")


def _indexes(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    for name, table in schema.TABLES.items():
        dataset = lake.dataset(name)
        present = {column for index in dataset.describe_indices() for column in index.field_names}
        absent = sorted(set(table.indexed) - present)
        if absent and repair:
            lake.create_table(table)
            report.mended.append(f"{name}: made the index on {', '.join(absent)}")
        elif absent:
            what = f"{name} has no index on {', '.join(absent)}: look-ups read the whole table"
            yield Finding("indexes", "wrong", what, "lakeloop doctor --repair")
        rows = dataset.count_rows()
        outside = max((indexes.unindexed(dataset, i.name) for i in dataset.describe_indices()), default=0)
        report.checked["rows"] = report.checked.get("rows", 0) + rows
        if outside > max(100_000, rows // 4):
            if repair:
                indexes.complete(lake, name)
                report.mended.append(f"{name}: completed the indexes")
            else:
                what = f"{name}: {outside:,} of {rows:,} rows are in no index"
                yield Finding("indexes", "note", what, "lakeloop maintain")


def _clock(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    for name in ("images", "predictions", "reviews"):
        newest = connections.query(lake, f"SELECT max(ingested_at) AS t FROM {name}")["t"][0].as_py()
        if newest is not None and newest > store.now() + AHEAD:
            what = (
                f"{name}: rows came in the future ({newest:%Y-%m-%d %H:%M} UTC): this clock is late or theirs was early"
            )
            yield Finding("clock", "wrong", what, "set the clock; policies go by these times")


def _disk(lake: Lake, folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        remedy = "make room, or let go of old images: lakeloop retain"
        yield Finding("disk", "wrong", f"the disk of {folder} has {free >> 20:,} MB left", remedy)
    lost = [b["path"] for b in backup_list.read(lake) if not Path(b["path"]).exists()]
    if lost:
        yield Finding("disk", "note", f"{len(lost)} backups are not where they were made, the first is {lost[0]}")


def _spool(spool: Spool) -> Iterator[Finding]:
    depth = spool.depth()
    lost = spool.lost()
    if lost:
        what = f"{spool.folder}: the bytes of {len(lost)} waiting events are gone or damaged, the first is {lost[0]}"
        yield Finding("spool", "wrong", what, "send those images again; the answers themselves are safe")
    if depth.parked:
        what = f"{spool.folder}: {depth.parked} events could not be drained"
        yield Finding("spool", "wrong", what, "upgrade lakeloop; they stay in the spool until then")
    if depth.age() > WAITS_SECONDS:
        what = f"{spool.folder}: {depth.events:,} events wait, the oldest for {depth.age():,.0f} s"
        yield Finding("spool", "note", what, "any lakeloop command on the lake drains a spool nobody serves")
    if spool.free_bytes() < FREE_BYTES:
        what = f"the disk of {spool.folder} has {spool.free_bytes() >> 20:,} MB left"
        yield Finding("spool", "wrong", what, "make room: events are refused when it is full")
