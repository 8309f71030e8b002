"""Filling vector columns: asks the lake what is missing, so every run is a resume and a new embedder is one more run.

Images are decoded in worker processes while the network computes; vectors are committed every few thousand images, in
commits that coexist with appends. A repeated image gets a copy of its vector. `backfill` does all there is to do once;
`embeddings/backfill/watch.py` keeps a `Backfill` at work on what arrives. A second pass over a failed image is made by
the next run: nothing marks it.
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
from lake.storage.vectors import dim_of, to_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from embeddings.embedders.specs import Preprocessing
    from lake.storage.missing_vectors import Gaps
    from lake.storage.store import EmbedderRecord, Lake

# Images between commits: about a minute of work on two cores is the most a kill can lose.
COMMIT_IMAGES = 4_096
# What a worker prepares at a time, and what is read from storage together: images, and at most so many bytes.
TASK_IMAGES = 16
TASK_BYTES = 8 << 20
READ_IMAGES = 128
READ_BYTES = 64 << 20
# Where time is short, what the workers have begun must be little: it is finished after the time is up.
HASTY_TASK_IMAGES = 8
AHEAD, HASTY_AHEAD = 4, 1

__all__ = ["Backfill", "Report", "backfill", "store_vectors"]


@dataclass
class Report:
    """`embedded` counts forward passes and copies, one a distinct image; `failed` images have no vector.

    `without_bytes` and `unreadable` count what was not tried: images the lake holds no bytes of, by sampling or
    retention, and images whose `image_status` says they cannot be decoded.
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
) -> Report:
    """Gives every row of predictions that lacks one a vector of this embedder, if its image can be had.

    `file` is where the embedder's weights came from, when from a file. `order` says whose turn is first. `progress`
    is called with the number of images just done. An interrupt loses at most the images since the last commit.
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
    """An embedder at work on a lake: the network loaded, the workers running, what is missing known.

    Use as a context manager, in one thread. `fill` may be called again and again.
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
        # Computed and not yet committed. A failed commit keeps them for the next call.
        self._done: dict[str, np.ndarray] = {}

    def __enter__(self) -> Backfill:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers."""
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
    ) -> Report:
        """Gives these images their vectors, in this order; they are among the waiting ones of `gaps`.

        After `seconds` no more of them are begun; when `stop` is set, what is not computed yet is left. What was
        computed is committed before it returns.
        """
        report = Report(self.record.name)
        said = progress or (lambda n: None)
        stop = stop or threading.Event()
        copied = self._copy_known(gaps, image_ids, report)
        said(len(copied))
        todo = [i for i in image_ids if i not in copied]
        if todo:
            deadline = time.monotonic() + seconds

            def late() -> bool:
                return stop.is_set() or time.monotonic() > deadline

            try:
                for prepared, names in self._prepared(todo, late, hasty=seconds < float("inf")):
                    said(len(names))
                    self._embed(prepared, names, report)
                    if len(self._done) >= COMMIT_IMAGES:
                        report.embedded += self.commit()
                    if stop.is_set():
                        self.close()
                        break
            except BaseException:
                self.close()  # its workers still have tasks
                raise
        report.embedded += self.commit()
        report.failed = len(report.reasons)
        return report

    def _embed(self, prepared: Prepared, names: list[str], report: Report) -> None:
        report.reasons |= {names[i]: reason for i, reason in prepared.reasons.items()}
        kept = [names[i] for i in prepared.kept]
        if not kept:
            return
        out = self._embedder.embed_batch(prepared.images)  # type: ignore[arg-type]
        self._done.update(zip((kept[i] for i in out.kept.tolist()), out.vectors, strict=True))
        survivors = set(out.kept.tolist())
        report.reasons |= {
            name: "the network gave no finite vector" for i, name in enumerate(kept) if i not in survivors
        }

    def commit(self) -> int:
        """Commits what was computed; returns the images that got a vector. `fill` ends with it.

        When it fails, nothing computed is lost: call it again.
        """
        stored = store_vectors(self.lake, self.record.column, self._done, self.missing)
        self._done = {}
        return stored

    def _copy_known(self, gaps: Gaps, image_ids: Sequence[str], report: Report) -> set[str]:
        """Images asked about again: their other rows have the vector already."""
        copied: set[str] = set()
        # Part by part: the vectors of all that is known need not fit in memory.
        for start in range(0, len(image_ids), COMMIT_IMAGES):
            names = pa.array(image_ids[start : start + COMMIT_IMAGES], pa.string())
            known = embedded_elsewhere(gaps.dataset, names, gaps.address)
            if known.num_rows:
                places = ",".join(map(str, known["_rowaddr"].to_pylist()))
                # Without stable row ids, which the lake's tables do not have, a row's id is its address.
                rows = gaps.dataset.to_table(["image_id", self.record.column], filter=f"_rowid in ({places})")
                vectors = to_matrix(rows[self.record.column], dim_of(self.record))
                found = dict(zip(rows["image_id"].to_pylist(), vectors, strict=True))
                self._done |= found
                copied |= found.keys()
                report.embedded += self.commit()
        return copied

    def _prepared(self, todo: list[str], late: Callable[[], bool], hasty: bool) -> Iterator[tuple[Prepared, list[str]]]:
        """Images as the network takes them; after a worker's death its images are tried one by one, for the culprit."""
        if self._pool is None:
            self._pool = WorkerPool("embeddings.embedders.preprocess:prepare_many", self._workers)
        how = self._embedder.spec.preprocessing
        most = min(TASK_IMAGES, HASTY_TASK_IMAGES) if hasty else TASK_IMAGES
        tasks = self._tasks(todo, late, most)
        for result, (names, files) in self._pool.map(tasks, HASTY_AHEAD if hasty else AHEAD):
            yield _one_by_one(files, how) if isinstance(result, WorkerDied) else result, names

    def _tasks(
        self, todo: list[str], late: Callable[[], bool], most: int
    ) -> Iterator[tuple[tuple[list[bytes], Any], tuple[list[str], list[bytes]]]]:
        for start in range(0, len(todo), COMMIT_IMAGES):
            names = todo[start : start + COMMIT_IMAGES]
            sizes = _sizes(self.lake, names)
            self.missing.bytes_are_gone([n for n in names if n not in sizes])
            for together in grouped((n for n in names if n in sizes), sizes.__getitem__, READ_IMAGES, READ_BYTES):
                stored = {image.image_id: image.data for image in blobs.images(self.lake, together)}
                self.missing.bytes_are_gone([n for n in together if n not in stored])
                here = [n for n in together if n in stored]
                for part in grouped(here, sizes.__getitem__, most, TASK_BYTES):
                    if late():
                        return
                    files = [stored[n] for n in part]
                    yield (files, self._embedder.spec.preprocessing), (part, files)


def _sizes(lake: Lake, names: list[str]) -> dict[str, int]:
    """image_id -> bytes, of those the lake has."""
    found = lake.look_up("images", ["image_id", "size_bytes"], "image_id", names)
    return dict(zip(found["image_id"].to_pylist(), found["size_bytes"].to_pylist(), strict=True))


def _one_by_one(files: list[bytes], how: Preprocessing | None) -> Prepared:
    images: list[np.ndarray] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    with WorkerPool("embeddings.embedders.preprocess:prepare_many", 1) as careful:
        for index, data in enumerate(files):
            alone = careful.run([data], how)
            if isinstance(alone, WorkerDied):
                reasons[index] = alone.reason
            elif alone.kept:
                images.append(alone.images[0])
                kept.append(index)
            else:
                reasons[index] = alone.reasons[0]
    return Prepared(images, kept, reasons)
