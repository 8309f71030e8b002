"""Removes the bytes of deleted rows from the disk.

For Lance a delete is a mark: the bytes stay in data files, in indexes, in older versions and in files of killed
writers. This module knows files and versions of a table, and which bytes of an image to look for in them. `erasure`
decides which images.
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

# These many bytes of an image, a thumbnail or a vector identify it in a file.
WINDOW_BYTES = 64
# For more images no file is searched: every unfinished file then counts as holding one.
MOST_SEARCHED = 1_000
LEFTOVER_AFTER = dt.timedelta(days=1)
ROUNDS = 5
MOMENT_SECONDS = 3.0
ALL = dt.timedelta(microseconds=1)


@dataclass(frozen=True)
class Traces:
    """Pieces of bytes that identify files with the images; None if the images are too many to search for."""

    windows: Sequence[bytes] | None

    def in_file(self, path: Path) -> bool:
        """Whether the file holds, or may hold, one of the images."""
        if self.windows is None:
            return True
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return any(data.find(window) >= 0 for window in self.windows)
        except (FileNotFoundError, ValueError):  # removed meanwhile; or empty
            return False


def traces(lake: Lake, image_ids: Sequence[str]) -> Traces:
    """The traces of the images: their ids, and a piece of the bytes, the thumbnail and the vectors of each."""
    if len(image_ids) > MOST_SEARCHED:
        return Traces(None)
    # Erased before: their bytes are unknown now.
    if set(lake.erased(image_ids)) - lake.known("images", "image_id", image_ids):
        return Traces(None)
    pieces = [i.encode() for i in image_ids]
    for image in blobs.images(lake, image_ids):
        pieces.append(_middle(image.data))
    for jpeg in lake.look_up("thumbnails", ["jpeg"], "image_id", image_ids)["jpeg"].to_pylist():
        pieces.append(_middle(jpeg))
    columns = [r.column for r in lake.embedders() if r.dim is not None]
    for row in lake.look_up("samples", columns, "image_id", image_ids).to_pylist() if columns else ():
        import numpy as np

        pieces += [_middle(np.asarray(v, np.float32).tobytes()) for v in row.values() if v is not None]
    return Traces([piece for piece in pieces if piece])


def purge(lake: Lake, name: str) -> None:
    """Rewrites every fragment with deleted rows, and removes every version except the newest and tagged ones.

    The caller holds the leader lock. Raises LakeBusy if old versions remain, because other processes keep writing.
    """
    lake.commit(name, lambda: _without_dead_rows(lake, name))
    _rebuild_indexes(lake, name)
    clean = lake.version(name)
    # Versions that other writers commit from here on use clean files only.
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
    """Rebuilds indexes over contents, because they hold parts of them. Indexes over ids do not."""
    names = {c.name for c in schema.TABLES[name].columns if c.name == "id" or c.name.endswith("_id")}
    rebuilt = [i.name for i in lake.dataset(name).describe_indices() if not set(i.field_names) <= names]
    if rebuilt:
        lake.commit(name, lambda: lake.dataset(name).optimize.optimize_indices(index_names=rebuilt, retrain=True))


def tags_holding(lake: Lake, name: str, image_ids: Sequence[str]) -> list[str]:
    """The tags of the table whose versions have rows of any of the images."""
    tags = []
    for tag, version in sorted(lake.tags(name).items()):
        dataset = lake.dataset(name, version)
        for start in range(0, len(image_ids), store.LOOK_UP_VALUES):
            part = store.literals(image_ids[start : start + store.LOOK_UP_VALUES])
            if dataset.count_rows(f"image_id in ({part})"):
                tags.append(tag)
                break
    return tags


def clear_unfinished(lake: Lake, name: str, traces: Traces, alone: bool) -> list[str]:
    """Removes files of killed writers. Returns the files that hold some of the images and must stay.

    Another process may still commit a file younger than a day: removing it would break the table. `alone` says that
    there is no such process. It does not search object storage: Lance removes such files there after a week.
    """
    if lake.folder is None:
        return []
    table = lake.folder / f"{name}.lance"
    limit = store.now() - LEFTOVER_AFTER
    remaining = []
    for file in table_files.unclaimed(lake.dataset(name)):
        if alone or file.modified < limit:
            table_files.remove(table, file.path)
        elif traces.in_file(table / file.path):
            remaining.append(file.path)
    # A running writer commits or removes its files within moments.
    deadline = time.monotonic() + MOMENT_SECONDS
    while remaining and time.monotonic() < deadline:
        time.sleep(0.2)
        unfinished = {file.path for file in table_files.unclaimed(lake.dataset(name))}
        remaining = [path for path in remaining if path in unfinished]
    return [str(table / path) for path in remaining]


def _middle(data: bytes) -> bytes:
    start = max(0, len(data) // 2 - WINDOW_BYTES // 2)
    return data[start : start + WINDOW_BYTES]
