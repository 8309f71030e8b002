"""Embedding what arrives, for as long as it is asked to: the network stays loaded, the workers stay up.

It looks at the tables' versions once a second and takes what waits in rounds: so many images at most, or so many
seconds, and one commit. Between rounds it looks again, so that the order (`embeddings/backfill/embedding_order.py`)
holds for what came
meanwhile. After each round it says how far behind it is. It knows nothing of processes and signals; those are in
`embeddings/backfill/watch_process.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from embeddings.backfill import embedding_order as orders
from embeddings.backfill.backfill import Backfill
from lake.errors import BadInput, LakeloopError

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from embeddings.embedders.embedder import Embedder
    from lake.storage.missing_vectors import Gaps
    from lake.storage.store import EmbedderRecord, Lake

# A round takes so many images, and begins none after so many seconds, in which two cores embed about 200. Longer rounds
# would keep what arrives waiting, shorter ones commit more.
ROUND_IMAGES = 512
ROUND_SECONDS = 2.0
FIRST_BACKOFF_SECONDS = 1.0
MOST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True)
class Lag:
    """How far behind a watcher is. Every count is of distinct images.

    `waiting` lack a vector and can get one; `oldest_seconds` is how long ago the first of them was committed to the
    lake, 0.0 when none waits. `embedded` got theirs since the last Lag. `failed` could not be embedded in the life of
    this watcher, which does not try them again. Nobody waits for `without_bytes`, which the lake holds no bytes of,
    and `unreadable`, which cannot be decoded (`image_status`).
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
    complain: Callable[[str], None] = lambda sentence: None,
    seed: int = 0,
    file: Path | None = None,
    workers: int | None = None,
) -> None:
    """Gives vectors to what the lake holds and to what arrives, until `stop` is set; then commits what is computed.

    `interval`: seconds between looks while nothing waits. `report` hears of the lag after every round and when it
    changed, `complain` of every failure that is tried again, with growing pauses: a full disk, a busy lake, storage
    that does not answer. `seed` is for the order `sampled`; `file` is where the weights came from, when from a file.
    Raises BadInput for what no repetition mends, such as a column made for vectors of another length.
    """
    watcher = _Watcher(order, seed, report)
    pause, again = 0.0, FIRST_BACKOFF_SECONDS
    try:
        while not stop.wait(pause):
            try:
                watcher.work = watcher.work or Backfill(lake, record, model, file=file, workers=workers)
                pause = 0.0 if watcher.round(watcher.work, stop) else interval
                again = FIRST_BACKOFF_SECONDS
            except BadInput:
                raise
            except (LakeloopError, OSError) as error:
                pause, again = again, min(2 * again, MOST_BACKOFF_SECONDS)
                complain(f"{error}; trying again in {pause:g} s")
                watcher.tell()
    finally:
        if watcher.work is not None:
            watcher.work.close()


@dataclass
class _Watcher:
    order: orders.Order
    seed: int
    report: Callable[[Lag], None]
    work: Backfill | None = None
    failed: set[str] = field(default_factory=set)
    gaps: Gaps | None = None

    def round(self, work: Backfill, stop: threading.Event) -> bool:
        """One look, and work on what is first; whether anything came of it."""
        embedded = work.commit()
        seen, self.gaps = self.gaps, work.missing.look()
        images = orders.first(self.gaps, self.order, ROUND_IMAGES, seed=self.seed, without=self.failed)
        if not images and not embedded and seen is self.gaps:
            return False
        known = len(self.failed)
        if images:
            done = work.fill(self.gaps, images, seconds=ROUND_SECONDS, stop=stop)
            embedded += done.embedded
            self.failed |= done.reasons.keys()
            self.gaps = work.missing.look()
        self.tell(embedded)
        return bool(embedded) or len(self.failed) > known

    def tell(self, embedded: int = 0) -> None:
        if self.gaps is not None:
            self.report(lag(self.gaps, embedded, self.failed))


def lag(gaps: Gaps, embedded: int = 0, failed: Collection[str] = ()) -> Lag:
    """The lag that these gaps mean now, to a watcher that gave up on `failed`."""
    counts = gaps.counts()
    which = orders.waiting(gaps)
    given_up = [row for row in gaps.rows_of(failed).tolist() if which[row]]
    which[given_up] = False
    images = counts["waiting"] - len(set(gaps.image_id.take(pa.array(given_up, pa.int64())).to_pylist()))
    oldest = time.time() - gaps.arrived[which].min() / 1e6 if which.any() else 0.0
    age = round(max(oldest, 0.0), 3)
    return Lag(images, age, embedded, len(failed), counts["without_bytes"], counts["unreadable"])
