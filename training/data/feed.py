"""Prepared samples, read from the lake and decoded in worker processes while the network is busy.

Bytes are read by row id at one version of the table, a batch at a time; the workers are `lake/images/workers.py`'s,
which a
hostile file cannot hurt. With no workers all is done in the caller's process. Either way the samples are the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lake.images.workers import WorkerDied, WorkerPool
from lake.storage import blobs
from training.data.augmentation import Job, Preparation, prepare_many
from training.tasks.task import Sample

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.data.splits import Item

T = TypeVar("T")

# Images a worker gets at once, and batches that wait for the network.
TASK = 16
AHEAD = 3


@dataclass(frozen=True)
class Draw:
    """One image to prepare, and the key of its augmentation."""

    item: Item
    key: tuple[int, ...] = ()
    weight: float = 1.0


class Feed:
    """Use as a context manager. One iteration at a time. `unreadable`: image_id -> why it was left out."""

    def __init__(self, lake: Lake, image_ids: Sequence[str], workers: int | None = None) -> None:
        """`image_ids`: all that may be drawn. `workers`: processes; None is one for each core but one, 0 is none."""
        count = max(1, min(8, len(os.sched_getaffinity(0)) - 1)) if workers is None else workers
        self._shelf = _Shelf(lake, image_ids)
        self._pool = WorkerPool("training.data.augmentation:prepare_many", count) if count else None
        self._count = count
        self.unreadable: dict[str, str] = {}

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def batches(self, plan: Iterable[Sequence[Draw]], how: Preparation) -> Iterator[list[Sample]]:
        """A list of samples for each part of the plan, in order. Images that cannot be read are left out."""
        if self._pool is None:
            for draws in plan:
                yield self._kept(prepare_many(self._jobs(draws), how))
            return
        for found in ahead(self._from_workers(plan, how), AHEAD):
            yield self._kept(found)

    def _from_workers(self, plan: Iterable[Sequence[Draw]], how: Preparation) -> Iterator[list[Sample | str]]:
        assert self._pool is not None

        def tasks() -> Iterator[tuple[tuple[list[Job], Preparation], tuple[list[Job], bool]]]:
            for draws in plan:
                jobs = self._jobs(draws)
                for start in range(0, max(1, len(jobs)), TASK):
                    part = jobs[start : start + TASK]
                    yield (part, how), (part, start + TASK >= len(jobs))

        batch: list[Sample | str] = []
        for result, (part, last) in self._pool.map(tasks(), ahead=AHEAD * self._count):
            batch += self._one_by_one(part, how) if isinstance(result, WorkerDied) else result
            if last:
                yield batch
                batch = []

    def _one_by_one(self, jobs: Sequence[Job], how: Preparation) -> list[Sample | str]:
        """One of these kills its decoder: the others are not to suffer for it."""
        found: list[Sample | str] = []
        with WorkerPool("training.data.augmentation:prepare_many", 1) as alone:
            for job in jobs:
                result = alone.run([job], how)
                found += [f"{job.image_id}: {result.reason}"] if isinstance(result, WorkerDied) else result
        return found

    def _jobs(self, draws: Sequence[Draw]) -> list[Job]:
        files = self._shelf.read([draw.item.image_id for draw in draws])
        jobs = []
        for draw, data in zip(draws, files, strict=True):
            name, said = draw.item.image_id, draw.item.truth
            jobs.append(Job(name, data, draw.key, draw.weight, said.label, said.boxes, said.masks))
        return jobs

    def _kept(self, found: Sequence[Sample | str]) -> list[Sample]:
        for one in found:
            if isinstance(one, str):
                name, _, reason = one.partition(": ")
                self.unreadable[name] = reason
        return [one for one in found if isinstance(one, Sample)]


class _Shelf:
    """The bytes of chosen images by id."""

    def __init__(self, lake: Lake, image_ids: Sequence[str]) -> None:
        self._lake, self._names = lake, sorted({*image_ids})
        self._look()

    def read(self, names: Sequence[str]) -> list[bytes]:
        """In the order asked for; of an image that the lake does not have, no bytes: preparing it says so."""
        there = [self._row[name] for name in names if name in self._row]
        try:
            data = blobs.read(self._dataset, np.array(there, np.uint64)) if there else []
        except (OSError, ValueError):
            # Maintenance may clean up a version under a long run; the same images are in the newest.
            self._look()
            there = [self._row[name] for name in names if name in self._row]
            data = blobs.read(self._dataset, np.array(there, np.uint64)) if there else []
        found = iter(data)
        return [next(found) if name in self._row else b"" for name in names]

    def _look(self) -> None:
        self._dataset: Any = self._lake.dataset("images")
        rows = blobs.locate(self._lake, self._names, self._dataset.version)
        self._row = dict(zip(rows["image_id"].to_pylist(), rows["_rowid"].to_pylist(), strict=True))


def ahead(source: Iterable[T], size: int) -> Iterator[T]:
    """The same things in the same order, made in a thread up to `size` before they are asked for."""
    queue: Queue[tuple[str, Any]] = Queue(size)
    over = threading.Event()

    def put(what: str, value: Any) -> None:
        while not over.is_set():
            try:
                queue.put((what, value), timeout=0.1)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for one in source:
                put("one", one)
                if over.is_set():
                    return
            put("end", None)
        except BaseException as error:  # it belongs to whoever iterates
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            what, value = queue.get()
            if what == "end":
                return
            if what == "error":
                raise value
            yield value
    finally:
        over.set()
        while thread.is_alive():
            try:
                queue.get_nowait()
            except Empty:
                thread.join(0.05)
