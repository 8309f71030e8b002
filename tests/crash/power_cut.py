"""Computes what a disk may hold after a power cut, from a trace of everything written to it.

What was synced is there. Of the rest, each write and each new or removed name may be there or not, in any combination.
That is more than a real file system would do, and what SQLite and the spool must be ready for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.crash.trace import STRACE, Call

TRACED = ("openat", "mkdir", "unlink", "write", "writev", "pwrite64", "ftruncate", "fdatasync", "fsync")
UNNEEDED = ("-shm", ".lock")
Fate = Literal["none", "all", "some"]

_HEX = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FILE = re.compile(r"^(\d+)<([^>]*)>")


def options(to: Path) -> list[str]:
    """The words before a command that make strace record every byte it writes."""
    assert STRACE is not None
    return [STRACE, "-D", "-f", "-y", "-q", "-xx", "-s", "1000000", "-o", str(to), "-e", f"trace={','.join(TRACED)}"]


@dataclass
class Write:
    """Bytes at an offset; without bytes, a new length. `line` is when it was begun."""

    line: int
    offset: int
    data: bytes | None
    synced: float = float("inf")


@dataclass
class Name:
    """A file or folder appearing in its folder, or disappearing from it."""

    line: int
    path: str
    file: File | None
    folder: bool = False
    synced: float = float("inf")


@dataclass
class File:
    writes: list[Write] = field(default_factory=list)
    length: int = 0


@dataclass
class Disk:
    """Everything done below `root`, in order. `messages` are (line of the trace, text written to standard output)."""

    root: str
    names: list[Name] = field(default_factory=list)
    messages: list[tuple[int, str]] = field(default_factory=list)
    lines: int = 0

    def __post_init__(self) -> None:
        self._files: dict[str, File] = {}

    def replay(self, calls: Sequence[Call]) -> Disk:
        """Takes note of the calls of a trace made with `options`."""
        for call in calls:
            self.lines = max(self.lines, call.begun + 1)
            if call.ok:
                self._did(call)
        return self

    def _did(self, call: Call) -> None:
        strings = [_unhexed(text) for text in _HEX.findall(call.text)]
        if call.name in ("openat", "mkdir", "unlink"):
            path = strings[0].decode()
            if path.startswith(self.root) and not path.endswith(UNNEEDED):
                self._named(call, path)
            return
        match_ = _FILE.match(call.text)
        assert match_ is not None, call.text[:200]
        path = _unhexed(match_[2]).decode(errors="replace")
        if call.name == "write" and match_[1] == "1":
            self.messages.append((call.begun, strings[0].decode()))
        elif call.name in ("fsync", "fdatasync"):
            self._synced(call, path)
        elif (file := self._files.get(path)) is not None:
            self._wrote(call, file, b"".join(strings))

    def _named(self, call: Call, path: str) -> None:
        if call.name == "unlink":
            self.names.append(Name(call.begun, path, None))
            self._files.pop(path, None)
        elif call.name == "mkdir":
            self.names.append(Name(call.begun, path, None, folder=True))
        elif "O_CREAT" in call.text and path not in self._files:
            self._files[path] = File()
            self.names.append(Name(call.begun, path, self._files[path]))

    def _wrote(self, call: Call, file: File, data: bytes) -> None:
        if call.name == "ftruncate":
            offset = int(call.text.rpartition(", ")[2].partition(")")[0])
            file.writes.append(Write(call.begun, offset, None))
            file.length = offset
            return
        assert call.result == len(data), "the trace does not have every byte"
        # Only segments are written by write and writev, and they are only appended to.
        offset = int(call.text.rpartition(", ")[2].partition(")")[0]) if call.name == "pwrite64" else file.length
        file.writes.append(Write(call.begun, offset, data))
        file.length = max(file.length, offset + len(data))

    def _synced(self, call: Call, path: str) -> None:
        for write in self._files[path].writes if path in self._files else ():
            if write.line < call.begun:
                write.synced = min(write.synced, call.ended)
        for name in self.names:
            if str(Path(name.path).parent) == path and name.line < call.begun:
                name.synced = min(name.synced, call.ended)

    def after_a_cut(self, line: int, fate: Fate, chance: random.Random, to: Path) -> None:
        """Writes into the folder `to` what the disk may hold if the power fails at that line of the trace."""

        def survives(thing: Write | Name) -> bool:
            if thing.line >= line:
                return False
            return thing.synced < line or fate == "all" or (fate == "some" and chance.random() < 0.5)

        present: dict[str, File | None] = {}
        for name in self.names:
            if survives(name):
                if name.file is None and not name.folder:
                    present.pop(name.path, None)
                else:
                    present[name.path] = name.file
        for path, file in present.items():
            path_ = to / Path(path).relative_to(self.root)
            if not all(str(above) in present for above in Path(path).parents if len(str(above)) > len(self.root)):
                continue  # its folder is not there
            if file is None:
                path_.mkdir(parents=True, exist_ok=True)
                continue
            path_.parent.mkdir(parents=True, exist_ok=True)
            content = bytearray()
            for write in file.writes:
                if survives(write):
                    _apply(content, write)
            path_.write_bytes(content)


def _unhexed(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", "")) if text.startswith("\\x") else text.encode()


def _apply(content: bytearray, write: Write) -> None:
    end = write.offset + len(write.data or b"")
    if write.data is None:
        del content[end:]
    content.extend(bytes(max(0, end - len(content))))
    if write.data is not None:
        content[write.offset : end] = write.data
