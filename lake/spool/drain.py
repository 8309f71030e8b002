"""From the spool to the lake: batches of events become rows, exactly once, in big commits.

A batch is written in this order: thumbnails, images, predictions, reviews, audit. Then the file system is synced, and
only then the spool forgets. Whatever kills this in between, the next drain writes the same rows under the same keys,
and known keys are left alone. An image that does not decode keeps its bytes and its answer, which says why.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import ids
from lake.access import audit
from lake.errors import LakeloopError, UnreadableImage
from lake.images import decode
from lake.images.image_header import read_header
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerPool, grouped
from lake.ingest.ingest import contradictions
from lake.spool import events
from lake.storage import image_rows, indexes, schema
from lake.storage.store import now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lake.spool.spool import Spool, Waiting
    from lake.storage.store import Lake

# One batch: bounds the memory of a drain, and what is done twice after a kill.
BATCH_EVENTS = 2_048
BATCH_BYTES = 48 << 20
TASK_IMAGES = 16
TASK_BYTES = 4 << 20
DECODE_SECONDS = 20.0
# Rows in no index are scanned by every look-up.
INDEX_EVENTS = 20_000
INDEX_BATCHES = 40

LOST = "its bytes were damaged in the spool"
ERASED = "it was erased"


@dataclass(frozen=True)
class Keep:
    """Which images' bytes are kept: a share of them, chosen by their id, and always those of unsure answers.

    Images uploaded by themselves and those somebody gave a verdict on are kept too. `share` is 0 to 1.
    """

    share: float = 1.0
    below_confidence: float = 0.0

    def chosen(self, image_id: str) -> bool:
        """The same for the same image everywhere: its id is a hash."""
        return int(image_id[:13], 16) < self.share * 16**13


@dataclass
class Report:
    """What a drain did. `unreadable` counts images by the reason; `contradictions` are ids another spool used too.

    `parked` events could not be written for what they say (see `Spool.park`).
    """

    events: int = 0
    images: int = 0
    predictions: int = 0
    reviews: int = 0
    contradictions: int = 0
    parked: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "unreadable": dict(self.unreadable)}

    def add(self, other: Report) -> None:
        for name in ("events", "images", "predictions", "reviews", "contradictions", "parked", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unreadable.update(other.unreadable)


def drain(lake: Lake, spool: Spool) -> Report | None:
    """Brings everything that waits into the lake; None when another process is at it."""
    total = Report()
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
    """Drains batch by batch. Use as a context manager: it keeps a worker process for decoding."""

    def __init__(self, lake: Lake, spool: Spool, keep: Keep | None = None, workers: int = 1) -> None:
        self.lake = lake
        self.spool = spool
        self.keep = keep or Keep()
        self._workers = workers
        self._pool: WorkerPool | None = None
        self._unindexed = self._batches = 0

    def __enter__(self) -> Drainer:
        self.spool.unpark()  # the fault may have been the last version's, or the machine's
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def batch(self) -> Report | None:
        """Drains one batch; a report of 0 events when nothing waits, None when another process drains."""
        started = time.perf_counter()
        with self.spool.drainer() as mine:
            if not mine:
                return None
            waiting = self.spool.oldest(BATCH_EVENTS, BATCH_BYTES)
            if not waiting:
                # A segment may have outlived its events: in use when they were drained, or the drainer was killed.
                self.spool.remove_drained_segments()
                return Report()
            report = self._drain(waiting)
        self._unindexed += len(waiting)
        self._batches += 1
        if self._unindexed >= INDEX_EVENTS or self._batches >= INDEX_BATCHES:
            self.index()
        report.seconds = time.perf_counter() - started
        return report

    def _drain(self, waiting: Sequence[Waiting]) -> Report:
        """One batch; when it cannot be written for its contents' sake, by halves, until the culprit is set aside."""
        try:
            report = _Batch(self, waiting).write()
            self.lake.sync()
        except (LakeloopError, OSError, MemoryError):
            raise  # the disk, the network, another writer: the same events again, later
        except Exception as error:
            if len(waiting) == 1:
                self.spool.park(waiting[0], f"{type(error).__name__}: {error}"[:500])
                return Report(events=1, parked=1)
            half = len(waiting) // 2
            report = self._drain(waiting[:half])
            report.add(self._drain(waiting[half:]))
        else:
            self.spool.forget(waiting)
        return report

    def index(self) -> None:
        """Brings what was drained under the key indexes, where that is worth writing them anew."""
        if self._batches:
            for name in ("thumbnails", "images", "predictions", "reviews", "audit"):
                indexes.complete(self.lake, name, thorough=False)
        self._unindexed = self._batches = 0

    def decoded(self, files: list[tuple[str, bytes]]) -> dict[str, decode.Decoded | str]:
        """image_id -> what it is, or the reason why it cannot be decoded."""
        if not files:
            return {}
        if self._pool is None:
            self._pool = WorkerPool(
                image_rows.DECODER, self._workers, memory_bytes=HTTP_MEMORY_BYTES, timeout=DECODE_SECONDS
            )
        tasks = (
            (([data for _, data in part], decode.MAX_MEGAPIXELS_HTTP), part)
            for part in grouped(files, lambda f: len(f[1]), TASK_IMAGES, TASK_BYTES)
        )
        found: dict[str, decode.Decoded | str] = {}
        for result, part in self._pool.map(tasks):
            data = [d for _, d in part]
            settled = image_rows.settled(result, data, decode.MAX_MEGAPIXELS_HTTP, HTTP_MEMORY_BYTES, DECODE_SECONDS)
            found |= dict(zip((name for name, _ in part), settled, strict=True))
        return found


class _Batch:
    """One batch on its way."""

    def __init__(self, drainer: Drainer, waiting: Sequence[Waiting]) -> None:
        self.drainer = drainer
        self.lake = drainer.lake
        self.waiting = waiting
        self.moment = now()
        self.report = Report(events=len(waiting))
        # Why an image has no thumbnail. What is not here is well, as far as anybody knows.
        self.status: dict[str, str] = {}

    def write(self) -> Report:
        by_kind: dict[str, list[Waiting]] = {"prediction": [], "image": [], "feedback": []}
        for event in self.waiting:
            by_kind[event.kind].append(event)
        kinds = {f.name: f.type for f in self.lake.dataset("predictions").schema}
        answers = [self._answer(e, kinds) for e in by_kind["prediction"]]
        self._write_images(answers, by_kind["image"], {e.image_id for e in by_kind["feedback"]})
        self._write_predictions(answers, by_kind["image"], kinds)
        self._write_reviews(by_kind["feedback"])
        self._write_audit()
        return self.report

    # Images ------------------------------------------------------------------------------------------------

    def _write_images(self, answers: list[dict[str, Any]], uploads: list[Waiting], judged: set[str]) -> None:
        data = self._new_images()
        found = self.drainer.decoded(list(data.items()))
        unsure = {
            a["image_id"] for a in answers
            if a.get("confidence") is not None and a["confidence"] < self.drainer.keep.below_confidence
        }  # fmt: skip
        always = unsure | judged | {e.image_id for e in uploads}
        sources = {a["image_id"]: a.get("source") for a in answers}
        images, thumbnails = [], []
        for image_id, bytes_ in data.items():
            result = found[image_id]
            if isinstance(result, str):
                self.status[image_id] = result
                self.report.unreadable[result] += 1
                format, width, height = _header(bytes_)
            else:
                thumbnails.append(image_rows.thumbnail_row(image_id, result))
                format, width, height = result.format, result.width, result.height
            if image_id in always or self.drainer.keep.chosen(image_id):
                source = sources.get(image_id)
                images.append(image_rows.image_row(image_id, bytes_, format, width, height, source, self.moment))
            elif image_id not in self.status:
                self.status[image_id] = image_rows.NOT_KEPT
        self.lake.insert("thumbnails", pa.Table.from_pylist(thumbnails, schema=schema.THUMBNAILS.arrow()))
        if images:
            self.report.images += self.lake.insert("images", image_rows.images_table(images))

    def _new_images(self) -> dict[str, bytes]:
        """The bytes of the images that the lake does not have whole; those that must not come in are left out."""
        with_bytes = {e.image_id: e for e in self.waiting if e.place is not None}
        asked = sorted({e.image_id for e in self.waiting})
        for image_id in self.lake.known("forgotten", "image_id", asked):
            self.status[image_id] = ERASED
        known = self.lake.known("images", "image_id", asked)
        # A power loss may have taken the thumbnail and left the image: it is made again.
        whole = known - self._bare(sorted(known))
        data = {}
        for image_id, event in with_bytes.items():
            if image_id in whole or image_id in self.status:
                continue
            found = self.drainer.spool.data(event)
            if found is not None:
                data[image_id] = found
            elif image_id not in known:
                self.status[image_id] = LOST
                self.report.unreadable[LOST] += 1
        return data

    def _bare(self, known: list[str]) -> set[str]:
        """The known images without a thumbnail; what was found out when they came is recalled."""
        bare = sorted(set(known) - self.lake.known("thumbnails", "image_id", known))
        if bare:
            columns = ["image_id", "image_status"]
            rows = self.lake.look_up("predictions", columns, "image_id", bare, "image_status is not null")
            self.status |= dict(zip(rows["image_id"].to_pylist(), rows["image_status"].to_pylist(), strict=True))
        return set(bare)

    # Events ------------------------------------------------------------------------------------------------

    def _answer(self, event: Waiting, kinds: dict[str, pa.DataType]) -> dict[str, Any]:
        row = events.as_row(event.row, kinds)
        row.setdefault("timestamp", _moment(event))
        strange = {name: row.pop(name) for name in list(row) if name not in kinds}
        if strange:  # the spool of a lake with other promoted columns
            known = json.loads(row.get("metadata") or "{}")
            row["metadata"] = json.dumps(strange | known, ensure_ascii=False, sort_keys=True)
        return row | {"prediction_id": event.event_id, "image_id": event.image_id, "ingested_at": self.moment}

    def _write_predictions(
        self, answers: list[dict[str, Any]], uploads: list[Waiting], kinds: dict[str, pa.DataType]
    ) -> None:
        share = self.drainer.keep.share
        rows = answers + self._bare_rows(answers, uploads)
        for row in rows:
            row["image_status"] = self.status.get(row["image_id"])
            row["image_share"] = share if share < 1 else None
        fields = [f for f in self.lake.dataset("predictions").schema if not f.name.startswith(schema.VECTOR_PREFIX)]
        table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
        new = self.lake.insert("predictions", table)
        self.report.predictions += new
        if new < len(rows):
            self.report.contradictions += len(contradictions(self.lake, rows))

    def _bare_rows(self, answers: list[dict[str, Any]], uploads: list[Waiting]) -> list[dict[str, Any]]:
        """A row for each uploaded image that no answer is about, so that it can be found."""
        answered = {a["image_id"] for a in answers}
        asked = sorted({e.image_id for e in uploads} - answered)
        answered |= self.lake.known("predictions", "image_id", asked)
        sources = {e.image_id: events.as_row(e.row, {}).get("source") for e in uploads}
        return [
            {
                "prediction_id": ids.bare_prediction_id(image_id),
                "image_id": image_id,
                "source": sources[image_id],
                "ingested_at": self.moment,
            }
            for image_id in asked
            if image_id not in answered and self.status.get(image_id) != ERASED
        ]

    def _write_reviews(self, said: list[Waiting]) -> None:
        table = schema.REVIEWS.arrow()
        kinds = {f.name: f.type for f in table}
        rows = []
        for event in said:
            row = events.as_row(event.row, kinds)
            row.setdefault("timestamp", _moment(event))
            row |= {"event_id": event.event_id, "image_id": event.image_id, "origin": "customer"}
            rows.append(row | {"key_id": event.key_id, "ingested_at": self.moment})
        self.report.reviews += self.lake.insert("reviews", pa.Table.from_pylist(rows, schema=table))

    def _write_audit(self) -> None:
        rows = [
            audit.entry(
                e.kind, e.event_id, key_id=e.key_id, event_id=audit.entry_id(e.kind, e.event_id), timestamp=_moment(e)
            )
            for e in self.waiting
        ]
        self.lake.insert("audit", audit.rows_to_table(rows))


def _moment(event: Waiting) -> dt.datetime:
    return dt.datetime.fromtimestamp(event.received, dt.UTC)


def _header(data: bytes) -> tuple[str, int, int]:
    """What the file says of itself; the door let it in, so it says something."""
    try:
        return read_header(data, float("inf"))
    except UnreadableImage:
        return "unknown", 0, 0
