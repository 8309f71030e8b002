"""Lists a table's files: those that a version needs, those that no version needs, and manifests.

It knows the layout of a table's folder, not the contents of rows. Lance first writes every file under a `.tmp` name
and renames it; a kill leaves such files behind, and Lance's own clean-up never removes them.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime as dt

    import lance

# The last bytes of each of Lance's files.
MAGIC = b"LANC"
VERSIONS = "_versions"
# In these folders, a file that no manifest names belongs to no version; _versions and _refs are different.
CLAIMED = ("data/", "_deletions/", "_indices/", "_transactions/")
_NEWEST = 2**64 - 1


@dataclass(frozen=True)
class TableFile:
    """A file of a table. `path` is relative to the table, `size` in bytes, `modified` UTC."""

    path: str
    size: int
    modified: dt.datetime


def present(dataset: lance.LanceDataset) -> list[TableFile]:
    """Every file in the table's folder."""
    files = []
    for batch in dataset.all_files():
        columns = (batch[name].to_pylist() for name in ("path", "size_bytes", "last_modified"))
        files += [TableFile(*row) for row in zip(*columns, strict=True)]
    return files


def named(dataset: lance.LanceDataset, versions: Collection[int] | None = None) -> set[str]:
    """Paths that the manifests of these versions (all if None) name; the blobs beside data files are not named."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # Every manifest names every file of its version: for a thousand versions of a thousand files, a million names.
    chunks = []
    for batch in dataset.tracked_files(min_version=None if versions is None else min(versions)):
        paths = batch["path"]
        if versions is not None:
            paths = paths.filter(pc.is_in(batch["version"], pa.array(list(versions), pa.int64())))
        chunks.append(pc.unique(paths))
    return set(pa.chunked_array(chunks, pa.string()).to_pylist())


def belongs(path: str, names: Collection[str]) -> bool:
    """Whether the file at `path` is one of `names`, or holds blobs of a data file among them."""
    if path in names:
        return True
    folder, _, inside = path.removeprefix("data/").partition("/")
    whole = bool(inside) and not inside.startswith(".tmp")
    return path.startswith("data/") and whole and f"data/{folder}.lance" in names


def of_versions(dataset: lance.LanceDataset, versions: Collection[int]) -> list[TableFile]:
    """Every file that reading these versions needs."""
    names = named(dataset, versions)
    return [file for file in present(dataset) if belongs(file.path, names)]


def unclaimed(dataset: lance.LanceDataset, before: dt.datetime | None = None) -> list[TableFile]:
    """Files that no version needs, of those written before a time: a writer will commit them soon, or was killed."""
    files = present(dataset)  # listed before the manifests are read, so that files committed meanwhile are claimed
    ours = [f for f in files if f.path.startswith(CLAIMED) or f.path.rpartition("/")[2].startswith(".tmp")]
    left = [f for f in ours if before is None or f.modified < before]
    # The newest version names most of them, and it is one manifest to read instead of all.
    for versions in ({dataset.latest_version}, None):
        if left:
            names = named(dataset, versions)
            left = [f for f in left if not belongs(f.path, names)]
    return left


def remove(table: Path, path: str) -> None:
    """Removes a file of a local table, and its folder if that is empty then."""
    target = table / path
    target.unlink(missing_ok=True)
    if path.count("/") > 1 and not any(target.parent.iterdir()):
        target.parent.rmdir()


def manifests(table: Path) -> list[tuple[int, Path]]:
    """(version, file) of every manifest in the folder of a local table, the newest first."""
    listed = []
    try:
        entries = list(os.scandir(table / VERSIONS))
    except FileNotFoundError:
        return []
    for entry in entries:
        stem, _, suffix = entry.name.partition(".")
        if suffix == "manifest" and stem.isdigit():
            # Twenty digits count down from 2^64 - 1, so that the newest is listed first.
            listed.append((_NEWEST - int(stem) if len(stem) == 20 else int(stem), Path(entry.path)))
    return sorted(listed, reverse=True)


def has_bytes(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def ends_whole(path: Path) -> bool:
    """Whether a file of Lance has the end that is written last: a manifest of zeros would open as an empty table."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < len(MAGIC):
                return False
            file.seek(-len(MAGIC), os.SEEK_END)
            return file.read() == MAGIC
    except FileNotFoundError:
        return False
