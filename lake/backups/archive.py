"""Writes and reads archives: a folder or a tar of files with a list of their names, sizes and SHA-256.

An archive is written completely or not at all, and synced to the disk before it gets its name. Reading trusts nothing:
it takes only files on the list, only plain files, and no name that leads out of the folder. This module does not know
what the files are. Whoever can change the list can change its hash: where that matters, keep the hash elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lake.errors import BadInput
from lake.spool.segments import sync_folder

LIST = "manifest.json"
LIST_HASH = "manifest.sha256"
# Safe names: none leads out of the folder, and all work on other file systems.
_NAME = re.compile(r"(?!\.{1,2}(/|\Z))[A-Za-z0-9._@~-]{1,255}(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._@~-]{1,255})*\Z")
_CHUNK = 1 << 20
MOST_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class ArchiveContents:
    """The list of an archive: `facts` of its writer, (size, SHA-256) of its files by name, and the list's own hash."""

    facts: dict[str, Any]
    files: dict[str, tuple[int, str]]
    sha256: str

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def is_name(text: str) -> bool:
    """Whether `text` is a valid name of a file in an archive."""
    return len(text) <= 1_000 and _NAME.match(text) is not None


class Writer:
    """Writes an archive: call `add` for each file, then `finish`. Without `finish` it removes what it wrote.

    A destination that ends in .tar becomes one file, any other a folder. Raises BadInput if the destination exists, or
    if an interrupted run left its half there.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self._half = destination.with_name(destination.name + ".part")
        for path in (destination, self._half):
            if path.exists() or path.is_symlink():
                remedy = ", left by an interrupted run: remove it" if path == self._half else "; choose another name"
                raise BadInput(f"{path} exists already{remedy}")
        destination.parent.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, tuple[int, str]] = {}
        self._tar: tarfile.TarFile | None = None
        if destination.suffix == ".tar":
            self._tar = tarfile.open(self._half, "x", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        else:
            self._half.mkdir()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar is not None:
            self._tar.close()
        if self._half.is_dir():
            shutil.rmtree(self._half)
        else:
            self._half.unlink(missing_ok=True)

    def add(self, name: str, source: IO[bytes], size: int | None = None) -> int:
        """Copies the next `size` bytes of a file (by default all) into the archive. Returns their number."""
        assert is_name(name), name
        assert name not in self._files, name
        size = os.fstat(source.fileno()).st_size if size is None else size
        reader = _HashingReader(source, size)
        if self._tar is not None:
            entry = tarfile.TarInfo(name)
            entry.size = size
            self._tar.addfile(entry, reader)
        else:
            target = self._half / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                while chunk := reader.read(_CHUNK):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
        if reader.left:
            raise OSError(f"{name} was shortened while it was copied")
        self._files[name] = (size, reader.sha256.hexdigest())
        return size

    def finish(self, facts: dict[str, Any]) -> ArchiveContents:
        """Adds the list, syncs everything to the disk, and gives the archive its name."""
        files = [{"path": name, "size": size, "sha256": hash_} for name, (size, hash_) in sorted(self._files.items())]
        text = json.dumps(facts | {"files": files}, indent=1).encode()
        sha256 = hashlib.sha256(text).hexdigest()
        contents = ArchiveContents(facts, dict(self._files), sha256)
        for name, data in ((LIST, text), (LIST_HASH, f"{sha256}  {LIST}\n".encode())):
            if self._tar is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                self._tar.addfile(entry, io.BytesIO(data))
            else:
                with (self._half / name).open("xb") as out:
                    out.write(data)
                    out.flush()
                    os.fsync(out.fileno())
        if self._tar is not None:
            self._tar.close()
            with self._half.open("rb+") as out:
                os.fsync(out.fileno())
        else:
            for folder, _, _ in os.walk(self._half):
                sync_folder(Path(folder))
        self._half.rename(self.destination)
        sync_folder(self.destination.parent)
        return contents


def read(
    source: Path, into: Path | None = None, expect: str | None = None, progress: Callable[[int], None] = lambda n: None
) -> ArchiveContents:
    """Checks every file of an archive against its list. With `into`, it also copies the files into this new folder.

    `expect` is the expected SHA-256 of the list. `progress` gets the number of bytes just read. Raises BadInput for the
    first error; the caller removes the files copied until then.
    """
    files: dict[str, tuple[int, str]] = {}
    lists: dict[str, bytes] = {}
    try:
        for name, size, stream in _entries(source):
            if not is_name(name):
                raise BadInput(f"{source} is not a backup of lakeloop: it has a file named {name!r:.200}")
            if name in files or name in lists:
                raise BadInput(f"{source} is damaged: {name} exists twice")
            if name not in (LIST, LIST_HASH):
                files[name] = _copy(stream, size, None if into is None else into / name, progress)
            elif size > MOST_LIST_BYTES:
                raise BadInput(f"{source} is damaged: {name} has {size:,} bytes")
            else:
                lists[name] = stream.read(size)
    except tarfile.TarError as error:
        raise BadInput(f"{source} is damaged: it cannot be read as a tar ({error})") from error
    except (FileExistsError, NotADirectoryError) as error:  # a name is both a file and a folder
        raise BadInput(f"{source} is damaged: {error.filename} exists twice") from error
    return _compare(source, files, lists, expect)


def _copy(stream: IO[bytes], size: int, target: Path | None, progress: Callable[[int], None]) -> tuple[int, str]:
    """Reads a file to its end, and copies it to `target` if given. Returns its length and its SHA-256."""
    reader = _HashingReader(stream, size)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "wb") if target is None else target.open("xb") as out:
        while chunk := reader.read(_CHUNK):
            out.write(chunk)
            progress(len(chunk))
    return size - reader.left, reader.sha256.hexdigest()


def read_list(source: Path) -> ArchiveContents | None:
    """Reads only the list of an archive that is a folder; None for a tar, where the list comes last."""
    if not source.is_dir():
        return None
    lists = {}
    for name in (LIST, LIST_HASH):
        path = source / name
        if path.is_file() and not path.is_symlink():
            lists[name] = path.read_bytes()
    return _parse_list(source, lists, None)


def _compare(
    source: Path, files: dict[str, tuple[int, str]], lists: dict[str, bytes], expect: str | None
) -> ArchiveContents:
    contents = _parse_list(source, lists, expect)
    missing = sorted(set(contents.files) - set(files))
    extra = sorted(set(files) - set(contents.files))
    wrong = sorted(name for name in set(files) & set(contents.files) if files[name] != contents.files[name])
    for names, error in ((missing, "is missing"), (extra, "is not on its list"), (wrong, "does not match its list")):
        if names:
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInput(f"{source} is damaged: {names[0]} {error}{more}")
    return contents


def _parse_list(source: Path, lists: dict[str, bytes], expect: str | None) -> ArchiveContents:
    if LIST not in lists or LIST_HASH not in lists:
        raise BadInput(f"{source} is not a complete backup: {LIST if LIST not in lists else LIST_HASH} is missing")
    sha256 = hashlib.sha256(lists[LIST]).hexdigest()
    if lists[LIST_HASH] != f"{sha256}  {LIST}\n".encode():
        raise BadInput(f"{source} is damaged: {LIST} does not match {LIST_HASH}")
    if expect is not None and sha256 != expect.lower():
        raise BadInput(f"{source} is another backup than expected: the SHA-256 of its {LIST} is {sha256}")
    try:
        facts = json.loads(lists[LIST])
        files = {f["path"]: (int(f["size"]), str(f["sha256"])) for f in facts.pop("files")}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{source} is not a backup of lakeloop: its {LIST} cannot be read") from error
    return ArchiveContents(facts, files, sha256)


def _entries(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, size, open file) of every entry of the archive. Raises BadInput for an entry that is not a plain file."""
    if source.is_dir():
        yield from _folder_entries(source)
    elif source.is_file():
        yield from _tar_entries(source)
    else:
        raise BadInput(f"no backup at {source}")


def _folder_entries(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    for folder, folders, files in os.walk(source):
        for name in sorted(folders):
            if Path(folder, name).is_symlink():
                raise BadInput(f"{source} is not a backup of lakeloop: {name} is a link")
        for name in sorted(files):
            path = Path(folder, name)
            relative = path.relative_to(source).as_posix()
            if path.is_symlink() or not path.is_file():
                raise BadInput(f"{source} is not a backup of lakeloop: {relative} is not a plain file")
            with path.open("rb") as file:
                yield relative, os.fstat(file.fileno()).st_size, file


def _tar_entries(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    try:
        with tarfile.open(source, "r:") as tar:
            end = 0
            for entry in tar:
                if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.issparse():
                    raise BadInput(f"{source} is not a backup of lakeloop: {entry.name!r:.200} is not a plain file")
                file = tar.extractfile(entry)
                assert file is not None
                yield entry.name, entry.size, file
                end = entry.offset_data + entry.size
                _check_padding(source, end, -end % tarfile.BLOCKSIZE)
            # tarfile takes the first bad header for the end.
            _check_padding(source, end + -end % tarfile.BLOCKSIZE, None)
    except (EOFError, OverflowError, ValueError) as error:  # from numbers and names that are invalid in a tar
        raise BadInput(f"{source} is damaged: it cannot be read as a tar ({error})") from error


def _check_padding(source: Path, start: int, length: int | None) -> None:
    """Raises BadInput unless the bytes between and after the files of a tar are zeros."""
    with source.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK if length is None else length):
            if any(chunk):
                raise BadInput(f"{source} is damaged: there are bytes between its files")
            if length is not None:
                return


class _HashingReader:
    """Reads the next `left` bytes of a file and hashes them."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source = source
        self.left = size
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        self.sha256.update(data)
        return data
