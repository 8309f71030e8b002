"""Copies a lake as it is at one moment, while other processes write to it.

It copies the spools, then pins the newest version of each table, then copies the files of these versions. Tables with
references are pinned before the tables they refer to. So an event is in the copy of the spool, in the tables, or in
both, where its key makes it one again, and no row refers to a missing row. Every event acknowledged before the copy of
the spool is in the backup. The leader lock stops maintenance, so no file of a pinned version disappears. Lakes on
object storage are refused: use the store's own means, such as versioned buckets or replication.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lake.access import audit
from lake.backups import archive
from lake.errors import BadInput, CouldNot
from lake.jobs import live_state
from lake.slices import kept_exports
from lake.spool.spool import beside
from lake.sql import columnar
from lake.storage import leader_lock, migrations, schema, store
from lake.storage.lance_files import checksums, damage, quarantine, table_files
from lake.upkeep import backup_list
from lake.version import VERSION

if TYPE_CHECKING:
    from lake.storage.store import Lake

FORMAT = 1
# Tables with references come before the tables they refer to, which are pinned later and so have all the rows.
ORDER = (
    "migrations", "embedders", "audit", "jobs", "releases", "gates", "scores", "metrics", "runs", "slice_tags",
    "slices", "clusters", "slice_members", "cluster_members", "marks", "searches", "maps", "map_points", "reviews",
    "labels", "samples", "images", "thumbnails", "keys", "forgotten",
)  # fmt: skip
# Files and folders that a backup leaves out: locks, copies, and what is made again.
LEFT_OUT = {
    leader_lock.LOCK, backup_list.FILE, quarantine.FOLDER, checksums.FOLDER, columnar.FOLDER, kept_exports.FOLDER,
    live_state.FOLDER, "queries", "spool", "canaries",
}  # fmt: skip


@dataclass
class BackupReport:
    """A finished backup. `sha256` is the hash of its list of files: keep it elsewhere to detect changes.

    `left_out` are foreign files in the folder of the lake that are not plain files or whose names an archive refuses.
    `recorded`: the lake's lists of backups have it; False if the lake can only be read.
    """

    path: str
    sha256: str = ""
    files: int = 0
    bytes: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    spool_events: int = 0
    left_out: list[str] = field(default_factory=list)
    recorded: bool = True
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def backup(
    lake: Lake,
    destination: Path,
    *,
    spools: Sequence[Path] | None = None,
    wait: float = 60.0,
    progress: Callable[[int], None] = lambda n: None,
) -> BackupReport:
    """Copies the lake and its spools to a folder, or to one file if the destination ends in .tar, and syncs it.

    `spools` are folders; the default is the spool beside the lake. `progress` gets the number of bytes just copied.
    Raises BadInput if the destination exists, CouldNot for a damaged lake or one on object storage, LakeBusy if another
    process maintains the lake for longer than `wait` seconds.
    """
    started = time.monotonic()
    folder = lake.folder
    if folder is None:
        raise CouldNot(f"{lake.uri} is on object storage: use the store's own means, such as versioning or replication")
    if destination.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{destination} is inside the lake; choose another folder, best on another disk")
    if spools is None:
        own = beside(lake.uri)
        spools = [own] if own is not None and own.exists() else []
    report = BackupReport(str(destination))
    with leader_lock.leader(lake, wait):
        _refuse_damaged(lake, folder)
    with leader_lock.leader(lake, wait), archive.Writer(destination) as writer:
        for number, spool in enumerate(spools, 1):
            report.spool_events += _copy_spool(spool, "spool" if number == 1 else f"spool-{number}", writer, progress)
        moment = store.now()
        report.versions = {name: lake.version(name) for name in pinned_order()}
        tables = {}
        for name, version in report.versions.items():
            _copy_table(lake, name, version, writer, progress)
            tables[name] = {"version": version, "rows": lake.dataset(name, version).count_rows()}
        report.left_out = _copy_rest(folder, writer, progress)
        facts = {
            "format": FORMAT,
            "lakeloop": VERSION,
            "made_at": moment.isoformat(),
            "lake": lake.uri,
            "migrations": migrations.applied(lake),
            "tables": tables,
            "spool_events": report.spool_events,
        }
        contents = writer.finish(facts)
        report.sha256, report.files, report.bytes = contents.sha256, len(contents.files), contents.bytes
        try:
            backup_list.add(lake, destination, moment, report.sha256)
        except OSError as error:
            if not audit.is_read_only(error):
                raise
            report.recorded = False
    detail = {"sha256": report.sha256, "bytes": report.bytes}
    report.recorded = audit.record_if_writable(lake, "backup", str(destination), detail=detail) and report.recorded
    report.seconds = time.monotonic() - started
    return report


def _refuse_damaged(lake: Lake, folder: Path) -> None:
    damaged = damage.of_lake(folder, [*schema.TABLES], deep=False)
    if damaged:
        raise CouldNot(
            f"table {damaged[0].table!r} of {lake.uri} is damaged: {damaged[0].sentences()[0]}; a backup would"
            " lack these rows. Run: lakeloop doctor --repair"
        )


def pinned_order() -> list[str]:
    """All tables, those with references before the tables they refer to."""
    return [*ORDER, *(name for name in schema.TABLES if name not in ORDER)]


def _copy_table(lake: Lake, name: str, version: int, writer: archive.Writer, progress: Callable[[int], None]) -> None:
    """Copies the files of this version and of older tagged versions, and the tags."""
    dataset = lake.dataset(name, version)
    tags = {tag: v for tag, v in lake.tags(name).items() if v <= version}
    files = [f.path for f in table_files.of_versions(dataset, {version, *tags.values()})]
    files += [f"_refs/tags/{tag}.json" for tag in tags]
    table = Path(dataset.uri.removeprefix("file://"))
    for path in files:
        with (table / path).open("rb") as file:
            progress(writer.add(f"{name}.lance/{path}", file))


def _copy_rest(folder: Path, writer: archive.Writer, progress: Callable[[int], None]) -> list[str]:
    """Copies the other files of the folder: weights, the demo's record. Returns the names that it left out."""
    left_out = []
    for entry in sorted(folder.iterdir()):
        if entry.name in LEFT_OUT or entry.name.endswith((".lance", ".part")):
            continue
        for path in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()) or not archive.is_name(name):
                left_out.append(name)
            elif path.is_file():
                with path.open("rb") as file:
                    progress(writer.add(name, file))
    return left_out


# The spool ---------------------------------------------------------------------------------------------------


def _copy_spool(folder: Path, name: str, writer: archive.Writer, progress: Callable[[int], None]) -> int:
    """Copies the spool while others write to it and drain it. Returns the number of events in the copy.

    It opens the segment files before it reads the rows, because a drainer may remove them at any time. An event whose
    file is missing has been drained since: it is in the tables, which are pinned later, so the copy leaves it out.
    """
    with ExitStack() as stack, tempfile.TemporaryDirectory(dir=writer.destination.parent) as work:
        segments: dict[str, BinaryIO] = {}
        _open_segments(folder / "segments", segments, stack)
        copy = Path(work) / "spool.sqlite"
        with closing(_connect(folder / "spool.sqlite")) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            _open_segments(folder / "segments", segments, stack)
            used = [s for (s,) in target.execute("SELECT DISTINCT segment FROM events WHERE segment IS NOT NULL")]
            target.executemany("DELETE FROM events WHERE segment = ?", [(s,) for s in used if s not in segments])
            target.commit()
            target.execute("PRAGMA journal_mode=DELETE")
            (events,) = target.execute("SELECT count(*) FROM events").fetchone()
        with copy.open("rb") as file:
            progress(writer.add(f"{name}/spool.sqlite", file))
        for segment in used:
            if segment in segments:
                progress(writer.add(f"{name}/segments/{segment}", segments[segment]))
    return int(events)


def _open_segments(folder: Path, segments: dict[str, BinaryIO], stack: ExitStack) -> None:
    for path in folder.glob("*.seg"):
        if path.name not in segments:
            try:
                segments[path.name] = stack.enter_context(path.open("rb"))
            except FileNotFoundError:  # drained between listing and opening
                continue


def _connect(database: Path) -> sqlite3.Connection:
    if not database.exists():
        raise BadInput(f"no spool in {database.parent}")
    return sqlite3.connect(database, timeout=20.0)
