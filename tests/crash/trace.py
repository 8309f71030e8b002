"""The system calls of a process, read from strace, and three rules about their order.

- An answer of 2xx leaves only when every file and folder entry of the spool that was written before is synced.
- The drainer forgets events, and removes their segments, only when everything it wrote to the lake is synced.
- SQLite's journal is begun anew only when the database it was copied into is synced.

A power loss keeps what was synced and any part of the rest, so an order that holds here loses nothing there. A sync
counts for what was written before it was called, and only from the moment it has returned without an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

STRACE = shutil.which("strace")


def _why_not() -> str | None:
    """Why strace cannot be used here; None when it can."""
    if STRACE is None:
        return "strace is not installed"
    tried = subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True, text=True)
    return f"strace does not work here: {tried.stderr.strip()[-200:]}" if tried.returncode else None


needs_strace = pytest.mark.skipif(_why_not() is not None, reason=_why_not() or "")
WRITES = {"write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "copy_file_range", "sendfile"}
SYNCS = {"fsync", "fdatasync"}
NAMES = {"openat", "open", "creat", "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat"}
REMOVES = {"unlink", "unlinkat"}
FORKS = {"clone", "clone3", "fork", "vfork"}
ANSWERS = {"sendto", "sendmsg"}
TRACED = WRITES | SYNCS | NAMES | REMOVES | FORKS | ANSWERS | {"syncfs", "execve"}
# Never needed after a power loss.
UNNEEDED = ("-shm", ".lock")

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")
_RESULT = re.compile(r"\) += (-?\d+)[^)]*$")
_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Call:
    """One system call. `begun` and `ended` are line numbers of the trace; `result` is None when it never returned."""

    pid: int
    name: str
    text: str
    begun: int
    ended: float
    result: int | None

    @property
    def ok(self) -> bool:
        return self.result is not None and self.result >= 0

    @property
    def paths(self) -> list[str]:
        """Of the file that was written or synced, or of those that were named: the old one first."""
        if self.name in NAMES | REMOVES:
            return _STRING.findall(self.text)
        return _DESCRIPTOR.findall(self.text)[:1]


def options(to: Path) -> list[str]:
    """What goes before a command. The traced process stays the caller's own child."""
    assert STRACE is not None
    words = [STRACE, "-D", "-f", "--seccomp-bpf", "-y", "-q", "-s", "48", "-o", str(to)]
    return [*words, "-e", f"trace={','.join(f'?{name}' for name in sorted(TRACED))}"]


def read(lines: Iterable[str]) -> list[Call]:
    """The calls of a trace in the order they began."""
    begun: dict[tuple[int, str], tuple[int, str]] = {}
    calls = []
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None:
            continue
        pid, resumed, name, text = int(match[1]), match[2], match[3], match[4]
        if resumed is not None:
            start, head = begun.pop((pid, resumed), (number, ""))
            calls.append(_call(pid, resumed, head + text, start, number))
        elif text.endswith("<unfinished ...>"):
            begun[pid, name] = (number, text.removesuffix("<unfinished ...>"))
        else:
            calls.append(_call(pid, name, text, number, number))
    calls += [Call(pid, name, text, start, float("inf"), None) for (pid, name), (start, text) in begun.items()]
    return sorted(calls, key=lambda call: call.begun)


def finished(file: Path, pid: int, seconds: float = 20.0) -> list[Call]:
    """The calls of a trace, once strace has reported the end of the process it began with."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = file.read_text()
        if re.search(rf"^{pid} +\+\+\+ ", text, re.M):
            return read(text.splitlines())
        time.sleep(0.02)
    raise TimeoutError(f"{file} does not end: {text[-500:]}")


def _call(pid: int, name: str, text: str, begun: int, ended: int) -> Call:
    result = _RESULT.search(text)
    return Call(pid, name, text, begun, ended, int(result[1]) if result else None)


def processes(calls: Sequence[Call]) -> dict[int, int]:
    """thread -> its process, both by the kernel's number."""
    parent = {c.result: c.pid for c in calls if c.name in FORKS and c.ok and c.result and "CLONE_THREAD" in c.text}
    pids = {}
    for pid in {c.pid for c in calls} | {p for p in parent if p is not None}:
        leader = pid
        while leader in parent:
            leader = parent[leader]
        pids[pid] = leader
    return pids


def running(calls: Sequence[Call], word: str) -> int | None:
    """The process whose command line has the word."""
    return next((c.pid for c in calls if c.name == "execve" and c.ok and f'"{word}"' in c.text), None)


@dataclass
class Audit:
    """What was checked, how often, and what was found wrong."""

    checked: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Disk:
    """Which of the files below `root` hold something that a power loss would take."""

    def __init__(self, root: Path, unneeded: Sequence[str] = UNNEEDED) -> None:
        self.root = f"{root}/"
        self.unneeded = unneeded
        self.dirty: dict[str, float] = {}
        self.known: set[str] = set()
        self.synced: list[str] = []

    def saw(self, call: Call, when: Literal["begun", "ended"]) -> None:
        """A write counts from its beginning, a sync from its end. For calls in the order of the trace."""
        if when == "begun":
            if call.name in WRITES and self._mine(path := _first(call)):
                self.dirty[path] = float("inf") if call.result is None else call.ended
        elif call.name in SYNCS and call.result == 0:
            path = _first(call)
            if path in self.dirty and self.dirty[path] < call.begun:
                del self.dirty[path]
            self.synced.append(path)
        elif call.name == "syncfs" and call.result == 0:
            self.dirty = {path: last for path, last in self.dirty.items() if last >= call.begun}
            self.synced.append("everything")
        elif call.name in NAMES and call.ok and call.paths:
            self._named(call)
        elif call.name in REMOVES and call.ok:
            self.dirty.pop(_first(call), None)
            self.known.discard(_first(call))

    def _named(self, call: Call) -> None:
        new = call.paths[-1]
        if not self._mine(new):
            return
        makes = call.name not in ("openat", "open") or "O_CREAT" in call.text
        if makes and new not in self.known:
            self.dirty[str(Path(new).parent)] = call.ended
        if len(call.paths) == 2 and call.paths[0] in self.dirty:
            self.dirty[new] = self.dirty[call.paths[0]]
            if call.name.startswith("rename"):
                del self.dirty[call.paths[0]]
        self.known.add(new)

    def _mine(self, path: str) -> bool:
        return f"{path}/".startswith(self.root) and not path.endswith(tuple(self.unneeded))


def _first(call: Call) -> str:
    return call.paths[0] if call.paths else ""


def _moments(calls: Iterable[Call]) -> list[tuple[float, Literal["begun", "ended"], Call]]:
    """Beginnings and ends in order; of one line the beginning first."""
    moments: list[tuple[float, Literal["begun", "ended"], Call]] = []
    for call in calls:
        moments.append((call.begun, "begun", call))
        moments.append((call.ended, "ended", call))
    return sorted(moments, key=lambda moment: (moment[0], moment[1]))


def audit_answers(
    calls: Sequence[Call],
    spool: Path,
    needs: Sequence[set[str]],
    existing: Iterable[str] = (),
    response: str = "HTTP/1.1 2",
) -> Audit:
    """Audits every response of the traced server (a write that begins with `response`) against the spool's files.

    Requests came one after the other; `needs` has for each response the kinds of files (suffixes) that must have been
    synced since the response before, so that an audit of nothing cannot pass. `existing` paths were there before.
    """
    audit = Audit()
    group = processes(calls)
    server = calls[0].pid
    disk = Disk(spool)
    disk.known |= set(existing)
    files: set[str] = set()
    ever: set[str] = set()
    answers = 0
    for _, when, call in _moments(c for c in calls if group[c.pid] == server):
        if when == "begun" and _says(call, response):
            for path in sorted(disk.dirty):
                audit.violations.append(f"line {call.begun + 1}: an answer leaves while {path} is not synced")
            suffixes = {Path(path).name.rpartition(".")[2] for path in disk.synced}
            ever |= suffixes
            if answers < len(needs) and not needs[answers] <= suffixes:
                lacking = ", ".join(sorted(needs[answers] - suffixes))
                audit.violations.append(f"line {call.begun + 1}: answer {answers + 1} came without a sync of {lacking}")
            if "sqlite-wal" not in ever:
                audit.violations.append(f"line {call.begun + 1}: answered before the journal it found was synced")
            files |= {path for path in disk.synced if path.startswith(disk.root)}
            disk.synced.clear()
            answers += 1
        disk.saw(call, when)
    if answers != len(needs):
        audit.violations.append(f"{answers} answers were seen and {len(needs)} expected")
    audit.checked.update({"answers": answers, "files synced for them": len(files)})
    return audit


def _says(call: Call, words: str) -> bool:
    match_ = _STRING.search(call.text)
    return call.name in WRITES | ANSWERS and match_ is not None and match_[1].startswith(words)


def audit_drains(calls: Sequence[Call], lake: Path, spool: Path) -> Audit:
    """Every write of the drainer's to the spool's journal, and every segment it removed, against the lake's files."""
    audit = Audit()
    drainer = running(calls, "lake.upkeep.drainer")
    group = processes(calls)
    disk = Disk(lake)
    forgetting = False
    for _, when, call in _moments(c for c in calls if group[c.pid] == drainer):
        path = _first(call)
        if when == "begun" and path.startswith(f"{spool}/"):
            forgets = call.name in WRITES and path.endswith("-wal")
            removes = call.name in REMOVES and path.endswith(".seg")
            unsynced = [p for p in disk.dirty if not p.startswith(str(spool))]
            if (forgets or removes) and unsynced:
                action = "forgets events" if forgets else f"removes {Path(path).name}"
                audit.violations.append(
                    f"line {call.begun + 1}: the drainer {action} while {unsynced[0]} is not synced"
                )
            audit.checked["drains"] += forgets and not forgetting and audit.checked["files of the lake"] > 0
            audit.checked["segments removed"] += removes
            forgetting = forgets or (forgetting and not path.startswith(str(spool)))
        elif when == "begun" and call.name in WRITES and path.startswith(f"{lake}/"):
            audit.checked["files of the lake"] += path not in disk.dirty
            forgetting = False
        disk.saw(call, when)
    return audit


def audit_journal(calls: Sequence[Call], spool: Path) -> Audit:
    """Every new beginning of SQLite's journal, whichever process makes it, against the database."""
    audit = Audit()
    disk = Disk(spool)
    database = str(spool / "spool.sqlite")
    begun = 0
    for _, when, call in _moments(calls):
        if when == "begun" and _first(call) == f"{database}-wal" and _begins_anew(call):
            begun += 1
            if database in disk.dirty:
                audit.violations.append(f"line {call.begun + 1}: the journal is begun anew, its database not synced")
        disk.saw(call, when)
    audit.checked["journals begun anew"] = max(0, begun - 1)
    return audit


def _begins_anew(call: Call) -> bool:
    return call.name in REMOVES | {"ftruncate"} or (call.name == "pwrite64" and ", 32, 0" in call.text)
