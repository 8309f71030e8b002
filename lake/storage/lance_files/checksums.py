"""Keeps a SHA-256 of every file of a local table's newest version, and a copy of that version's manifest.

Lance's files have no checksum: a flipped bit is read as another value, or not noticed at all. The leader records the
files it has not seen yet (`record`), while they are still in the page cache. Files never change, so that a file with
another hash is damaged. Tables without an index on their key are small: their keys are recorded, too, so that lost rows
can be named. The records lie in `<lake>/checksums/`; a backup leaves them out, because it has hashes of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake import whole_file
from lake.storage import schema
from lake.storage.lance_files import fragments, table_files

if TYPE_CHECKING:
    import lance

    from lake.storage.store import Lake

FOLDER = "checksums"
# Of a table without an index on its key, the keys of at most so many rows are recorded.
MOST_KEYS = 100_000
# Two commits differ in their time, their transaction's id and their files: in more bytes than this.
MOST_CHANGED = 12


@dataclass
class Record:
    """What is known of a table. `files`: path in the table -> (bytes, SHA-256). `manifest`: the SHA-256 of the manifest
    of `version`. `keys`: data file -> the keys of its rows, of tables without an index on their key.
    """

    version: int = 0
    manifest: str = ""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)


def record(lake: Lake) -> int:
    """Records the files of every table whose version is not recorded yet. Returns the bytes that it read.

    Only for the leader. Does nothing on object storage.
    """
    if lake.folder is None:
        return 0
    return sum(_record_table(lake, name) for name in schema.TABLES)


def read(folder: Path, name: str) -> Record:
    """What is recorded of a table of the lake in `folder`; an empty record if there is none, or if it is damaged."""
    try:
        values = json.loads(_path(folder, name).read_text())
        files = {str(path): (int(size), str(digest)) for path, (size, digest) in values["files"].items()}
        return Record(int(values["version"]), str(values["manifest"]), files, dict(values["keys"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Record()


def matches(path: Path, expected: str) -> bool:
    """Whether the file has the recorded SHA-256. False if it is missing."""
    try:
        return sha256(path) == expected
    except FileNotFoundError:
        return False


def manifest_copy(folder: Path, name: str) -> Path:
    """Where the copy of the recorded version's manifest is."""
    return folder / FOLDER / f"{name}.manifest"


def changed_manifest(folder: Path, name: str, manifest: Path, record: Record) -> bool:
    """Whether bytes of the recorded version's manifest have changed since it was recorded.

    A wholly different manifest was written by a commit, after the recorded one was lost: that is no change of bytes.
    """
    if matches(manifest, record.manifest):
        return False
    copy = manifest_copy(folder, name)
    if not matches(copy, record.manifest):
        return False
    before, after = copy.read_bytes(), manifest.read_bytes()
    return len(before) == len(after) and sum(a != b for a, b in zip(before, after, strict=True)) <= MOST_CHANGED


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_table(lake: Lake, name: str) -> int:
    folder = lake.folder
    assert folder is not None
    dataset = lake.dataset(name)
    known = read(folder, name)
    if known.version == dataset.version:
        return 0
    table = folder / f"{name}.lance"
    manifest = dict(table_files.manifests(table)).get(dataset.version)
    if manifest is None:  # removed by nobody but a fault: the doctor tells
        return 0
    fresh = Record(dataset.version, sha256(manifest))
    bytes_read = 0
    for file in table_files.of_versions(dataset, {dataset.version}):
        if file.path.startswith(table_files.VERSIONS):
            continue
        if (kept := known.files.get(file.path)) is not None:
            fresh.files[file.path] = kept
            continue
        try:
            fresh.files[file.path] = (file.size, sha256(table / file.path))
        except FileNotFoundError:
            continue
        bytes_read += file.size
    names = table_files.named(dataset, {dataset.version})
    for path, recorded in known.files.items():  # a lost file is not forgotten while it is needed
        if path not in fresh.files and table_files.belongs(path, names):
            fresh.files[path] = recorded
    fresh.keys = _keys(dataset, name, known)
    copy = manifest_copy(folder, name)
    copy.parent.mkdir(mode=0o700, exist_ok=True)
    part = copy.with_suffix(".part")
    shutil.copy2(manifest, part)  # with its time, which tells the files of later commits from older ones
    os.replace(part, copy)
    whole_file.replace(
        _path(folder, name),
        json.dumps({"version": fresh.version, "manifest": fresh.manifest, "files": fresh.files, "keys": fresh.keys}),
    )
    return bytes_read


def _keys(dataset: lance.LanceDataset, name: str, known: Record) -> dict[str, list[str]]:
    table = schema.TABLES[name]
    if not table.key or table.key in table.indexed or dataset.count_rows() > MOST_KEYS:
        return {}
    keys: dict[str, list[str]] = {}
    for fragment in dataset.get_fragments():
        file = fragments.paths(fragment)[0]
        values: list[Any] = known.keys.get(file) or fragment.to_table(columns=[table.key])[table.key].to_pylist()
        keys[file] = [str(value) for value in values]
    return keys


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.json"
