"""Finds what of a local table cannot be read: manifests, data files, deletions, indexes. It changes nothing.

A quick look compares sizes and ends of files, and takes milliseconds; a deep one compares every file with its recorded
hash (`checksums.py`) and reads those that have none. "Base" is the newest version whose manifest is whole.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.storage.lance_files import checksums, quarantine, table_files
from lake.storage.lance_files.reading import FileToRead, unreadable

if TYPE_CHECKING:
    import lance

HINT = "latest_version_hint.json"
BLOB = "lance.blob.v2"
ATTEMPTS = 5


@dataclass
class TableDamage:
    """What is damaged. Keys of `files`, `deletions` and `indexes` are paths in the table, values are reasons.

    `manifests`: damaged ones, newest first. `lost`: the newest version that existed, if its manifest is missing or
    damaged, else None. `from_copy`: the recorded copy of the manifest can take the place of the lost one.
    `indexes` has the names of indexes. `torn_aside`: manifests that a power loss tore were moved aside, and
    the rows of their commits not looked for. `unread`: files without a recorded hash, of which only sizes and ends are
    known.
    """

    table: str
    base: int | None = None
    lost: int | None = None
    from_copy: bool = False
    manifests: list[tuple[int, Path, str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    deletions: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    unread: list[FileToRead] = field(default_factory=list)
    torn_aside: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.lost or self.torn_aside or self.manifests or self.files or self.deletions or self.indexes or self.tags
        )

    def sentences(self) -> list[str]:
        """What is wrong, a sentence for each kind, with the first of each."""
        said = []
        if self.torn_aside:
            said.append("torn manifests were moved aside when the lake opened")
        elif self.lost is not None and not self.manifests:
            said.append(f"the manifest of version {self.lost} is missing; version {self.base} opens instead")
        for version, _, reason in self.manifests[:1]:
            more = f" ({len(self.manifests)} such)" if len(self.manifests) > 1 else ""
            said.append(f"the manifest of version {version} is damaged: {reason}{more}")
        for kind, broken in (
            ("data file", self.files),
            ("list of deleted rows", self.deletions),
            ("index", self.indexes),
            ("tag", self.tags),
        ):
            for path, reason in [*broken.items()][:1]:
                more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
                said.append(f"{kind} {path} cannot be read: {reason}{more}")
        return said


def examine(folder: Path, name: str, *, deep: bool) -> TableDamage:
    """What is damaged of a table of the lake in `folder`. The files in its `unread` are still to be read."""
    table = folder / f"{name}.lance"
    damage = TableDamage(name)
    damage.torn_aside = bool(quarantine.manifests_aside(folder, name))
    record = checksums.read(folder, name)
    noted = hinted(table)  # before the manifests: a writer notes its version after it has written the manifest
    listed = table_files.manifests(table)
    base: lance.LanceDataset | None = None
    older_whole = False  # known to be
    for version, path in listed:
        try:
            if older_whole:
                opened, reason = None, quarantine.torn(path)
            else:
                opened, reason = _opened(table, version, path, record)
        except FileNotFoundError:  # maintenance has just removed it
            continue
        if reason is not None:
            damage.manifests.append((version, path, reason))
        elif base is None and opened is not None:
            base, damage.base = opened, version
            older_whole = not deep or _all_readable(opened, len(listed) - len(damage.manifests))
    newest = max([version for version, _ in listed] + [noted, record.version], default=0)
    if newest > (damage.base or 0):
        damage.lost = newest
        copy = checksums.manifest_copy(folder, name)
        damage.from_copy = record.version > (damage.base or 0) and checksums.matches(copy, record.manifest)
    if base is not None and not damage.from_copy:
        examine_version(damage, table, base, record, deep=deep)
    return damage


def examine_version(
    damage: TableDamage, table: Path, dataset: lance.LanceDataset, record: checksums.Record, *, deep: bool
) -> None:
    """Adds the damaged files that the dataset's version names, and those to be read."""
    columns_of = _columns(dataset)
    blobs_of: dict[str, list[str]] = {}  # data file -> its files of blobs, as recorded
    for recorded in record.files:
        if recorded.startswith("data/") and recorded.count("/") > 1:
            blobs_of.setdefault(recorded.rpartition("/")[0] + ".lance", []).append(recorded)
    for fragment in dataset.get_fragments():
        for file in fragment.metadata.files:
            path = f"data/{file.path}"
            reason = file_damage(table / path, file.file_size_bytes)
            blobs = blobs_of.get(path, [])
            reason = reason or next((f"its {blob} is missing" for blob in blobs if not (table / blob).exists()), None)
            for recorded in (path, *blobs):
                reason = reason or _changed(table, recorded, record, deep)
            if reason is not None:
                damage.files[path] = reason
            elif deep and path not in record.files:
                names = sorted({columns_of[number] for number in file.fields if columns_of.get(number)})
                if names:
                    damage.unread.append(FileToRead(str(table), dataset.version, path, fragment.fragment_id, names))
        if deletions := fragment.deletion_file():
            reason = None if table_files.has_bytes(table / deletions) else "it is missing or empty"
            reason = reason or _changed(table, deletions, record, deep) or _unreadable_deletions(fragment, deep)
            if reason is not None:
                damage.deletions[deletions] = reason
    # A fragment with an unreadable list of deleted rows cannot be read as a whole.
    broken = {f.fragment_id for f in dataset.get_fragments() if f.deletion_file() in damage.deletions}
    damage.unread = [file for file in damage.unread if file.fragment not in broken]
    damage.indexes |= _index_damage(dataset, table, record, deep)
    damage.tags |= tag_damage(table)


def _opened(
    table: Path, version: int, path: Path, record: checksums.Record
) -> tuple[lance.LanceDataset | None, str | None]:
    """The table at a version, or else what is wrong with its manifest."""
    import lance

    torn = quarantine.torn(path)
    if torn is not None:
        return None, torn
    if record.version == version and checksums.changed_manifest(table.parent, table.stem, path, record):
        return None, "its bytes have changed"
    try:
        opened = lance.dataset(str(table), version=version)
        opened.get_fragments()
        named = opened.version
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Lance's panics are no Exception
        return None, str(error).split(", /")[0][:200] or type(error).__name__
    return (opened, None) if named == version else (None, "it belongs to another version")


def _all_readable(opened: lance.LanceDataset, count: int) -> bool:
    """Whether the manifests of its version and of the older ones, `count` in all, can be read."""
    try:
        versions = opened.versions()
    except KeyboardInterrupt:
        raise
    except BaseException:  # Lance's panics are no Exception
        return False
    return len({entry["version"] for entry in versions if entry["version"] <= opened.version}) == count


def hinted(table: Path) -> int:
    """The version that Lance noted as the newest after its commit; 0 if it noted none."""
    try:
        return int(json.loads((table / table_files.VERSIONS / HINT).read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def lost_manifest(folder: Path, name: str, unsynced_seconds: float = 0.0) -> int | None:
    """The newest version of the table, if its manifest is missing; None if it is there, or was torn and moved aside.

    A loss of the last `unsynced_seconds` is not told: a power loss explains it.
    """
    table = folder / f"{name}.lance"
    noted = hinted(table)  # first, as in `examine`
    newest = max((version for version, _ in table_files.manifests(table)), default=0)
    if noted <= newest or quarantine.manifests_aside(folder, name):
        return None
    age = time.time() - (table / table_files.VERSIONS / HINT).stat().st_mtime
    return noted if age > unsynced_seconds else None


def write_hint(table: Path, version: int) -> None:
    """Notes the newest version, as Lance does after a commit."""
    path = table / table_files.VERSIONS / HINT
    part = path.with_name(f".tmp_{HINT}")
    part.write_text(json.dumps({"version": version}))
    os.replace(part, path)


def _columns(dataset: lance.LanceDataset) -> dict[int, str]:
    """The top-level column of every field's number, without blobs."""
    columns: dict[int, str] = {}

    def add(field: Any, column: str) -> None:
        columns[field.id()] = column
        for child in field.children():
            add(child, column)

    for top in dataset.lance_schema.fields():
        kind = dataset.schema.field(top.name()).type
        if getattr(kind, "extension_name", "") != BLOB:
            add(top, top.name())
    return columns


def file_damage(path: Path, size: int | None = None) -> str | None:
    """What sizes and ends say of a data file of `size` bytes; None: nothing is wrong."""
    if not path.exists():
        return "it is missing"
    present = path.stat().st_size
    if size and present != size:
        return f"it has {present:,} bytes, the table's manifest says {size:,}"
    return None if table_files.ends_whole(path) else "its end is missing"


def _changed(table: Path, path: str, record: checksums.Record, deep: bool) -> str | None:
    if path not in record.files:
        return None
    size, digest = record.files[path]
    if (table / path).stat().st_size != size:
        return f"it has {(table / path).stat().st_size:,} bytes, it was written with {size:,}"
    return "its bytes have changed" if deep and checksums.sha256(table / path) != digest else None


def _unreadable_deletions(fragment: lance.LanceFragment, deep: bool) -> str | None:
    if not deep:
        return None
    stored = fragment.metadata.physical_rows - fragment.metadata.num_deletions
    try:
        rows = fragment.scanner(columns=[], with_row_id=True).to_table().num_rows
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Lance's panics are no Exception
        text = str(error).split(", /")[0]
        return None if "/data/" in text else text[:200]  # a data file is judged by itself
    return None if rows == stored else f"it leaves {rows} rows, the table's manifest says {stored}"


def _index_damage(dataset: lance.LanceDataset, table: Path, record: checksums.Record, deep: bool) -> dict[str, str]:
    from lance.file import LanceFileReader

    bad: dict[str, str] = {}
    for name, uuid in index_segments(dataset):
        folder = table / "_indices" / uuid
        prefix = f"_indices/{uuid}/"
        files = sorted(folder.glob("*")) if folder.is_dir() else []
        gone = [path for path in record.files if path.startswith(prefix) and not (table / path).exists()]
        reason = "its files are missing" if not files or gone else None
        for file in files:
            path = prefix + file.name
            if reason is None and file.stat().st_size == 0:
                reason = f"{file.name} is empty"
            reason = reason or _changed(table, path, record, deep)
            if reason is None and file.suffix == ".lance":
                reason = None if table_files.ends_whole(file) else f"the end of {file.name} is missing"
                if reason is None and deep and path not in record.files:
                    try:
                        LanceFileReader(str(file)).read_all().to_table()
                    except KeyboardInterrupt:
                        raise
                    except BaseException as error:
                        reason = f"{file.name}: " + str(error).split(", /")[0][:200]
        if reason is not None:
            bad[name] = reason
    return bad


def index_segments(dataset: lance.LanceDataset, column: str | None = None) -> list[tuple[str, str]]:
    """(name of the index, name of its folder) of every part of the indexes, or of those of one column."""
    indexes = [index for index in dataset.describe_indices() if column is None or index.field_names == [column]]
    return [(index.name, str(segment.uuid)) for index in indexes for segment in index.segments]


def tag_damage(table: Path) -> dict[str, str]:
    """The tags of a table that cannot be read or name no version."""
    bad = {}
    for path in sorted((table / "_refs/tags").glob("*.json")):
        try:
            version = json.loads(path.read_text())["version"]
        except (OSError, ValueError, KeyError, TypeError):
            bad[path.relative_to(table).as_posix()] = "it is not readable JSON with a version"
            continue
        if not any(number == version for number, _ in table_files.manifests(table)):
            bad[path.relative_to(table).as_posix()] = f"version {version} does not exist any more"
    return bad


def of_lake(folder: Path, names: list[str], *, deep: bool) -> list[TableDamage]:
    """The damage of each of the tables that is in the folder and damaged."""
    present = [name for name in names if os.path.isdir(folder / f"{name}.lance")]
    examined = [_steady(folder, name, deep) for name in present]
    read_all(examined)
    return [damage for damage in examined if damage]


def _steady(folder: Path, name: str, deep: bool) -> TableDamage:
    """`examine`, again if the table changed meanwhile: a commit and a clean-up would look like missing files."""
    for _ in range(ATTEMPTS):
        before = _newest(folder, name)
        found = examine(folder, name, deep=deep)
        if not found or _newest(folder, name) == before:
            break
    return found


def _newest(folder: Path, name: str) -> int:
    return max((version for version, _ in table_files.manifests(folder / f"{name}.lance")), default=0)


def read_all(examined: list[TableDamage]) -> None:
    """Reads the files in `unread`, all in one process, and adds those that cannot be read to `files`."""
    waiting = [(damage, file) for damage in examined for file in damage.unread]
    for (damage, file), reason in zip(waiting, unreadable([file for _, file in waiting]), strict=True):
        if reason is not None:
            damage.files[file.path] = reason
    for damage in examined:
        damage.unread = []
