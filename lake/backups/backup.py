"""A copy of a lake as it is at one moment, made while it is written to.

First the spools are copied, then each table's newest version is pinned, what refers before what is referred to; then
the files of those versions are copied. So an event is in the spool's copy, in the tables, or in both (its key then
makes it one again), and no row names something that is not there. What is acknowledged before the spool is copied is
in the backup. The lake is not maintained meanwhile, so no file of a pinned version goes away.
Lakes on object storage have their store's own means (versioned buckets, replication) and are refused here.
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
from lake.slices import kept_exports
from lake.spool.spool import beside
from lake.sql import columnar
from lake.storage import leader_lock, migrations, schema, store
from lake.storage.lance_files import quarantine, table_files
from lake.upkeep import backup_list
from lake.version import VERSION

if TYPE_CHECKING:
    from lake.storage.store import Lake

FORMAT = 1
# Who refers comes before what it refers to: pinned later, that has all it needs.
ORDER = (
    "migrations", "embedders", "audit", "releases", "gates", "scores", "metrics", "runs", "slice_tags", "slices",
    "clusters", "slice_members", "cluster_members", "marks", "searches", "maps", "map_points", "reviews", "labels",
    "predictions", "images", "thumbnails", "keys", "forgotten",
)  # fmt: skip
# Beside the tables: not the lake's record, or made anew.
LEFT_OUT = {
    leader_lock.LOCK, backup_list.FILE, quarantine.FOLDER, columnar.FOLDER, kept_exports.FOLDER, "queries", "spool",
}  # fmt: skip


@dataclass
class Made:
    """A backup that was made. `sha256` is that of its list of files: kept elsewhere, it shows that nobody changed it.

    `left_out` are files of the lake's folder that are not the lake's and have names no backup takes.
    """

    path: str
    sha256: str = ""
    files: int = 0
    bytes: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    spool_events: int = 0
    left_out: list[str] = field(default_factory=list)
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
) -> Made:
    """Copies the lake and its spools (folders; by default the one beside it) to a folder, or a .tar, and syncs it.

    `progress` is called with the number of bytes just copied. Raises BadInput when something is at the destination,
    CouldNot for a lake on object storage, LakeBusy when it is being maintained for longer than `wait` seconds.
    """
    started = time.monotonic()
    folder = lake.folder
    if folder is None:
        raise CouldNot(f"{lake.uri} is on object storage: use the store's own means, e.g. versioning or replication")
    if destination.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{destination} is inside the lake; choose another place, best on another disk")
    if spools is None:
        own = beside(lake.uri)
        spools = [own] if own is not None and own.exists() else []
    made = Made(str(destination))
    with leader_lock.leader(lake, wait), archive.Writer(destination) as writer:
        for number, spool in enumerate(spools, 1):
            made.spool_events += _copy_spool(spool, "spool" if number == 1 else f"spool-{number}", writer, progress)
        moment = store.now()
        made.versions = {name: lake.version(name) for name in pinned_order()}
        tables = {}
        for name, version in made.versions.items():
            _copy_table(lake, name, version, writer, progress)
            tables[name] = {"version": version, "rows": lake.dataset(name, version).count_rows()}
        made.left_out = _copy_rest(folder, writer, progress)
        facts = {
            "format": FORMAT,
            "lakeloop": VERSION,
            "made_at": moment.isoformat(),
            "lake": lake.uri,
            "migrations": migrations.applied(lake),
            "tables": tables,
            "spool_events": made.spool_events,
        }
        contents = writer.finish(facts)
        made.sha256, made.files, made.bytes = contents.sha256, len(contents.files), contents.bytes
        backup_list.add(lake, destination, moment, made.sha256)
    audit.record(lake, "backup", str(destination), detail={"sha256": made.sha256, "bytes": made.bytes})
    made.seconds = time.monotonic() - started
    return made


def pinned_order() -> list[str]:
    """Every table, who refers before what it refers to."""
    return [*ORDER, *(name for name in schema.TABLES if name not in ORDER)]


def _copy_table(lake: Lake, name: str, version: int, writer: archive.Writer, progress: Callable[[int], None]) -> None:
    """The files of this version and of older tagged ones, and the tags."""
    dataset = lake.dataset(name, version)
    tags = {tag: v for tag, v in lake.tags(name).items() if v <= version}
    files = [f.path for f in table_files.of_versions(dataset, {version, *tags.values()})]
    files += [f"_refs/tags/{tag}.json" for tag in tags]
    table = Path(dataset.uri.removeprefix("file://"))
    for path in files:
        with (table / path).open("rb") as file:
            progress(writer.add(f"{name}.lance/{path}", file))


def _copy_rest(folder: Path, writer: archive.Writer, progress: Callable[[int], None]) -> list[str]:
    """What else lies in the lake's folder: weights, the demo's record. Returns what could not be taken."""
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
    """The spool as it is now, beside its writers and its drainer; returns the number of events in the copy.

    Its files are opened before its rows are read, because a drainer may remove them at any time. An event whose file
    is gone by then was drained since: it is in the tables, which are pinned later, and is left out of the copy.
    """
    with ExitStack() as stack, tempfile.TemporaryDirectory(dir=writer.destination.parent) as work:
        held: dict[str, BinaryIO] = {}
        _hold(folder / "segments", held, stack)
        copy = Path(work) / "spool.sqlite"
        with closing(_connect(folder / "spool.sqlite")) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            _hold(folder / "segments", held, stack)
            used = [s for (s,) in target.execute("SELECT DISTINCT segment FROM events WHERE segment IS NOT NULL")]
            target.executemany("DELETE FROM events WHERE segment = ?", [(s,) for s in used if s not in held])
            target.commit()
            target.execute("PRAGMA journal_mode=DELETE")
            (events,) = target.execute("SELECT count(*) FROM events").fetchone()
        with copy.open("rb") as file:
            progress(writer.add(f"{name}/spool.sqlite", file))
        for segment in used:
            if segment in held:
                progress(writer.add(f"{name}/segments/{segment}", held[segment]))
    return int(events)


def _hold(segments: Path, held: dict[str, BinaryIO], stack: ExitStack) -> None:
    for path in segments.glob("*.seg"):
        if path.name not in held:
            try:
                held[path.name] = stack.enter_context(path.open("rb"))
            except FileNotFoundError:  # drained between listing and opening
                continue


def _connect(database: Path) -> sqlite3.Connection:
    if not database.exists():
        raise BadInput(f"no spool in {database.parent}")
    return sqlite3.connect(database, timeout=20.0)
