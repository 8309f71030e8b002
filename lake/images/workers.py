"""A pool of worker processes for decoding: results in order, bounded memory, survives a worker's crash.

Each worker is a new Python process (not a fork: Lance and torch do not survive it) with a memory limit. It runs one
function, named "module:function", on one task at a time. If it crashes or takes too long, the result of its task is a
`WorkerDied`, and a new worker replaces it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

BULK_MEMORY_BYTES = 2 << 30
HTTP_MEMORY_BYTES = 512 << 20


@dataclass(frozen=True)
class WorkerDied:
    """The result of a task whose worker crashed or timed out. `reason`: a message for people."""

    reason: str


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    ticket: int | None = None
    deadline: float = 0.0


class WorkerPool:
    """Worker processes as a context manager. `map` yields results in the order of the tasks."""

    def __init__(
        self, function: str, workers: int, *, memory_bytes: int = BULK_MEMORY_BYTES, timeout: float = 120.0
    ) -> None:
        self._function = function
        self._memory = memory_bytes
        self._timeout = timeout
        self._workers = [self._start() for _ in range(max(1, workers))]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self._workers:
            self._stop(worker)
        self._workers = []

    def run(self, *arguments: Any) -> Any:
        """Runs one task; returns its result or a WorkerDied."""
        return next(iter(self.map([(arguments, None)])))[0]

    def map(self, tasks: Iterable[tuple[tuple[Any, ...], Any]], ahead: int = 4) -> Iterator[tuple[Any, Any]]:
        """Yields (result, tag) for each (arguments, tag), in order.

        At most `workers + ahead` tasks are taken from `tasks` beyond the yielded ones, which bounds memory.
        """
        source = iter(tasks)
        waiting: deque[tuple[int, tuple[Any, ...]]] = deque()
        tags: dict[int, Any] = {}
        done: dict[int, Any] = {}
        started = yielded = 0
        exhausted = False
        while True:
            while not exhausted and started - yielded < len(self._workers) + ahead:
                task = next(source, None)
                if task is None:
                    exhausted = True
                    break
                waiting.append((started, task[0]))
                tags[started] = task[1]
                started += 1
                self._assign_tasks(waiting, done)
                self._collect(done, patience=0)
            self._assign_tasks(waiting, done)
            while yielded in done:
                yield done.pop(yielded), tags.pop(yielded)
                yielded += 1
            if exhausted and yielded == started:
                return
            if yielded not in done and (exhausted or started - yielded >= len(self._workers) + ahead):
                self._collect(done, patience=0.5)

    def _assign_tasks(self, waiting: deque[tuple[int, tuple[Any, ...]]], done: dict[int, Any]) -> None:
        for index, worker in enumerate(self._workers):
            if not waiting:
                return
            if worker.ticket is None:
                ticket, arguments = waiting.popleft()
                try:
                    worker.pipe.send(arguments)
                except OSError:
                    self._stop(worker)
                    worker = self._workers[index] = self._start()
                    worker.pipe.send(arguments)
                worker.ticket = ticket
                worker.deadline = monotonic() + self._timeout

    def _collect(self, done: dict[int, Any], patience: float) -> None:
        busy = {w.pipe: i for i, w in enumerate(self._workers) if w.ticket is not None}
        if not busy:
            return
        ready = wait(list(busy), timeout=patience)
        for pipe, index in busy.items():
            worker = self._workers[index]
            ticket = worker.ticket
            assert ticket is not None
            if pipe in ready:
                try:
                    done[ticket] = pipe.recv()
                    worker.ticket = None
                    continue
                except (EOFError, OSError):
                    reason = self._crash_reason(worker)
            elif monotonic() > worker.deadline:
                reason = f"took longer than {self._timeout:g} s"
            else:
                continue
            done[ticket] = WorkerDied(reason)
            self._stop(worker)
            self._workers[index] = self._start()

    def _start(self) -> _Worker:
        parent_end, worker_end = Pipe()
        # One thread each: the pool is the parallelism, and thread stacks count against the memory limit.
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from lake.images.workers import serve; "
            f"serve({worker_end.fileno()}, {self._function!r}, {self._memory})"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[worker_end.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        worker_end.close()
        return _Worker(process, parent_end)

    def _stop(self, worker: _Worker) -> None:
        worker.pipe.close()
        try:
            worker.process.wait(timeout=0.2 if worker.ticket is None else 0)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()

    def _crash_reason(self, worker: _Worker) -> str:
        try:
            code = worker.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            code = 0
        return f"its decoder crashed (signal {-code})" if code < 0 else "its decoder ran out of memory or crashed"


def grouped(items: Iterable[T], size: Callable[[T], int], max_items: int, max_bytes: int) -> Iterator[list[T]]:
    """The items in order, in groups of at most `max_items` items and `max_bytes` bytes; a larger item is alone."""
    group: list[T] = []
    group_bytes = 0
    for item in items:
        if group and (len(group) == max_items or group_bytes + size(item) > max_bytes):
            yield group
            group, group_bytes = [], 0
        group.append(item)
        group_bytes += size(item)
    if group:
        yield group


def serve(descriptor: int, function: str, memory_bytes: int) -> None:
    """The main function of a worker: runs tasks until its pipe is closed."""
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; it closes the pipe
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    pipe = Connection(descriptor)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(work(*arguments))
