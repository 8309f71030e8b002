"""Embeds images as they arrive, until it is stopped; the network stays loaded meanwhile.

It checks the tables' versions once a second and embeds waiting images in rounds, each limited in images and seconds and
ended by one commit. Between rounds it checks again, so that the order (`embeddings/backfill/embedding_order.py`) covers
the images that arrived meanwhile. After each round it reports its lag. This module knows no processes or signals;
`embeddings/backfill/watch_process.py` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from embeddings.backfill import embedding_order as orders
from embeddings.backfill import failures
from embeddings.backfill.backfill import Backfill
from lake.errors import BadInput, LakeloopError

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from embeddings.embedders.embedder import Embedder
    from lake.storage.missing_vectors import Gaps
    from lake.storage.store import EmbedderRecord, Lake

# Limits of a round; two cores embed about 200 images in its seconds. Longer rounds would keep new images waiting,
# shorter ones would commit more often.
ROUND_IMAGES = 512
ROUND_SECONDS = 2.0
FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True)
class Lag:
    """How far a watcher is behind. Every count is of distinct images.

    `waiting`: lack a vector and can get one; `oldest_seconds`: how long ago the oldest of them was committed, 0.0 if
    none waits. `embedded`: since the last Lag. `failed`: could not be embedded, now or earlier; it does not try them
    again. `without_bytes`: the lake has no bytes of them; `unreadable`: cannot be decoded (`image_status`).
    """

    waiting: int
    oldest_seconds: float
    embedded: int = 0
    failed: int = 0
    without_bytes: int = 0
    unreadable: int = 0


def watch(
    lake: Lake,
    record: EmbedderRecord,
    model: Embedder,
    *,
    order: orders.Order = "oldest",
    stop: threading.Event,
    interval: float = 1.0,
    report: Callable[[Lag], None] = lambda lag: None,
    warn: Callable[[str], None] = lambda message: None,
    seed: int = 0,
    file: Path | None = None,
    workers: int | None = None,
) -> None:
    """Embeds the lake's images and those that arrive, until `stop` is set; then commits the computed vectors.

    `interval`: seconds between checks while nothing waits. `report` receives the lag after every round and when it
    changes. `warn` receives every failure that is tried again, with growing pauses: a full disk, a busy lake, storage
    that does not respond. `seed` is for the order `sampled`; `file`: the file of the weights, if they came from one.
    Raises BadInput for failures that repeating cannot fix, such as a column for vectors of another length.
    """
    state = _Watcher(order, seed, report)
    pause, backoff = 0.0, FIRST_BACKOFF_SECONDS
    try:
        while not stop.wait(pause):
            try:
                if state.work is None:
                    state.work = Backfill(lake, record, model, file=file, workers=workers)
                    state.failed |= failures.of(lake, record.name).keys()
                pause = 0.0 if state.round(state.work, stop) else interval
                backoff = FIRST_BACKOFF_SECONDS
            except BadInput:
                raise
            except (LakeloopError, OSError) as error:
                pause, backoff = backoff, min(2 * backoff, MAX_BACKOFF_SECONDS)
                warn(f"{error}; trying again in {pause:g} s")
                state.report_lag()
    finally:
        if state.work is not None:
            state.work.close()


@dataclass
class _Watcher:
    order: orders.Order
    seed: int
    report: Callable[[Lag], None]
    work: Backfill | None = None
    failed: set[str] = field(default_factory=set)
    gaps: Gaps | None = None

    def round(self, work: Backfill, stop: threading.Event) -> bool:
        """Checks for waiting images and embeds the first; returns whether anything changed."""
        embedded = work.commit()
        before, self.gaps = self.gaps, work.look()
        images = orders.first(self.gaps, self.order, ROUND_IMAGES, seed=self.seed, excluded=self.failed)
        if not images and not embedded and before is self.gaps:
            return False
        failed_before = len(self.failed)
        if images:
            report = work.fill(self.gaps, images, seconds=ROUND_SECONDS, stop=stop)
            embedded += report.embedded
            self.failed |= report.reasons.keys()
            self.gaps = work.look()
        self.report_lag(embedded)
        return bool(embedded) or len(self.failed) > failed_before

    def report_lag(self, embedded: int = 0) -> None:
        if self.gaps is not None:
            self.report(lag(self.gaps, embedded, self.failed))


def lag(gaps: Gaps, embedded: int = 0, failed: Collection[str] = ()) -> Lag:
    """The current lag with these gaps, for a watcher that does not try the images in `failed` again."""
    counts = gaps.counts()
    is_waiting = orders.waiting(gaps)
    failed_rows = [row for row in gaps.rows_of(failed).tolist() if is_waiting[row]]
    is_waiting[failed_rows] = False
    images = counts["waiting"] - len(set(gaps.image_id.take(pa.array(failed_rows, pa.int64())).to_pylist()))
    oldest = time.time() - gaps.arrived[is_waiting].min() / 1e6 if is_waiting.any() else 0.0
    age = round(max(oldest, 0.0), 3)
    return Lag(images, age, embedded, len(failed), counts["without_bytes"], counts["unreadable"])
