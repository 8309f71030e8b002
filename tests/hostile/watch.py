"""Watches a server under hostile input: which of its processes die, how much memory they use, whether reads work."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import suppress

import httpx
import psutil

from tests.crash.service import Service

EVERY_SECONDS = 0.1


class Watch:
    """Use as a context manager. Sizes are the greatest seen, in bytes, by role: server, drainer, query, worker.

    `slowest` is how long /healthz took at worst, `unanswered` how often it gave no 200.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.resident: dict[str, int] = defaultdict(int)
        self.virtual: dict[str, int] = defaultdict(int)
        self.pids: dict[str, set[int]] = defaultdict(set)
        self.slowest = 0.0
        self.asked = self.unanswered = 0
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._look, self._ask)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def __str__(self) -> str:
        sizes = ", ".join(f"{role} {size >> 20} MiB" for role, size in sorted(self.resident.items()))
        workers = len(self.pids["worker"])
        return f"{sizes}; {workers} worker processes; /healthz {self.slowest * 1000:.0f} ms at worst of {self.asked}"

    def check(self) -> None:
        """The server and its drainer are the ones that were started, and answered throughout."""
        assert self.service.process.poll() is None
        assert len(self.pids["drainer"]) == 1, self.service.output()[-2000:]
        assert self.service.drainer() in self.pids["drainer"]
        assert self.unanswered == 0
        assert "Traceback" not in self.service.output(), self.service.output()[-3000:]

    def _look(self) -> None:
        while not self._ending.wait(EVERY_SECONDS):
            with suppress(psutil.NoSuchProcess):
                server = psutil.Process(self.service.process.pid)
                self._note("server", server)
                for child in server.children(recursive=True):
                    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                        parent = child.parent()
                        if parent is not None and child.cmdline() == parent.cmdline():
                            continue  # it was forked and has not begun its own program: its memory is the parent's
                        words = " ".join(child.cmdline())
                        roles = {"lake.upkeep.drainer": "drainer", "lake.sql.sandbox.child": "query"}
                        self._note(next((roles[name] for name in roles if name in words), "worker"), child)

    def _note(self, role: str, process: psutil.Process) -> None:
        memory = process.memory_info()
        self.pids[role].add(process.pid)
        self.resident[role] = max(self.resident[role], memory.rss)
        self.virtual[role] = max(self.virtual[role], memory.vms)

    def _ask(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.service.port}", timeout=30) as client:
            while not self._ending.wait(EVERY_SECONDS):
                started = time.monotonic()
                self.asked += 1
                try:
                    self.unanswered += client.get("/healthz").status_code != 200
                except httpx.HTTPError:
                    self.unanswered += 1
                self.slowest = max(self.slowest, time.monotonic() - started)
