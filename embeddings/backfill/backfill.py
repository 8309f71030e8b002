"""Fills vector columns: finds the missing vectors, computes them and commits them in parts.

Every run is a resume, and a new embedder is one more run. Worker processes decode images while the network computes;
vectors are committed every few thousand images, in commits that coexist with appends. A repeated image gets a copy of
its vector. `backfill` runs once; `embeddings/backfill/watch.py` keeps a `Backfill` running for images that arrive. A
failed image is not marked: the next run tries it again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embeddings.backfill import embedding_order as orders
from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.embedder import Embedder, bind
from embeddings.embedders.preprocess import Prepared
from lake.images.workers import WorkerDied, WorkerPool, grouped
from lake.storage import blobs
from lake.storage.missing_vectors import MissingVectors, embedded_elsewhere
from lake.storage.vectors import to_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from embeddings.embedders.specs import Preprocessing
    from lake.storage.missing_vectors import Gaps
    from lake.storage.store import EmbedderRecord, Lake

# Images between commits: a kill loses at most about a minute of work on two cores.
COMMIT_IMAGES = 4_096
# Limits for one task of a worker, and for one read from storage: images and bytes.
TASK_IMAGES = 16
TASK_BYTES = 8 << 20
READ_IMAGES = 128
READ_BYTES = 64 << 20
# With a time limit, tasks are small and few are begun ahead, since begun tasks are finished after the time is up.
HASTY_TASK_IMAGES = 8
AHEAD, HASTY_AHEAD = 4, 1


@dataclass
class BackfillReport:
    """Counts of distinct images. `embedded`: got a vector, computed or copied; `failed`: could not get one.

    `without_bytes` and `unreadable` were not tried: the lake has no bytes of them, by sampling or retention; or their
    `image_status` says that they cannot be decoded. `reasons`: image_id -> why it failed.
    """

    embedder: str
    embedded: int = 0
    failed: int = 0
    without_bytes: int = 0
    unreadable: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    reasons: dict[str, str] = field(default_factory=dict)


def backfill(
    lake: Lake,
    record: EmbedderRecord,
    embedder: Embedder,
    *,
    file: Path | None = None,
    workers: int | None = None,
    order: orders.Order = "oldest",
    progress: Callable[[int], None] | None = None,
) -> BackfillReport:
    """Gives a vector of this embedder to every row of samples that lacks one, if its image can be read.

    `file`: the file of the embedder's weights, if they came from a file. `order`: which images come first. `progress`
    receives the number of images just done. An interrupt loses at most the images since the last commit.
    """
    started = time.perf_counter()
    with Backfill(lake, record, embedder, file=file, workers=workers) as work:
        gaps = work.missing.look()
        report = work.fill(gaps, orders.first(gaps, order), progress=progress)
        left = work.missing.look().counts()
    report.without_bytes, report.unreadable = left["without_bytes"], left["unreadable"]
    report.seconds = time.perf_counter() - started
    report.images_per_second = report.embedded / report.seconds
    return report


class Backfill:
    """Embeds images of a lake, with the network loaded and the worker processes running.

    Use it as a context manager, in one thread. You may call `fill` repeatedly.
    """

    def __init__(
        self,
        lake: Lake,
        record: EmbedderRecord,
        embedder: Embedder,
        *,
        file: Path | None = None,
        workers: int | None = None,
    ) -> None:
        self.lake = lake
        self.record = bind(lake, record, embedder, file)
        self.missing = MissingVectors(lake, self.record.column)
        self._embedder = embedder
        self._workers = workers or len(os.sched_getaffinity(0))
        self._pool: WorkerPool | None = None
        # Computed and not yet committed. After a failed commit they stay for the next call.
        self._computed: dict[str, np.ndarray] = {}

    def __enter__(self) -> Backfill:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the workers."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def fill(
        self,
        gaps: Gaps,
        image_ids: Sequence[str],
        *,
        seconds: float = float("inf"),
        stop: threading.Event | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> BackfillReport:
        """Embeds these images, in this order; they must be waiting ones of `gaps`.

        After `seconds` it begins no more images; when `stop` is set, it leaves the images that are not computed yet. It
        commits what it computed before it returns.
        """
        report = BackfillReport(self.record.name)
        report_progress = progress or (lambda n: None)
        stop = stop or threading.Event()
        copied = self._copy_known(gaps, image_ids, report)
        report_progress(len(copied))
        todo = [i for i in image_ids if i not in copied]
        if todo:
            deadline = time.monotonic() + seconds

            def is_late() -> bool:
                return stop.is_set() or time.monotonic() > deadline

            try:
                for prepared, names in self._prepared(todo, is_late, hasty=seconds < float("inf")):
                    report_progress(len(names))
                    self._embed(prepared, names, report)
                    if len(self._computed) >= COMMIT_IMAGES:
                        report.embedded += self.commit()
                    if stop.is_set():
                        self.close()
                        break
            except BaseException:
                self.close()  # the workers still have tasks
                raise
        report.embedded += self.commit()
        report.failed = len(report.reasons)
        return report

    def _embed(self, prepared: Prepared, names: list[str], report: BackfillReport) -> None:
        report.reasons |= {names[i]: reason for i, reason in prepared.reasons.items()}
        prepared_names = [names[i] for i in prepared.kept]
        if not prepared_names:
            return
        batch = self._embedder.embed_batch(prepared.images)  # type: ignore[arg-type]
        self._computed.update(zip((prepared_names[i] for i in batch.kept.tolist()), batch.vectors, strict=True))
        survivors = set(batch.kept.tolist())
        report.reasons |= {
            name: "the network gave no finite vector" for i, name in enumerate(prepared_names) if i not in survivors
        }

    def commit(self) -> int:
        """Commits the computed vectors; returns the number of images that got one. `fill` ends with it.

        If it fails, no computed vector is lost: call it again.
        """
        stored = store_vectors(self.lake, self.record.column, self._computed, self.missing)
        self._computed = {}
        return stored

    def _copy_known(self, gaps: Gaps, image_ids: Sequence[str], report: BackfillReport) -> set[str]:
        """Copies the vectors of images that have one in another row; returns those images."""
        copied: set[str] = set()
        # In parts: all known vectors may not fit in memory.
        for start in range(0, len(image_ids), COMMIT_IMAGES):
            names = pa.array(image_ids[start : start + COMMIT_IMAGES], pa.string())
            copies = embedded_elsewhere(gaps.dataset, names, gaps.address)
            if copies.num_rows:
                addresses = ",".join(map(str, copies["_rowaddr"].to_pylist()))
                # Without stable row ids, which the lake's tables do not have, a row's id is its address.
                rows = gaps.dataset.to_table(["image_id", self.record.column], filter=f"_rowid in ({addresses})")
                vectors = to_matrix(rows[self.record.column], self.record.require_dim())
                vector_of = dict(zip(rows["image_id"].to_pylist(), vectors, strict=True))
                self._computed |= vector_of
                copied |= vector_of.keys()
                report.embedded += self.commit()
        return copied

    def _prepared(
        self, todo: list[str], is_late: Callable[[], bool], hasty: bool
    ) -> Iterator[tuple[Prepared, list[str]]]:
        """Prepared images and their names. If a worker dies, its images are tried one by one, to find the culprit."""
        if self._pool is None:
            self._pool = WorkerPool("embeddings.embedders.preprocess:prepare_many", self._workers)
        preprocessing = self._embedder.spec.preprocessing
        task_images = min(TASK_IMAGES, HASTY_TASK_IMAGES) if hasty else TASK_IMAGES
        tasks = self._tasks(todo, is_late, task_images)
        for result, (names, files) in self._pool.map(tasks, HASTY_AHEAD if hasty else AHEAD):
            yield _one_by_one(files, preprocessing) if isinstance(result, WorkerDied) else result, names

    def _tasks(
        self, todo: list[str], is_late: Callable[[], bool], task_images: int
    ) -> Iterator[tuple[tuple[list[bytes], Any], tuple[list[str], list[bytes]]]]:
        for start in range(0, len(todo), COMMIT_IMAGES):
            names = todo[start : start + COMMIT_IMAGES]
            sizes = _sizes(self.lake, names)
            self.missing.bytes_are_gone([n for n in names if n not in sizes])
            for read_names in grouped((n for n in names if n in sizes), sizes.__getitem__, READ_IMAGES, READ_BYTES):
                stored = {image.image_id: image.data for image in blobs.images(self.lake, read_names)}
                self.missing.bytes_are_gone([n for n in read_names if n not in stored])
                present = [n for n in read_names if n in stored]
                for part in grouped(present, sizes.__getitem__, task_images, TASK_BYTES):
                    if is_late():
                        return
                    files = [stored[n] for n in part]
                    yield (files, self._embedder.spec.preprocessing), (part, files)


def _sizes(lake: Lake, names: list[str]) -> dict[str, int]:
    """image_id -> size in bytes, of the images that the lake has."""
    rows = lake.look_up("images", ["image_id", "size_bytes"], "image_id", names)
    return dict(zip(rows["image_id"].to_pylist(), rows["size_bytes"].to_pylist(), strict=True))


def _one_by_one(files: list[bytes], preprocessing: Preprocessing | None) -> Prepared:
    images: list[np.ndarray] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    with WorkerPool("embeddings.embedders.preprocess:prepare_many", 1) as pool:
        for index, data in enumerate(files):
            result = pool.run([data], preprocessing)
            if isinstance(result, WorkerDied):
                reasons[index] = result.reason
            elif result.kept:
                images.append(result.images[0])
                kept.append(index)
            else:
                reasons[index] = result.reasons[0]
    return Prepared(images, kept, reasons)
