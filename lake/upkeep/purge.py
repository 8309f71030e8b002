"""Making deleted rows vanish from the disk. To Lance a delete is a mark: the bytes stay in their files, in indexes over
them, in older versions, and in what killed writers left.

It knows files and versions of a table, and what of an image would be found in them; whom it concerns others decide.
"""

from __future__ import annotations

import datetime as dt
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lake.errors import LakeBusy
from lake.storage import blobs, schema, store
from lake.storage.lance_files import table_files

if TYPE_CHECKING:
    from lake.storage.store import Lake

# So much of an image, a thumbnail or a vector tells that a file holds it.
WINDOW_BYTES = 64
# More images are not looked for: every unfinished file then counts as holding one.
MOST_LOOKED_FOR = 1_000
LEFTOVER_AFTER = dt.timedelta(days=1)
ROUNDS = 5
MOMENT_SECONDS = 3.0
ALL = dt.timedelta(microseconds=1)


@dataclass(frozen=True)
class Traces:
    """Bytes by which files that hold the images are known; None when they are too many to look for."""

    windows: Sequence[bytes] | None

    def in_file(self, path: Path) -> bool:
        """Whether the file holds any of them, or may."""
        if self.windows is None:
            return True
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return any(data.find(window) >= 0 for window in self.windows)
        except (FileNotFoundError, ValueError):  # gone meanwhile; empty
            return False


def traces(lake: Lake, image_ids: Sequence[str]) -> Traces:
    """What to look for: the images' names, and a piece of the bytes, the thumbnail and the vectors of each."""
    if len(image_ids) > MOST_LOOKED_FOR:
        return Traces(None)
    # Erased before: what they were is not known any more.
    if set(lake.erased(image_ids)) - lake.known("images", "image_id", image_ids):
        return Traces(None)
    found = [i.encode() for i in image_ids]
    for image in blobs.images(lake, image_ids):
        found.append(_middle(image.data))
    for jpeg in lake.look_up("thumbnails", ["jpeg"], "image_id", image_ids)["jpeg"].to_pylist():
        found.append(_middle(jpeg))
    columns = [r.column for r in lake.embedders() if r.dim is not None]
    for row in lake.look_up("predictions", columns, "image_id", image_ids).to_pylist() if columns else ():
        import numpy as np

        found += [_middle(np.asarray(v, np.float32).tobytes()) for v in row.values() if v is not None]
    return Traces([window for window in found if window])


def purge(lake: Lake, name: str) -> None:
    """Rewrites every fragment of the table that has deleted rows, and removes every version but the newest and tagged.

    For the leader of maintenance. Raises LakeBusy when versions keep being there, because others write all the time.
    """
    lake.commit(name, lambda: _without_dead_rows(lake, name))
    _rebuild_indexes(lake, name)
    clean = lake.version(name)
    # A version that another writer commits from here on names clean files only.
    for attempt in range(ROUNDS):
        dataset = lake.dataset(name)
        dataset.cleanup_old_versions(older_than=ALL, error_if_tagged_old_versions=False)
        old = {int(ref["version"]) for ref in dataset.version_refs()} - set(lake.tags(name).values())
        if not any(version < clean for version in old):
            return
        time.sleep(0.1 * attempt)
    raise LakeBusy(f"older versions of table {name!r} of {lake.uri} could not be removed; run the same command again")


def _without_dead_rows(lake: Lake, name: str) -> None:
    dataset = lake.dataset(name)
    fragments = dataset.get_fragments()
    whole = [f.fragment_id for f in fragments if not f.num_deletions]
    if len(whole) == len(fragments):
        return
    dataset.optimize.compact_files(
        target_rows_per_fragment=max(2, *(f.physical_rows for f in fragments)),
        materialize_deletions_threshold=0.0,
        excluded_fragment_ids=whole,
        batch_size=256 if name == "images" else None,
        num_threads=1,
    )


def _rebuild_indexes(lake: Lake, name: str) -> None:
    """Indexes over contents hold pieces of them; those over names of rows do not."""
    names = {c.name for c in schema.TABLES[name].columns if c.name == "id" or c.name.endswith("_id")}
    rebuilt = [i.name for i in lake.dataset(name).describe_indices() if not set(i.field_names) <= names]
    if rebuilt:
        lake.commit(name, lambda: lake.dataset(name).optimize.optimize_indices(index_names=rebuilt, retrain=True))


def tags_holding(lake: Lake, name: str, image_ids: Sequence[str]) -> list[str]:
    """Tags of the table whose versions have rows about any of the images."""
    found = []
    for tag, version in sorted(lake.tags(name).items()):
        dataset = lake.dataset(name, version)
        for start in range(0, len(image_ids), store.LOOK_UP_VALUES):
            part = store.literals(image_ids[start : start + store.LOOK_UP_VALUES])
            if dataset.count_rows(f"image_id in ({part})"):
                found.append(tag)
                break
    return found


def clear_unfinished(lake: Lake, name: str, traces: Traces, alone: bool) -> list[str]:
    """Removes what killed writers left; returns files that hold some of the images and must stay.

    Another process may be about to commit a file that is younger than a day: removing it would break its table. With
    `alone` there is no such process. Files on object storage are not looked at: Lance removes them after a week.
    """
    if lake.folder is None:
        return []
    table = lake.folder / f"{name}.lance"
    limit = store.now() - LEFTOVER_AFTER
    left = []
    for file in table_files.unclaimed(lake.dataset(name)):
        if alone or file.modified < limit:
            table_files.remove(table, file.path)
        elif traces.in_file(table / file.path):
            left.append(file.path)
    # What a living writer is at is committed, or gone, in a moment.
    deadline = time.monotonic() + MOMENT_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        unfinished = {file.path for file in table_files.unclaimed(lake.dataset(name))}
        left = [path for path in left if path in unfinished]
    return [str(table / path) for path in left]


def _middle(data: bytes) -> bytes:
    start = max(0, len(data) // 2 - WINDOW_BYTES // 2)
    return data[start : start + WINDOW_BYTES]
