"""Fills vector columns: finds the missing vectors, computes them and commits them in parts.

Every run is a resume, and a new embedder is one more run. Worker processes decode images while the network computes;
vectors are committed every few thousand images, in commits that coexist with appends. A repeated image gets a copy of
its vector. `backfill` runs once; `embeddings/backfill/watch.py` keeps a `Backfill` running for images that arrive.
Several processes share the work (`embeddings/backfill/claims.py`). A failed image is recorded, and tried again only on
request.
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
from embeddings.backfill import failures
from embeddings.backfill.claims import Claims
from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.checked_batch import embed_checked
from embeddings.embedders.embedder import Embedder, bind
from embeddings.embedders.preprocess import Prepared
from lake.errors import CouldNot
from lake.images.levels import Levels
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
# Seconds between commits: what a slow network did is not lost either. And a commit takes at most a tenth of the time.
COMMIT_SECONDS = 10.0
COMMIT_SHARE = 0.1
# Images that a process claims at once: another one has to wait for so many at the end.
CLAIM_IMAGES = 256
# Seconds between looks whether another process has done, or has given up, what it claimed.
WAIT_SECONDS = 0.5
# An embedder that raises for so many images, and gave no vector, fails for all of them: it is not tried further.
MOST_RAISED = 64
# Limits for one task of a worker, and for one read from storage: images and bytes.
TASK_IMAGES = 16
TASK_BYTES = 8 << 20
READ_IMAGES = 128
READ_BYTES = 64 << 20
# With a time limit, tasks are small and few are begun ahead, since begun tasks are finished after the time is up.
HASTY_TASK_IMAGES = 8
AHEAD, HASTY_AHEAD = 4, 1

# Files, and for each its black and white as recorded in the lake.
ImageFiles = tuple[list[bytes], list[Levels | None]]


@dataclass
class BackfillReport:
    """Counts of distinct images. `embedded`: got a vector, computed or copied; `failed`: could not get one now.

    `failed_before`: failed in an earlier run, and were not tried again; `by_others`: another process embedded them.

    `without_bytes` and `unreadable` were not tried: the lake has no bytes of them, by sampling or retention; or their
    `image_status` says that they cannot be decoded. `reasons`: image_id -> why it failed.
    """

    embedder: str
    embedded: int = 0
    failed: int = 0
    failed_before: int = 0
    by_others: int = 0
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
    retry_failed: bool = False,
    progress: Callable[[int], None] | None = None,
) -> BackfillReport:
    """Gives a vector of this embedder to every row of samples that lacks one, if its image can be read.

    `file`: the file of the embedder's weights, if they came from a file. `order`: which images come first. `progress`
    receives the number of images just done. An interrupt loses at most the images since the last commit. Images that
    another process embeds at the same time are left to it; this call returns when nothing waits any more.
    `retry_failed`: also try the images that failed in earlier runs.
    """
    started = time.perf_counter()
    with Backfill(lake, record, embedder, file=file, workers=workers) as work:
        if retry_failed:
            failures.forget(lake, work.record.name)
        failed_before = failures.of(lake, work.record.name)
        report = BackfillReport(work.record.name, failed_before=len(failed_before))
        gaps = work.look()
        todo = orders.first(gaps, order, excluded=failed_before)
        waiting = len(todo)
        while todo:
            part = work.fill(gaps, todo, progress=progress)
            report.embedded += part.embedded
            report.reasons |= part.reasons
            if not work.busy:
                break
            time.sleep(WAIT_SECONDS)
            gaps = work.look()
            todo = orders.first(gaps, order, excluded=failures.of(lake, work.record.name))
        left = work.look().counts()
    report.failed = len(report.reasons)
    report.by_others = max(0, waiting - report.embedded - report.failed - left["waiting"])
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
        self._failed: dict[str, str] = {}
        self._claims = Claims(lake, self.record.column)
        self._moment = 0
        self._raised = 0
        self.busy: list[str] = []  # images of the last `fill` that another process embeds just now

    def __enter__(self) -> Backfill:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the workers, and gives up the claims on images that are not embedded."""
        self._claims.close()
        self._stop_workers()

    def look(self) -> Gaps:
        """The rows that lack a vector now."""
        self._moment = self._claims.moment()
        return self.missing.look()

    def _stop_workers(self) -> None:
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
        """Embeds these images, in this order; they must be waiting ones of `gaps`, the last `look`.

        Images that another process embeds just now are left out: `busy` has them.

        After `seconds` it begins no more images; when `stop` is set, it leaves the images that are not computed yet. It
        commits what it computed before it returns.
        """
        report = BackfillReport(self.record.name)
        report_progress = progress or (lambda n: None)
        stop = stop or threading.Event()
        copied = self._copy_known(gaps, image_ids, report)
        report_progress(len(copied))
        self.busy = []
        todo = [i for i in image_ids if i not in copied]
        if todo:
            deadline, commit_at = time.monotonic() + seconds, _next_commit(0.0)

            def is_late() -> bool:
                return stop.is_set() or time.monotonic() > deadline

            try:
                for prepared, names in self._prepared(todo, is_late, hasty=seconds < float("inf")):
                    report_progress(len(names))
                    self._embed(prepared, names, report)
                    if len(self._computed) >= COMMIT_IMAGES or time.monotonic() >= commit_at:
                        started = time.monotonic()
                        report.embedded += self.commit()
                        commit_at = _next_commit(time.monotonic() - started)
                    if stop.is_set():
                        self._stop_workers()
                        break
            except BaseException:
                self._stop_workers()  # the workers still have tasks
                raise
        report.embedded += self.commit()
        report.failed = len(report.reasons)
        return report

    def _embed(self, prepared: Prepared, names: list[str], report: BackfillReport) -> None:
        reasons = {names[i]: reason for i, reason in prepared.reasons.items()}
        prepared_names = [names[i] for i in prepared.kept]
        if prepared_names:
            batch = embed_checked(self._embedder, prepared.images)  # type: ignore[arg-type]
            self._raised = 0 if batch.kept else self._raised + batch.raised
            if self._raised >= MOST_RAISED:
                raise CouldNot(f"{batch.reasons[0]}; it did so for {self._raised} images in a row: is it set up?")
            self._computed.update(zip((prepared_names[i] for i in batch.kept), batch.vectors, strict=True))
            reasons |= {prepared_names[i]: reason for i, reason in batch.reasons.items()}
        self._failed |= reasons
        report.reasons |= reasons

    def commit(self) -> int:
        """Commits the computed vectors and the failures; returns the number of images that got a vector.

        `fill` ends with it. If it fails, no computed vector is lost: call it again.
        """
        stored = store_vectors(self.lake, self.record.column, self._computed, self.missing)
        failures.record(self.lake, self.record.name, self._failed)
        self._claims.finish([*self._computed, *self._failed])
        self._computed, self._failed = {}, {}
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
    ) -> Iterator[tuple[tuple[list[bytes], Any, list[Levels | None]], tuple[list[str], ImageFiles]]]:
        for start in range(0, len(todo), CLAIM_IMAGES):
            if is_late():
                return
            names, busy = self._claims.take(todo[start : start + CLAIM_IMAGES], self._moment)
            self.busy += busy
            sizes = _sizes(self.lake, names)
            self.missing.bytes_are_gone([n for n in names if n not in sizes])
            for read_names in grouped((n for n in names if n in sizes), sizes.__getitem__, READ_IMAGES, READ_BYTES):
                stored = {image.image_id: image for image in blobs.images(self.lake, read_names)}
                self.missing.bytes_are_gone([n for n in read_names if n not in stored])
                present = [n for n in read_names if n in stored]
                for part in grouped(present, sizes.__getitem__, task_images, TASK_BYTES):
                    if is_late():
                        return
                    images = [stored[n] for n in part]
                    files = [image.data for image in images], [image.levels for image in images]
                    yield (files[0], self._embedder.spec.preprocessing, files[1]), (part, files)


def _next_commit(last_seconds: float) -> float:
    """When to commit next (`time.monotonic`), after a commit that took so long."""
    return time.monotonic() + max(COMMIT_SECONDS, last_seconds / COMMIT_SHARE)


def _sizes(lake: Lake, names: list[str]) -> dict[str, int]:
    """image_id -> size in bytes, of the images that the lake has."""
    rows = lake.look_up("images", ["image_id", "size_bytes"], "image_id", names)
    return dict(zip(rows["image_id"].to_pylist(), rows["size_bytes"].to_pylist(), strict=True))


def _one_by_one(files: ImageFiles, preprocessing: Preprocessing | None) -> Prepared:
    images: list[np.ndarray] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    with WorkerPool("embeddings.embedders.preprocess:prepare_many", 1) as pool:
        for index, (data, levels) in enumerate(zip(*files, strict=True)):
            result = pool.run([data], preprocessing, [levels])
            if isinstance(result, WorkerDied):
                reasons[index] = result.reason
            elif result.kept:
                images.append(result.images[0])
                kept.append(index)
            else:
                reasons[index] = result.reasons[0]
    return Prepared(images, kept, reasons)
