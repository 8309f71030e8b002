"""A folder or a tar of files with a list of them: name, size and SHA-256 of each, and the SHA-256 of the list.

Written whole or not at all, and on the disk before it counts as written. Read as if a stranger had made it: nothing is
taken out that is not on the list, no name leads out of the folder, only plain files are taken. It does not know what
the files are. Who can change the list can change its hash too: keep the hash elsewhere where that matters.
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
# A name of ours: no way out of the folder, no surprise on another file system.
_NAME = re.compile(r"(?!\.{1,2}(/|\Z))[A-Za-z0-9._@~-]{1,255}(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._@~-]{1,255})*\Z")
_CHUNK = 1 << 20
MOST_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class Contents:
    """What an archive says of itself: `facts` as its writer gave them, its files' sizes and hashes by name."""

    facts: dict[str, Any]
    files: dict[str, tuple[int, str]]
    sha256: str

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def is_name(text: str) -> bool:
    """Whether a file may be called so in an archive."""
    return len(text) <= 1_000 and _NAME.match(text) is not None


class Writer:
    """Writes one archive: `add` its files, then `finish`. Left without `finish`, nothing stays.

    A destination that ends in .tar becomes one file, any other a folder.
    Raises BadInput when something is at the destination, or a writer before was killed there.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self._half = destination.with_name(destination.name + ".part")
        for path in (destination, self._half):
            if path.exists() or path.is_symlink():
                left = ", left by an interrupted run: remove it" if path == self._half else "; choose another name"
                raise BadInput(f"{path} exists already{left}")
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
        """Copies a file's next `size` bytes (by default all) into the archive; returns how many."""
        assert is_name(name), name
        assert name not in self._files, name
        size = os.fstat(source.fileno()).st_size if size is None else size
        reader = _Hashing(source, size)
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
            raise OSError(f"{name} became shorter while it was copied")
        self._files[name] = (size, reader.sha256.hexdigest())
        return size

    def finish(self, facts: dict[str, Any]) -> Contents:
        """Adds the list, has the disk hold everything, and gives the archive its name."""
        files = [{"path": name, "size": size, "sha256": hash_} for name, (size, hash_) in sorted(self._files.items())]
        text = json.dumps(facts | {"files": files}, indent=1).encode()
        sha256 = hashlib.sha256(text).hexdigest()
        contents = Contents(facts, dict(self._files), sha256)
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
) -> Contents:
    """Checks every file of an archive against its list, and copies them into the new folder `into` when one is given.

    `expect` is what the list's SHA-256 must be. `progress` is called with the number of bytes just read.
    Raises BadInput for the first thing that is wrong; what was copied until then is the caller's to remove.
    """
    found: dict[str, tuple[int, str]] = {}
    kept: dict[str, bytes] = {}
    try:
        for name, size, stream in _entries(source):
            if not is_name(name):
                raise BadInput(f"{source} is no backup of lakeloop's: it has a file called {name!r:.200}")
            if name in found or name in kept:
                raise BadInput(f"{source} is damaged: {name} is there twice")
            if name not in (LIST, LIST_HASH):
                found[name] = _copied(stream, size, None if into is None else into / name, progress)
            elif size > MOST_LIST_BYTES:
                raise BadInput(f"{source} is damaged: its {name} has {size:,} bytes")
            else:
                kept[name] = stream.read(size)
    except tarfile.TarError as error:
        raise BadInput(f"{source} is damaged: it cannot be read as a tar ({error})") from error
    except (FileExistsError, NotADirectoryError) as error:  # one name is a file and a folder
        raise BadInput(f"{source} is damaged: {error.filename} is there twice") from error
    return _compared(source, found, kept, expect)


def _copied(stream: IO[bytes], size: int, target: Path | None, progress: Callable[[int], None]) -> tuple[int, str]:
    """Reads a file to its end, into `target` when one is given; returns how long it was, and its SHA-256."""
    reader = _Hashing(stream, size)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "wb") if target is None else target.open("xb") as out:
        while chunk := reader.read(_CHUNK):
            out.write(chunk)
            progress(len(chunk))
    return size - reader.left, reader.sha256.hexdigest()


def read_list(source: Path) -> Contents | None:
    """The list of an archive that is a folder, before anything else is read; None for a tar, where it comes last."""
    if not source.is_dir():
        return None
    kept = {}
    for name in (LIST, LIST_HASH):
        path = source / name
        if path.is_file() and not path.is_symlink():
            kept[name] = path.read_bytes()
    return _listed(source, kept, None)


def _compared(source: Path, found: dict[str, tuple[int, str]], kept: dict[str, bytes], expect: str | None) -> Contents:
    listed = _listed(source, kept, expect)
    missing = sorted(set(listed.files) - set(found))
    extra = sorted(set(found) - set(listed.files))
    wrong = sorted(name for name in set(found) & set(listed.files) if found[name] != listed.files[name])
    for names, what in ((missing, "is missing"), (extra, "does not belong to it"), (wrong, "is not what was written")):
        if names:
            more = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInput(f"{source} is damaged: {names[0]} {what}{more}")
    return listed


def _listed(source: Path, kept: dict[str, bytes], expect: str | None) -> Contents:
    if LIST not in kept or LIST_HASH not in kept:
        raise BadInput(f"{source} is no whole backup: its {LIST if LIST not in kept else LIST_HASH} is missing")
    sha256 = hashlib.sha256(kept[LIST]).hexdigest()
    if kept[LIST_HASH] != f"{sha256}  {LIST}\n".encode():
        raise BadInput(f"{source} is damaged: {LIST} is not what was written")
    if expect is not None and sha256 != expect.lower():
        raise BadInput(f"{source} is not the backup you mean: the SHA-256 of its {LIST} is {sha256}")
    try:
        facts = json.loads(kept[LIST])
        files = {f["path"]: (int(f["size"]), str(f["sha256"])) for f in facts.pop("files")}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{source} is no backup of lakeloop's: its {LIST} cannot be understood") from error
    return Contents(facts, files, sha256)


def _entries(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, size, open file) of everything in the archive. Raises BadInput for what is not a plain file."""
    if source.is_dir():
        yield from _of_folder(source)
    elif source.is_file():
        yield from _of_tar(source)
    else:
        raise BadInput(f"there is no backup at {source}")


def _of_folder(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    for folder, folders, files in os.walk(source):
        for name in sorted(folders):
            if Path(folder, name).is_symlink():
                raise BadInput(f"{source} is no backup of lakeloop's: {name} is a link")
        for name in sorted(files):
            path = Path(folder, name)
            relative = path.relative_to(source).as_posix()
            if path.is_symlink() or not path.is_file():
                raise BadInput(f"{source} is no backup of lakeloop's: {relative} is not a plain file")
            with path.open("rb") as file:
                yield relative, os.fstat(file.fileno()).st_size, file


def _of_tar(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    try:
        with tarfile.open(source, "r:") as tar:
            end = 0
            for entry in tar:
                if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.issparse():
                    raise BadInput(f"{source} is no backup of lakeloop's: {entry.name!r:.200} is not a plain file")
                file = tar.extractfile(entry)
                assert file is not None
                yield entry.name, entry.size, file
                end = entry.offset_data + entry.size
                _refuse_filling(source, end, -end % tarfile.BLOCKSIZE)
            # The first bad header looks to tarfile like the end.
            _refuse_filling(source, end + -end % tarfile.BLOCKSIZE, None)
    except (EOFError, OverflowError, ValueError) as error:  # of numbers and names that no tar has
        raise BadInput(f"{source} is damaged: it cannot be read as a tar ({error})") from error


def _refuse_filling(source: Path, start: int, length: int | None) -> None:
    """Between and after the files a tar is filled with zeros."""
    with source.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK if length is None else length):
            if any(chunk):
                raise BadInput(f"{source} is damaged: there are bytes between its files")
            if length is not None:
                return


class _Hashing:
    """Reads the next `left` bytes of a file, hashing them on the way."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source = source
        self.left = size
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        self.sha256.update(data)
        return data
