"""Reads images from the lake and prepares them in worker processes, while the network is busy with the last batch.

Bytes are read by row id at one version of the table, a batch at a time. The workers are those of
`lake/images/workers.py`, which survive hostile files. Without workers the caller's process does all the work. The
samples are the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.images.levels import Levels
from lake.images.workers import WorkerDied, WorkerPool
from lake.storage import blobs
from training.data.augmentation import Preparation, StoredSample, prepare_many
from training.tasks.task import Sample

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.data.splits import TrainingImage

T = TypeVar("T")

# Images that a worker gets at once, and batches that are prepared ahead.
TASK = 16
AHEAD = 3


@dataclass(frozen=True)
class Draw:
    """An image to prepare, and the key of its augmentation."""

    image: TrainingImage
    key: tuple[int, ...] = ()
    weight: float = 1.0


class Feed:
    """A context manager. One iteration at a time. `unreadable`: image_id -> why the image was left out."""

    def __init__(self, lake: Lake, image_ids: Sequence[str], workers: int | None = None) -> None:
        """`image_ids`: all images that may be drawn. `workers`: processes; None: all cores but one, 0: none."""
        count = max(1, min(8, len(os.sched_getaffinity(0)) - 1)) if workers is None else workers
        self._bytes = _ImageBytes(lake, image_ids)
        self._pool = WorkerPool("training.data.augmentation:prepare_many", count) if count else None
        self._count = count
        self.unreadable: dict[str, str] = {}

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def batches(self, plan: Iterable[Sequence[Draw]], preparation: Preparation) -> Iterator[list[Sample]]:
        """A list of samples for each part of the plan, in order. Images that cannot be read are left out."""
        if self._pool is None:
            for draws in plan:
                yield self._readable(prepare_many(self._stored(draws), preparation))
            return
        for samples in ahead(self._from_workers(plan, preparation), AHEAD):
            yield self._readable(samples)

    def _from_workers(self, plan: Iterable[Sequence[Draw]], preparation: Preparation) -> Iterator[list[Sample | str]]:
        assert self._pool is not None

        def tasks() -> Iterator[tuple[tuple[list[StoredSample], Preparation], tuple[list[StoredSample], bool]]]:
            for draws in plan:
                stored = self._stored(draws)
                for start in range(0, max(1, len(stored)), TASK):
                    part = stored[start : start + TASK]
                    yield (part, preparation), (part, start + TASK >= len(stored))

        batch: list[Sample | str] = []
        for result, (part, last) in self._pool.map(tasks(), ahead=AHEAD * self._count):
            batch += self._one_by_one(part, preparation) if isinstance(result, WorkerDied) else result
            if last:
                yield batch
                batch = []

    def _one_by_one(self, stored: Sequence[StoredSample], preparation: Preparation) -> list[Sample | str]:
        """Prepares images singly, because one of them kills its worker."""
        samples: list[Sample | str] = []
        with WorkerPool("training.data.augmentation:prepare_many", 1) as worker:
            for sample in stored:
                result = worker.run([sample], preparation)
                samples += [f"{sample.image_id}: {result.reason}"] if isinstance(result, WorkerDied) else result
        return samples

    def _stored(self, draws: Sequence[Draw]) -> list[StoredSample]:
        files = self._bytes.read([draw.image.image_id for draw in draws])
        stored = []
        for draw, data in zip(draws, files, strict=True):
            truth = draw.image.ground_truth
            labels = (truth.label, truth.boxes, truth.masks, truth.crowd_boxes, truth.crowd_masks)
            name, levels = draw.image.image_id, self._bytes.levels(draw.image.image_id)
            stored.append(StoredSample(name, data, draw.key, draw.weight, *labels, levels))
        return stored

    def _readable(self, samples: Sequence[Sample | str]) -> list[Sample]:
        for sample in samples:
            if isinstance(sample, str):
                name, _, reason = sample.partition(": ")
                self.unreadable[name] = reason
        return [sample for sample in samples if isinstance(sample, Sample)]


class _ImageBytes:
    """The bytes of chosen images by id."""

    def __init__(self, lake: Lake, image_ids: Sequence[str]) -> None:
        self._lake, self._names = lake, sorted({*image_ids})
        self._locate()

    def read(self, names: Sequence[str]) -> list[bytes]:
        """In the order of `names`. An image that the lake does not have has no bytes; preparing it then fails."""
        try:
            data = self._read(names)
        except (OSError, ValueError):
            # Maintenance may clean up a version under a long run; the newest version has the same images.
            self._locate()
            data = self._read(names)
        return [data.get(name, b"") for name in names]

    def levels(self, name: str) -> Levels | None:
        """Black and white of an image of more than 8 bits, as recorded."""
        return self._levels.get(name)

    def _read(self, names: Sequence[str]) -> dict[str, bytes]:
        stored = [name for name in names if name in self._row]
        rows = np.array([self._row[name] for name in stored], np.uint64)
        return dict(zip(stored, blobs.read(self._dataset, rows), strict=True)) if stored else {}

    def _locate(self) -> None:
        self._dataset: Any = self._lake.dataset("images")
        rows = blobs.locate(self._lake, self._names, self._dataset.version)
        levels = ((row["image_id"], blobs.levels_in(row)) for row in _deep(rows).to_pylist())
        self._levels = {name: found for name, found in levels if found is not None}
        self._row = dict(zip(rows["image_id"].to_pylist(), rows["_rowid"].to_pylist(), strict=True))


def _deep(rows: pa.Table) -> pa.Table:
    """The rows of images of more than 8 bits."""
    return rows.filter(pc.is_valid(rows["white"]))


def ahead(source: Iterable[T], size: int) -> Iterator[T]:
    """The items of `source` in order; a thread takes up to `size` of them in advance."""
    queue: Queue[tuple[str, Any]] = Queue(size)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            try:
                queue.put((kind, value), timeout=0.1)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        except BaseException as error:  # raised again in the caller's thread
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                queue.get_nowait()
            except Empty:
                thread.join(0.05)
