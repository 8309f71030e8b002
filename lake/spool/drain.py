"""Moves events from the spool to the lake: batches become rows, exactly once, in big commits.

A batch is written in this order: thumbnails, images, predictions, reviews, audit. Then the file system is synced, and
only then the spool forgets the events. If the drain is killed in between, the next one writes the same rows under the
same keys, and known keys are not written again. An image that does not decode keeps its bytes and its prediction, whose
`image_status` says why.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lake.images import decode
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerPool, grouped
from lake.spool import faults
from lake.spool.batch import Batch, DrainReport, reason_of
from lake.storage import image_rows, indexes
from lake.storage.known_vectors import KnownVectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lake.spool.spool import Spool, WaitingEvent
    from lake.storage.store import Lake

# One batch: bounds the memory of a drain, and the work repeated after a kill.
BATCH_EVENTS = 2_048
BATCH_BYTES = 48 << 20
TASK_IMAGES = 16
TASK_BYTES = 4 << 20
DECODE_SECONDS = 20.0
# An event that ends so many drainers alone is at fault: one may have been killed, or have lost its power.
DEATHS = 2
# Every look-up scans the rows outside the indexes, so complete those after this much.
INDEX_EVENTS = 20_000
INDEX_BATCHES = 40


@dataclass(frozen=True)
class Sampling:
    """Which images' bytes are kept: a share of them, chosen by their id, and always those of unsure predictions.

    Images that were uploaded by themselves or have a verdict are kept too. `share` is 0 to 1.
    """

    share: float = 1.0
    below_confidence: float = 0.0

    def selects(self, image_id: str) -> bool:
        """Whether the image is in the share; the same everywhere, because its id is a hash."""
        return int(image_id[:13], 16) < self.share * 16**13


def drain(lake: Lake, spool: Spool) -> DrainReport | None:
    """Moves all waiting events into the lake; None if another process is draining."""
    total = DrainReport()
    with Drainer(lake, spool) as drainer:
        while True:
            report = drainer.batch()
            if report is None:
                return None
            if not report.events:
                drainer.index()
                return total
            total.add(report)


class Drainer:
    """Drains batch by batch. Use it as a context manager: it runs worker processes for decoding."""

    def __init__(self, lake: Lake, spool: Spool, sampling: Sampling | None = None, workers: int = 1) -> None:
        self.lake = lake
        self.spool = spool
        self.sampling = sampling or Sampling()
        self.vectors = KnownVectors(lake)
        self._workers = workers
        self._pool: WorkerPool | None = None
        self._unindexed = self._batches = 0
        # After a drainer did not survive a batch, its events come in smaller ones: to find what ended it.
        self._file = faults.BatchFile(spool.folder)
        self._most, self._careful_until = BATCH_EVENTS, 0
        self._deaths = 0  # of drainers while they wrote the event `_careful_until` alone

    def __enter__(self) -> Drainer:
        self.spool.parked.retry_after_upgrade()
        if (fatal := self._file.left()) is not None:
            size, self._careful_until, deaths = fatal
            self._most = max(1, size // 8)
            waiting = self.spool.oldest(1, BATCH_BYTES)
            # The batch may have been written before the end: then the oldest event is another one.
            if size == 1 and waiting and waiting[0].seq == self._careful_until:
                self._deaths = deaths + 1
                if self._deaths >= DEATHS:
                    self.spool.parked.add(waiting[0].seq, "the drainer ended while it wrote this event")
            self._file.end()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def batch(self) -> DrainReport | None:
        """Drains one batch; a report of 0 events if none waits, None if another process is draining."""
        started = time.perf_counter()
        with self.spool.drainer() as mine:
            if not mine:
                return None
            waiting = self.spool.oldest(self._most, BATCH_BYTES)
            if not waiting:
                # A segment may outlive its events: if it was in use when they were drained, or the drainer was killed.
                self.spool.remove_drained_segments()
                return DrainReport()
            alone = len(waiting) == 1 and waiting[0].seq == self._careful_until
            self._file.begin(len(waiting), waiting[-1].seq, self._deaths if alone else 0)
            try:
                report = self._drain(waiting)
            finally:
                self._file.end()
        if waiting[-1].seq >= self._careful_until:
            self._most = BATCH_EVENTS
        self._unindexed += len(waiting)
        self._batches += 1
        if self._unindexed >= INDEX_EVENTS or self._batches >= INDEX_BATCHES:
            self.index()
        report.seconds = time.perf_counter() - started
        return report

    def _drain(self, waiting: Sequence[WaitingEvent]) -> DrainReport:
        """Drains one batch. If its content cannot be written, it parks the events that cannot be rows; if each can be
        one, it halves the batch, until the faulty event is alone and is parked.
        """
        try:
            report = Batch(self, waiting).write()
            self.lake.sync()
        except BaseException as error:  # a panic of Lance is no Exception
            if faults.may_pass(error) or not Batch(self, waiting).readable():
                raise  # the same events again, later
            reasons = Batch(self, waiting).faults() or ({waiting[0].seq: reason_of(error)} if len(waiting) == 1 else {})
            for seq, reason in reasons.items():
                self.spool.parked.add(seq, reason)
            report = DrainReport(events=len(reasons), parked=len(reasons))
            rest = [event for event in waiting if event.seq not in reasons]
            half = len(rest) // 2 if not reasons else len(rest)
            for part in (rest[:half], rest[half:]):
                if part:
                    report.add(self._drain(part))
        else:
            self.spool.forget(waiting)
        return report

    def index(self) -> None:
        """Brings the drained rows into the key indexes, where enough are missing to rewrite the index."""
        if self._batches:
            for name in ("thumbnails", "images", "samples", "reviews", "audit"):
                indexes.complete(self.lake, name, thorough=False)
        self._unindexed = self._batches = 0

    def decoded(self, files: list[tuple[str, bytes]]) -> dict[str, decode.Decoded | str]:
        """image_id -> the decoded image, or the reason why it cannot be decoded."""
        if not files:
            return {}
        if self._pool is None:
            self._pool = WorkerPool(
                image_rows.DECODER, self._workers, memory_bytes=HTTP_MEMORY_BYTES, timeout=DECODE_SECONDS,
                answer_bytes=image_rows.ANSWER_BYTES,
            )  # fmt: skip
        tasks = (
            (([data for _, data in part], decode.MAX_MEGAPIXELS, None), part)
            for part in grouped(files, lambda f: len(f[1]), TASK_IMAGES, TASK_BYTES)
        )
        images: dict[str, decode.Decoded | str] = {}
        for result, part in self._pool.map(tasks):
            data = [d for _, d in part]
            settled = image_rows.settled(
                result, data, decode.MAX_MEGAPIXELS, memory_bytes=HTTP_MEMORY_BYTES, timeout=DECODE_SECONDS
            )
            images |= dict(zip((name for name, _ in part), settled, strict=True))
        return images
