"""One child from outside: started with nothing of ours, asked, watched, pushed back when it takes long, killed.

It knows processes and frames; what is asked and why is the pool's.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lake.sql.sandbox.child import HEAD

START_SECONDS = 30.0
LOOK_SECONDS = 0.05
# Whoever takes longer runs only when nobody else wants to.
PATIENCE_SECONDS = 1.0
PIPE_BYTES = 1 << 20
NICENESS = 10
_SET_PIPE_SIZE = 1031
# Without HOME, DuckDB reads the list of the machine's users to find one.
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "HOME": "/",
}  # fmt: skip


class Ended(Exception):
    """The child is no more. `code` is what `Popen.returncode` says."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"the process of a query ended with {code}")
        self.code = code


class Process:
    """A child; `ready` waits until it takes queries. One caller at a time, except for `kill`."""

    def __init__(self, memory_bytes: int, threads: int) -> None:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; sys.argv[1:] = ['{memory_bytes}', '{threads}']; "
            "import runpy; runpy.run_module('lake.sql.sandbox.child', run_name='__main__', alter_sys=True)"
        )
        # Its folder is the root, its environment next to empty: it has nothing of the server's to tell.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            bufsize=0,
        )
        # At once, before it has threads: each has a priority of its own, inherited from the one that starts it.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        with suppress(OSError):  # only slower, where a user has many pipes
            import fcntl

            fcntl.fcntl(self._from, _SET_PIPE_SIZE, PIPE_BYTES)
        os.set_blocking(self._from.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)
        self._held = bytearray()
        self.setup: list[str] = []  # what it has attached
        self.peak = 0  # bytes, the most seen in memory
        self.confined = False
        self.demoted = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        """Raises Ended when it did not come up."""
        deadline = time.monotonic() + START_SECONDS

        def look() -> None:
            if time.monotonic() > deadline:
                self.kill()

        kind, said = self.receive(look)
        assert kind == b"R"
        self.confined = bool(json.loads(said)["confined"])

    def send(self, kind: bytes, payload: bytes | memoryview) -> None:
        """One frame. Raises Ended."""
        left = memoryview(HEAD.pack(kind, len(payload)) + bytes(payload))
        try:
            while left:
                left = left[os.write(self._to.fileno(), left) :]
        except (BrokenPipeError, ValueError):
            raise Ended(self._process.poll()) from None

    def receive(self, look: Callable[[], None]) -> tuple[bytes, bytes]:
        """The next frame; `look` is called at least every 50 ms and may raise or kill. Raises Ended."""
        while True:
            look()
            if len(self._held) >= HEAD.size:
                kind, size = HEAD.unpack_from(self._held)
                if len(self._held) >= HEAD.size + size:
                    payload = bytes(memoryview(self._held)[HEAD.size : HEAD.size + size])
                    del self._held[: HEAD.size + size]
                    return kind, payload
            self._read()

    def _read(self) -> None:
        if not self._poll.poll(LOOK_SECONDS * 1000):
            return
        try:
            part = os.read(self._from.fileno(), PIPE_BYTES)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            part = b""
        if not part:
            raise Ended(self._process.wait())
        self._held += part

    def resident(self) -> int:
        """Bytes it has in memory now; 0 when it is gone."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                size = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return 0
        self.peak = max(self.peak, size)
        return size

    def demote(self) -> None:
        """From now on it runs only when nothing else wants to: each of its threads, and those it will start."""
        self.demoted = True
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{self.pid}/task"):
                with suppress(OSError):
                    os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))

    def kill(self) -> None:
        """Ends it at once. From any thread, any number of times."""
        with suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """Kills it and waits for its end."""
        self.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()

    def alive(self) -> bool:
        return self._process.poll() is None


def describe(question: dict[str, Any]) -> bytes:
    """The frame Q. Raises TypeError or ValueError for parameters JSON cannot say."""
    return json.dumps(question, ensure_ascii=False).encode("utf-8", "surrogatepass")
