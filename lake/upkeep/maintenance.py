"""Keeps a lake fast and small: merges small fragments, completes indexes, removes old versions and leftovers.

One process at a time does it, under the leader lock. It starts nothing after its time limit, and each group of merged
fragments is a commit: a kill loses only the current group. It does not know what the rows mean.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import NotALake
from lake.jobs import live_state
from lake.sql import columnar
from lake.storage import indexes, schema, store
from lake.storage.lance_files import checksums, damage, merging, quarantine, table_files
from lake.storage.leader_lock import LOCK, leader

if TYPE_CHECKING:
    from lake.storage.store import Lake

OLDER_THAN = dt.timedelta(days=2)
# Of versions older than this only the last of each hour stays: the version of an insert costs 66 KB, however small the
# insert. A read must end within this time, because files that only a removed version uses are removed with it.
THIN_AFTER = dt.timedelta(hours=1)
LEFTOVER_AFTER = dt.timedelta(days=1)
# The number of removable versions that makes a short run worthwhile.
MANY_VERSIONS = 500


@dataclass
class TableReport:
    """A table before and after. `bytes_before` and `bytes_after` are the sizes of all its files on disk."""

    fragments_before: int = 0
    fragments_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    versions_removed: int = 0
    leftovers_removed: int = 0
    tags: dict[str, int] = field(default_factory=dict)


@dataclass
class MaintenanceReport:
    """`complete` is false if the time ran out. `tagged` lists the versions that tags keep, as TABLE@TAG."""

    tables: dict[str, TableReport] = field(default_factory=dict)
    seconds: float = 0.0
    complete: bool = True

    @property
    def tagged(self) -> list[str]:
        return [f"{name}@{tag}" for name, table in self.tables.items() for tag in sorted(table.tags)]

    def total(self, field: str) -> int:
        return sum(getattr(table, field) for table in self.tables.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tagged": self.tagged}


def due(lake: Lake) -> bool:
    """Whether there is enough to merge or remove. Takes milliseconds; does not look at indexes and leftovers."""
    for name in schema.TABLES:
        try:
            dataset = lake.dataset(name)
        except NotALake:
            continue
        if len(_between_hours(lake, name)) >= MANY_VERSIONS or any(
            merging.plan(name, merging.fragments_of(dataset, {}), merging.FAN_IN)
        ):
            return True
    return False


def maintain(
    lake: Lake,
    *,
    older_than: dt.timedelta = OLDER_THAN,
    thorough: bool = True,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda tables: None,
) -> MaintenanceReport:
    """Merges small fragments, completes the indexes, removes old versions and leftovers of killed writers.

    Versions older than `older_than` are removed, except the newest and tagged ones. Of versions older than an hour,
    only the last of each hour stays. With `thorough`, it merges all small neighbours, completes every index and updates
    the columnar copy for SQL; without it, it does only what is worth the writing now, as a server does in between. It
    starts nothing after `seconds`, or once `stop` returns True. Raises LakeBusy if another process maintains the lake.
    """
    started = time.monotonic()
    report = MaintenanceReport()

    def over() -> bool:
        return stop() or (seconds is not None and time.monotonic() - started > seconds)

    with leader(lake):
        leftovers = thorough or _a_day_since_leftovers(lake)
        for name in schema.TABLES:
            if over():
                report.complete = False
                break
            if lake.folder is not None and _lost_commits(lake.folder, name):
                continue  # the doctor tells of it; a commit now would hide what is lost
            report.tables[name] = table = TableReport()
            files = table_files.present(lake.dataset(name))
            table.bytes_before = sum(f.size for f in files)
            table.fragments_before = len(lake.dataset(name).get_fragments())
            report.complete &= merging.merge(lake, name, fan_in=2 if thorough else merging.FAN_IN, over=over)
            indexes.complete(lake, name, thorough=thorough)
            table.versions_removed = remove_versions(lake, name, older_than, 1 if thorough else MANY_VERSIONS)
            if leftovers:
                table.leftovers_removed = remove_leftovers(lake, name)
            table.tags = lake.tags(name)
            table.fragments_after = len(lake.dataset(name).get_fragments())
            table.bytes_after = sum(f.size for f in table_files.present(lake.dataset(name)))
            progress(1)
        checksums.record(lake)
        if leftovers:
            live_state.remove_old_logs(lake)
        if leftovers and report.complete and lake.folder is not None:
            (lake.folder / LOCK).write_text(store.now().isoformat())
    if thorough and not over():
        with suppress(OSError):  # a full disk only makes SQL slower
            columnar.refresh(lake)
    report.seconds = time.monotonic() - started
    return report


def _a_day_since_leftovers(lake: Lake) -> bool:
    """Whether the last search for leftovers is a day ago: a search reads the manifest of every version."""
    text = "" if lake.folder is None else (lake.folder / LOCK).read_text()
    try:
        return not text or store.now() - dt.datetime.fromisoformat(text) > LEFTOVER_AFTER
    except ValueError:  # a kill left half of it
        return True


# Removing --------------------------------------------------------------------------------------------------


def remove_versions(lake: Lake, name: str, older_than: dt.timedelta, at_least: int = 1) -> int:
    """Removes versions older than `older_than`, and most of those older than an hour. Returns their number.

    It removes nothing if they are fewer than `at_least`: Lance reads the manifest of every version to remove one. The
    newest version, tagged versions and files that a writer may still commit stay.
    """
    dataset = lake.dataset(name)
    if lake.folder is None:
        # On an object store the age of each version costs a request. Lance reads zero as its default.
        limit = max(older_than, dt.timedelta(microseconds=1))
        return int(dataset.cleanup_old_versions(older_than=limit, error_if_tagged_old_versions=False).old_versions)
    versions = sorted(_aged(lake, name, older_than) | set(_between_hours(lake, name)))
    if len(versions) < at_least:
        return 0
    return int(dataset.cleanup_old_versions(versions=versions, error_if_tagged_old_versions=False).old_versions)


def _aged(lake: Lake, name: str, older_than: dt.timedelta) -> set[int]:
    """Untagged versions of a local table that are older than `older_than`, without the newest."""
    limit = time.time() - older_than.total_seconds()
    return {version for version, written in _written(lake, name)[1:] if written < limit} - set(lake.tags(name).values())


def _written(lake: Lake, name: str) -> list[tuple[int, float]]:
    """(version, Unix time) of the versions of a local table, newest first."""
    times = []
    for version, path in table_files.manifests(Path(lake.table_uri(name).removeprefix("file://"))):
        with suppress(FileNotFoundError):
            times.append((version, path.stat().st_mtime))
    return times


def _between_hours(lake: Lake, name: str) -> list[int]:
    """Untagged versions older than an hour that are not the last of their hour."""
    if lake.folder is None:
        return []
    now = time.time()
    tagged = set(lake.tags(name).values())
    hours: dict[int, list[int]] = {}
    for version, written in _written(lake, name)[1:]:
        if now - written > THIN_AFTER.total_seconds():
            hours.setdefault(int(written // 3600), []).append(version)
    return [v for versions in hours.values() for v in versions[1:] if v not in tagged]


def remove_leftovers(lake: Lake, name: str, older_than: dt.timedelta = LEFTOVER_AFTER) -> int:
    """Removes files of a local table that no version uses and that no writer can still commit. Returns their number.

    Killed writers leave such files; Lance itself removes only some of them, after a week. While a manifest is missing
    or set aside, nothing is removed: the files of its commit look the same, and `lakeloop doctor --repair` reads them.
    """
    if lake.folder is None or _lost_commits(lake.folder, name):
        return 0
    files = table_files.unclaimed(lake.dataset(name), store.now() - older_than)
    for file in files:
        table_files.remove(lake.folder / f"{name}.lance", file.path)
    return len(files)


def _lost_commits(folder: Path, name: str) -> bool:
    return damage.lost_manifest(folder, name) is not None or bool(quarantine.manifests_aside(folder, name))
