"""Examines a lake, reports what is wrong with the remedy for each, and repairs it if you ask for that.

It checks that every table opens, that its files are complete and its rows indexed, that the disk and the spools have
room, and what waits in the spools. `lake/upkeep/consistency.py` checks that the rows agree.
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
from lake.storage import indexes, leader_lock, opening, renaming, schema, store
from lake.storage.lance_files import damage, quarantine, table_files
from lake.upkeep import backup_list, consistency, maintenance, references, set_aside
from lake.upkeep import repair as repairing
from lake.upkeep.consistency import ConsistencyReport, DoctorFinding

if TYPE_CHECKING:
    from lake.spool.spool import Spool
    from lake.storage.store import Lake

FREE_BYTES = 2 << 30
CLOCK_TOLERANCE = dt.timedelta(minutes=5)
LONGEST_WAIT_SECONDS = 300.0
LEADER_WAIT = 60.0
REPAIR = "run lakeloop doctor --repair: it sets aside only what cannot be read, and names it"


def examine(
    uri: str,
    *,
    spools: Sequence[Spool] = (),
    repair: bool = False,
    deep: bool = False,
    storage_options: dict[str, str] | None = None,
) -> ConsistencyReport:
    """Examines the lake at `uri`. With `deep` it reads every file and hashes every image, otherwise a sample of them.

    `repair` reads every file, sets aside what cannot be read, completes indexes, removes leftovers and repeated rows,
    and erases images again that came back. Raises NotALake if there is no lake, LakeBusy if another process maintains
    it.
    """
    started = time.monotonic()
    report = ConsistencyReport()
    folder = store.local_folder(uri)
    unopened = store.Lake(uri, storage_options)
    renaming.rename_table(unopened)
    if repair and folder is not None and folder.is_dir():
        with leader_lock.leader(unopened, LEADER_WAIT):
            report.mended += repairing.repair(unopened)
    _run(report, "files", _files(unopened, report, deep=deep and not repair))  # a repair has just read them
    try:
        lake = opening.open(uri, storage_options=storage_options)
        if report.mended:
            opening.restore_columns(lake)
    except NotALake:
        raise
    except LakeloopError as error:
        report.findings.append(
            DoctorFinding("opens", "wrong", str(error), "run lakeloop doctor --repair; otherwise lakeloop restore")
        )
        return report
    report.mended += lake.notices
    for check in (_set_aside, _leftovers, _indexes, _clock, *consistency.CHECKS, *references.CHECKS):
        _run(report, check.__name__.strip("_"), check(lake, report, repair))
    _run(report, "runs", references.run_files(lake, report, deep=deep))
    _run(report, "bytes", consistency.contents(lake, report, deep))
    if folder is not None:
        report.findings += _disk(lake, folder)
    for spool in spools:
        report.findings += _spool(spool)
    report.seconds = time.monotonic() - started
    return report


def _run(report: ConsistencyReport, name: str, findings: Iterator[DoctorFinding]) -> None:
    """Collects the findings of a check. An unreadable lake is a finding, too."""
    try:
        report.findings += findings
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Lance's panics at damaged files are no Exception
        message = f"the check failed, because the lake cannot be read: {str(error)[:300]}"
        report.findings.append(
            DoctorFinding(name, "wrong", message, "see the other findings; if there are none, run: lakeloop restore")
        )


def _files(lake: Lake, report: ConsistencyReport, *, deep: bool) -> Iterator[DoctorFinding]:
    """Checks that every file of the newest versions is there and whole; with `deep`, that none has changed."""
    if lake.folder is None or not lake.folder.is_dir():
        return
    for found in damage.of_lake(lake.folder, [*schema.TABLES], deep=deep):
        rows, row_ids = repairing.rows_in(lake, found)
        about = f"; this concerns {rows:,} rows" if rows else ""
        words = f"{found.table}: {'; '.join(found.sentences())}{about}"
        yield DoctorFinding("files", "wrong", words, REPAIR, tuple(row_ids))


def _set_aside(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    """Names rows that a repair set aside and that did not come back since."""
    if lake.folder is None:
        return
    for path, aside in set_aside.lists(lake.folder):
        if aside.missing:
            first = next((column for column, values in aside.ids.items() if values), None)
            named = f", the first {first} is {aside.ids[first][0]}" if first else ""
            words = f"{aside.table}: {aside.missing:,} rows were lost before {aside.at[:16]}{named}; see {path}"
            remedy = "fill the hole with lakeloop doctor --restore-from BACKUP, or remove that file to accept the loss"
            yield DoctorFinding("set aside", "wrong", words, remedy, tuple(aside.ids[first]) if first else ())
    files = sum(1 for p in (lake.folder / quarantine.FOLDER).rglob("*") if p.is_file() and p.suffix != ".json")
    if files:
        words = f"damaged files are kept in {lake.folder / quarantine.FOLDER}: {files}"
        yield DoctorFinding("set aside", "note", words, "remove the folder if no data is missing")


def _leftovers(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    if lake.folder is None:
        return
    for name in schema.TABLES:
        dataset = lake.dataset(name)
        leftovers = table_files.unclaimed(dataset, store.now() - maintenance.LEFTOVER_AFTER)
        if leftovers and repair:
            with leader_lock.leader(lake):
                maintenance.remove_leftovers(lake, name)
            report.mended.append(f"{name}: removed {len(leftovers)} files left by killed writers")
        elif leftovers:
            size = sum(f.size for f in leftovers)
            message = f"{name}: {len(leftovers)} files ({size:,} bytes) left by killed writers"
            yield DoctorFinding("leftovers", "note", message, "lakeloop maintain")
        versions = len(dataset.version_refs())
        if versions > 10_000:
            yield DoctorFinding("leftovers", "note", f"{name}: {versions:,} versions are kept", "lakeloop maintain")
    parts = [p.name for p in lake.folder.iterdir() if p.name.endswith(".part")]
    if parts:
        yield DoctorFinding(
            "leftovers", "note", f"{parts[0]}: left by an interrupted run", f"remove {lake.folder / parts[0]}"
        )


def _indexes(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    for name, table in schema.TABLES.items():
        dataset = lake.dataset(name)
        present = {column for index in dataset.describe_indices() for column in index.field_names}
        missing = sorted(set(table.indexed) - present)
        if missing and repair:
            lake.create_table(table)
            report.mended.append(f"{name}: created the index on {', '.join(missing)}")
        elif missing:
            message = f"{name} has no index on {', '.join(missing)}: look-ups read the whole table"
            yield DoctorFinding("indexes", "wrong", message, "lakeloop doctor --repair")
        report.checked["fragments"] = report.checked.get("fragments", 0) + len(dataset.get_fragments())
        rows = dataset.count_rows()
        outside = max((indexes.unindexed(dataset, i.name) for i in dataset.describe_indices()), default=0)
        report.checked["rows"] = report.checked.get("rows", 0) + rows
        if outside > max(100_000, rows // 4):
            if repair:
                indexes.complete(lake, name)
                report.mended.append(f"{name}: completed the indexes")
            else:
                message = f"{name}: {outside:,} of {rows:,} rows are in no index"
                yield DoctorFinding("indexes", "note", message, "lakeloop maintain")


def _clock(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    for name in ("images", "samples", "reviews"):
        newest = connections.query(lake, f"SELECT max(ingested_at) AS t FROM {name}")["t"][0].as_py()
        if newest is not None and newest > store.now() + CLOCK_TOLERANCE:
            when = f"{newest:%Y-%m-%d %H:%M} UTC"
            message = f"{name}: rows have a time in the future ({when}): the clock is slow, or was fast when they came"
            yield DoctorFinding("clock", "wrong", message, "set the clock; retention policies use these times")


def _disk(lake: Lake, folder: Path) -> Iterator[DoctorFinding]:
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        remedy = "free disk space, or drop old images with: lakeloop retain"
        yield DoctorFinding("disk", "wrong", f"the disk of {folder} has {free >> 20:,} MB free", remedy)
    lost = [b["path"] for b in backup_list.read(lake) if not Path(b["path"]).exists()]
    if lost:
        yield DoctorFinding("disk", "note", f"{len(lost)} backups are no longer at their path, the first is {lost[0]}")


def _spool(spool: Spool) -> Iterator[DoctorFinding]:
    depth = spool.depth()
    lost = spool.lost()
    if lost:
        message = (
            f"{spool.folder}: the bytes of {len(lost)} waiting events are missing or damaged, the first is {lost[0]}"
        )
        yield DoctorFinding("spool", "wrong", message, "send these images again; the predictions are safe")
    if depth.parked:
        first = spool.parked.list(1)[0]
        message = (
            f"{spool.folder}: {depth.parked} events could not be drained; {first.kind} {first.event_id}: {first.reason}"
        )
        yield DoctorFinding("spool", "wrong", message, "see: lakeloop spool parked list; then retry or drop them")
    if depth.age() > LONGEST_WAIT_SECONDS:
        message = f"{spool.folder}: {depth.events:,} events wait, the oldest for {depth.age():,.0f} s"
        yield DoctorFinding(
            "spool", "note", message, "if no server runs, any lakeloop command on this lake drains the spool"
        )
    if spool.free_bytes() < FREE_BYTES:
        message = f"the disk of {spool.folder} has {spool.free_bytes() >> 20:,} MB free"
        yield DoctorFinding("spool", "wrong", message, "free disk space: a full disk refuses events")
