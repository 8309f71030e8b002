"""Keeping a lake quick and small: small fragments merged, indexes made whole, old versions and leftovers removed.

One process at a time is the leader. A step is bounded: nothing is begun after its time is up, and what was done is
committed: a kill costs the group it was at. It does not know what the rows mean.
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
from lake.sql import columnar
from lake.storage import indexes, schema, store
from lake.storage.lance_files import merging, table_files
from lake.storage.leader_lock import LOCK, leader

if TYPE_CHECKING:
    from lake.storage.store import Lake

OLDER_THAN = dt.timedelta(days=2)
# Of versions older than this only the last of each hour stays: an insert's version costs 66 KB, whatever it adds.
# A read must end within it, because files that only a removed version names are removed with it.
THIN_AFTER = dt.timedelta(hours=1)
LEFTOVER_AFTER = dt.timedelta(days=1)
# So many versions to remove make a passing step worth it.
MANY_VERSIONS = 500


@dataclass
class TableReport:
    """One table, before and after. Bytes are those of all its files on disk."""

    fragments_before: int = 0
    fragments_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    versions_removed: int = 0
    leftovers_removed: int = 0
    tags: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """`complete` is false when time ran out; `tagged` names versions that tags keep, as TABLE@TAG."""

    tables: dict[str, TableReport] = field(default_factory=dict)
    seconds: float = 0.0
    complete: bool = True

    @property
    def tagged(self) -> list[str]:
        return [f"{name}@{tag}" for name, table in self.tables.items() for tag in sorted(table.tags)]

    def total(self, what: str) -> int:
        return sum(getattr(table, what) for table in self.tables.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tagged": self.tagged}


def due(lake: Lake) -> bool:
    """Whether a step would have something to do. A few milliseconds; says nothing of indexes and leftovers."""
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
) -> Report:
    """Merges small fragments, completes the indexes, removes old versions and leftovers of killed writers. When
    `thorough`, SQL's copy of large tables is brought up to date, too.

    Versions older than `older_than` go, but for the newest and tagged ones; of those older than an hour the last
    of each hour stays until then. `thorough` merges any small neighbours and completes every index; otherwise only
    what is worth its writing now: for a service's passing steps. Nothing is begun after `seconds`, or once `stop`
    says so. Raises LakeBusy when another process maintains the lake.
    """
    started = time.monotonic()
    report = Report()

    def over() -> bool:
        return stop() or (seconds is not None and time.monotonic() - started > seconds)

    with leader(lake):
        leftovers = thorough or _a_day_since_leftovers(lake)
        for name in schema.TABLES:
            if over():
                report.complete = False
                break
            report.tables[name] = done = TableReport()
            files = table_files.present(lake.dataset(name))
            done.bytes_before = sum(f.size for f in files)
            done.fragments_before = len(lake.dataset(name).get_fragments())
            report.complete &= merging.merge(lake, name, fan_in=2 if thorough else merging.FAN_IN, over=over)
            indexes.complete(lake, name, thorough=thorough)
            done.versions_removed = remove_versions(lake, name, older_than, 1 if thorough else MANY_VERSIONS)
            if leftovers:
                done.leftovers_removed = remove_leftovers(lake, name)
            done.tags = lake.tags(name)
            done.fragments_after = len(lake.dataset(name).get_fragments())
            done.bytes_after = sum(f.size for f in table_files.present(lake.dataset(name)))
            progress(1)
        if leftovers and report.complete and lake.folder is not None:
            (lake.folder / LOCK).write_text(store.now().isoformat())
    if thorough and not over():
        with suppress(OSError):  # a full disk only makes SQL slower
            columnar.refresh(lake)
    report.seconds = time.monotonic() - started
    return report


def _a_day_since_leftovers(lake: Lake) -> bool:
    """Whether leftovers were last looked for a day ago: it means reading the manifest of every version."""
    text = "" if lake.folder is None else (lake.folder / LOCK).read_text()
    try:
        return not text or store.now() - dt.datetime.fromisoformat(text) > LEFTOVER_AFTER
    except ValueError:  # a kill cut it short
        return True


# Removing --------------------------------------------------------------------------------------------------


def remove_versions(lake: Lake, name: str, older_than: dt.timedelta, at_least: int = 1) -> int:
    """Removes versions older than `older_than`, and most of those older than an hour; returns how many.

    Nothing when they are fewer than `at_least`: Lance reads the manifest of every version to remove one. The newest
    version and tagged ones stay, and so does a file that a writer might be about to commit.
    """
    dataset = lake.dataset(name)
    if lake.folder is None:
        # Asking an object store for each version's age would cost a request each. Lance takes zero for its default.
        limit = max(older_than, dt.timedelta(microseconds=1))
        return int(dataset.cleanup_old_versions(older_than=limit, error_if_tagged_old_versions=False).old_versions)
    chosen = sorted(_aged(lake, name, older_than) | set(_between_hours(lake, name)))
    if len(chosen) < at_least:
        return 0
    return int(dataset.cleanup_old_versions(versions=chosen, error_if_tagged_old_versions=False).old_versions)


def _aged(lake: Lake, name: str, older_than: dt.timedelta) -> set[int]:
    """Untagged versions of a local table older than that, without the newest."""
    limit = time.time() - older_than.total_seconds()
    return {version for version, written in _written(lake, name)[1:] if written < limit} - set(lake.tags(name).values())


def _written(lake: Lake, name: str) -> list[tuple[int, float]]:
    """(version, seconds since 1970) of a local table's versions, the newest first."""
    found = []
    for version, path in table_files.manifests(Path(lake.table_uri(name).removeprefix("file://"))):
        with suppress(FileNotFoundError):
            found.append((version, path.stat().st_mtime))
    return found


def _between_hours(lake: Lake, name: str) -> list[int]:
    """Untagged versions older than an hour that are not the last of their hour."""
    if lake.folder is None:
        return []
    now = time.time()
    keep = set(lake.tags(name).values())
    hours: dict[int, list[int]] = {}
    for version, written in _written(lake, name)[1:]:
        if now - written > THIN_AFTER.total_seconds():
            hours.setdefault(int(written // 3600), []).append(version)
    return [v for versions in hours.values() for v in versions[1:] if v not in keep]


def remove_leftovers(lake: Lake, name: str, older_than: dt.timedelta = LEFTOVER_AFTER) -> int:
    """Removes files of a local table that no version needs and that no writer can still be about to commit.

    Returns how many. A killed writer leaves them; Lance itself takes away only some, after a week.
    """
    if lake.folder is None:
        return 0
    found = table_files.unclaimed(lake.dataset(name), store.now() - older_than)
    for file in found:
        table_files.remove(lake.folder / f"{name}.lance", file.path)
    return len(found)
