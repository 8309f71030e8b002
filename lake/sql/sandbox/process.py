"""A child process as the pool sees it: started with an empty environment, queried, watched, slowed down, killed.

It knows processes and frames; the pool knows what is queried and why.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lake.sql.sandbox.frames import HEAD, READY

START_SECONDS = 30.0
WATCH_SECONDS = 0.05
# A query that runs longer gets only the processor time that nobody else wants.
PATIENCE_SECONDS = 1.0
PIPE_BYTES = 1 << 20
NICENESS = 10
# Without HOME, DuckDB reads the list of the machine's users to find one.
_ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "HOME": "/",
}  # fmt: skip


class ProcessEnded(Exception):
    """The child has ended. `code` is its `Popen.returncode`."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"the process of a query ended with {code}")
        self.code = code


class QueryProcess:
    """A child; `ready` waits until it takes queries. One caller at a time, except for `kill`.

    Its priority is `niceness`, or this process's if that is 0.
    """

    def __init__(self, memory_bytes: int, threads: int, niceness: int = NICENESS) -> None:
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; sys.argv[1:] = ['{memory_bytes}', '{threads}']; "
            "import runpy; runpy.run_module('lake.sql.sandbox.child', run_name='__main__', alter_sys=True)"
        )
        # Its folder is the root and its environment almost empty, so that it cannot tell anything about the server.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            bufsize=0,
        )
        # At once, before it has threads: each thread has its own priority, inherited from the thread that starts it.
        if niceness:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        with suppress(OSError):  # a user with many pipes gets small ones, which are only slower
            fcntl.fcntl(self._from, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._from.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)
        self._received = bytearray()
        self.setup: list[str] = []  # the statements that its connection was set up with
        self.peak = 0  # bytes, the most seen in memory
        self.confined = False
        self.demoted = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        """Waits for the child. Raises ProcessEnded if it does not start."""
        deadline = time.monotonic() + START_SECONDS

        def watch() -> None:
            if time.monotonic() > deadline:
                self.kill()

        letter, payload = self.receive(watch)
        assert letter == READY
        self.confined = bool(json.loads(payload)["confined"])

    def send(self, letter: bytes, payload: bytes | memoryview) -> None:
        """Sends one frame. Raises ProcessEnded."""
        left = memoryview(HEAD.pack(letter, len(payload)) + bytes(payload))
        try:
            while left:
                left = left[os.write(self._to.fileno(), left) :]
        except (BrokenPipeError, ValueError):
            raise ProcessEnded(self._process.poll()) from None

    def receive(self, watch: Callable[[], None]) -> tuple[bytes, bytes]:
        """The next frame; `watch` is called at least every 50 ms and may raise or kill. Raises ProcessEnded."""
        while True:
            watch()
            if len(self._received) >= HEAD.size:
                letter, size = HEAD.unpack_from(self._received)
                if len(self._received) >= HEAD.size + size:
                    payload = bytes(memoryview(self._received)[HEAD.size : HEAD.size + size])
                    del self._received[: HEAD.size + size]
                    return letter, payload
            self._read()

    def _read(self) -> None:
        if not self._poll.poll(WATCH_SECONDS * 1000):
            return
        try:
            part = os.read(self._from.fileno(), PIPE_BYTES)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            part = b""
        if not part:
            raise ProcessEnded(self._process.wait())
        self._received += part

    def resident(self) -> int:
        """Bytes it has in memory now; 0 if it has ended."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                size = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return 0
        self.peak = max(self.peak, size)
        return size

    def processor_seconds(self) -> float:
        """What it has used of processors since its start; 0 if it has ended."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                ticks = file.read().rpartition(b") ")[2].split()[11:13]
        except OSError:
            return 0.0
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def demote(self) -> None:
        """Gives its threads, and those they will start, only the processor time that nothing else wants."""
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


def encode(request: dict[str, Any]) -> bytes:
    """The payload of a query's frame. Raises TypeError or ValueError if JSON cannot hold a parameter."""
    return json.dumps(request, ensure_ascii=False).encode("utf-8", "surrogatepass")
