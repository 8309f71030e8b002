"""A pool of worker processes for decoding: results in order, bounded memory, survives a worker's crash.

Each worker is a new Python process (not a fork: Lance and torch do not survive it) with a memory limit. It runs one
function, named "module:function", on one task at a time. If it crashes or takes too long, the result of its task is a
`WorkerDied`, and a new worker replaces it. So it is if its answer is not of the type that the function is annotated
with: a hostile file may have taken the worker over (`lake/images/messages.py`).
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import types
import typing
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from lake.images import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

BULK_MEMORY_BYTES = 2 << 30
HTTP_MEMORY_BYTES = 1 << 30
# Of an answer: the most JSON, which Python may need twenty times as much memory for.
STRUCTURE_BYTES = 16 << 20
# Of what a socket holds: an answer of 16 small images fits, so that the worker goes on at once.
_SOCKET_BYTES = 1 << 20


@dataclass(frozen=True)
class WorkerDied:
    """The result of a task whose worker crashed or timed out. `reason`: a message for people."""

    reason: str


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: socket.socket
    ticket: int | None = None
    deadline: float = 0.0


class WorkerPool:
    """Worker processes as a context manager. `map` yields results in the order of the tasks."""

    def __init__(
        self,
        function: str,
        workers: int,
        *,
        memory_bytes: int = BULK_MEMORY_BYTES,
        timeout: float = 120.0,
        answer_bytes: int = BULK_MEMORY_BYTES,
        structure_bytes: int = STRUCTURE_BYTES,
    ) -> None:
        """`answer_bytes`: the most that a worker may answer with; `structure_bytes`: of it, beside bytes and arrays."""
        self._function = function
        self._returns = _types(_named(function))[1]
        self._memory = memory_bytes
        self._timeout = timeout
        self._most = answer_bytes, structure_bytes
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
                task = messages.pack(arguments)
                try:
                    self._send(worker, task)
                except OSError:  # also a worker that does not read its task in time
                    self._stop(worker)
                    worker = self._workers[index] = self._start()
                    self._send(worker, task)
                worker.ticket = ticket
                worker.deadline = monotonic() + self._timeout

    def _send(self, worker: _Worker, task: list[bytes | memoryview]) -> None:
        worker.pipe.settimeout(self._timeout)
        for part in task:
            worker.pipe.sendall(part)

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
                    done[ticket] = self._answer(worker)
                    worker.ticket = None
                    continue
                except TimeoutError:
                    reason = f"took longer than {self._timeout:g} s"
                except messages.WrongMessage as error:
                    reason = f"its decoder gave no valid answer ({str(error)[:200]})"
                except (EOFError, OSError):
                    reason = self._crash_reason(worker)
            elif monotonic() > worker.deadline:
                reason = f"took longer than {self._timeout:g} s"
            else:
                continue
            done[ticket] = WorkerDied(reason)
            self._stop(worker)
            self._workers[index] = self._start()

    def _answer(self, worker: _Worker) -> Any:
        """Reads the whole answer. Raises TimeoutError at the worker's deadline, NotAnAnswer, EOFError and OSError."""
        size, structure = messages.HEAD.unpack(_received(worker.pipe, messages.HEAD.size, worker.deadline))
        most, most_structure = self._most
        size -= messages.HEAD.size
        if not structure <= size <= most or structure > most_structure:
            raise messages.WrongMessage(f"{size:,} bytes, {structure:,} of them JSON")
        return messages.unpack(_received(worker.pipe, size, worker.deadline), structure, self._returns)

    def _start(self) -> _Worker:
        parent_end, worker_end = socket.socketpair()
        worker_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
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


def _named(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    work: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return work


def _types(work: Callable[..., Any]) -> tuple[Any, Any]:
    """The types of its arguments, as a tuple's, and of its result."""
    *takes, returns = typing.get_type_hints(work).values()
    return types.GenericAlias(tuple, tuple(takes)), returns


def _received(pipe: socket.socket, size: int, deadline: float = float("inf")) -> bytearray:
    """The next `size` bytes. Raises EOFError at the end, TimeoutError at the deadline (`monotonic`), OSError."""
    received = bytearray(size)
    left = memoryview(received)
    while left:
        if deadline != float("inf"):
            pipe.settimeout(max(0.001, deadline - monotonic()))
        count = pipe.recv_into(left)
        if not count:
            raise EOFError
        left = left[count:]
    return received


def serve(descriptor: int, function: str, memory_bytes: int) -> None:
    """The main function of a worker: runs tasks until its pipe is closed."""
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; it closes the pipe
    work = _named(function)
    takes, _ = _types(work)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with socket.socket(fileno=descriptor) as pipe:
        while True:
            try:
                size, structure = messages.HEAD.unpack(_received(pipe, messages.HEAD.size))
            except EOFError:
                return
            arguments = messages.unpack(_received(pipe, size - messages.HEAD.size), structure, takes)
            for part in messages.pack(work(*arguments)):
                pipe.sendall(part)
