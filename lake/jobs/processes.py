"""Tells processes apart across restarts: whether the process that wrote a note still runs."""

from __future__ import annotations

import functools
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process for good: numbers of processes are used again. `place`: the boot of a machine and the container on it;
    `started`: in ticks since that boot, 0 where the system does not tell.
    """

    place: str
    pid: int
    started: int


def own() -> ProcessIdentity:
    """This process."""
    return ProcessIdentity(place(), os.getpid(), _started(os.getpid()) or 0)


@functools.cache
def place() -> str:
    """This boot of this machine, and the container: a process elsewhere cannot be seen or ended from here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return os.uname().nodename


def running(process: ProcessIdentity) -> bool | None:
    """Whether it runs; None if it runs elsewhere, where this process cannot look. A zombie does not run."""
    if process.place != place():
        return None
    if process.started:
        return _started(process.pid) == process.started
    try:
        os.kill(process.pid, 0)
    except OSError:
        return False
    return True


def kill(process: ProcessIdentity) -> None:
    """Ends it at once with all processes of its group, if it leads one and runs here."""
    if running(process):
        with suppress(OSError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)


def _started(pid: int) -> int | None:
    """The start of a process in ticks since boot; None if it does not run, or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
