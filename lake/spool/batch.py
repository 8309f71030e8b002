"""One batch of events as rows of the lake, written in the order of the tables."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import ids
from lake.access import audit
from lake.errors import UnreadableImage
from lake.images.image_header import read_header
from lake.ingest.rows import contradictions
from lake.spool import events
from lake.storage import image_rows, schema
from lake.storage.store import now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lake.spool.drain import Drainer
    from lake.spool.spool import WaitingEvent

# Lance writes no row of 25 MiB into a table with an index and vectors.
ROW_BYTES = 24 << 20

LOST = "its bytes were damaged in the spool"
ERASED = "it was erased"


@dataclass
class DrainReport:
    """Counts of a drain. `unreadable` counts images by the reason; `contradictions` are ids another spool used too.

    `parked` events could not be written because of their content (see `ParkedEvents`).
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

    def add(self, other: DrainReport) -> None:
        for name in ("events", "images", "predictions", "reviews", "contradictions", "parked", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.unreadable.update(other.unreadable)


class Batch:
    """Writes one batch of events to the tables."""

    def __init__(self, drainer: Drainer, waiting: Sequence[WaitingEvent]) -> None:
        self.drainer = drainer
        self.lake = drainer.lake
        self.waiting = waiting
        self.time = now()
        self.report = DrainReport(events=len(waiting))
        # image_id -> why the image has no thumbnail. Images without an entry are well, as far as is known.
        self.status: dict[str, str] = {}

    def write(self) -> DrainReport:
        by_kind: dict[str, list[WaitingEvent]] = {"prediction": [], "image": [], "feedback": []}
        for event in self.waiting:
            by_kind[event.kind].append(event)
        types = {f.name: f.type for f in self.lake.dataset("samples").schema}
        predictions = [self._prediction_row(e, types) for e in by_kind["prediction"]]
        self._write_images(predictions, by_kind["image"], {e.image_id for e in by_kind["feedback"]})
        self._write_predictions(predictions, by_kind["image"], types)
        self._write_reviews(by_kind["feedback"])
        self._write_audit()
        return self.report

    def readable(self) -> bool:
        """Whether the tables can be read where the batch has to look its keys up. If not, no event is at fault."""
        image_ids, event_ids = sorted({e.image_id for e in self.waiting}), sorted(e.event_id for e in self.waiting)
        try:
            for name in ("forgotten", "images", "thumbnails", "samples"):
                self.lake.known(name, "image_id", image_ids)
            self.lake.known("samples", "prediction_id", event_ids)
            self.lake.known("reviews", "event_id", event_ids)
        except Exception:
            return False
        return True

    def faults(self) -> dict[int, str]:
        """By seq, why an event alone cannot be a row."""
        types = {f.name: f.type for f in self.lake.dataset("samples").schema}
        reasons = {}
        for event in self.waiting:
            try:
                if len(event.row) > ROW_BYTES:
                    raise ValueError(f"its row has {len(event.row) / 2**20:.1f} MiB; Lance writes less than 25")
                if event.kind == "prediction":
                    self._samples([self._prediction_row(event, types)])
                elif event.kind == "feedback":
                    self._reviews([event])
            except Exception as error:
                reasons[event.seq] = reason_of(error)
        return reasons

    # Images ------------------------------------------------------------------------------------------------

    def _write_images(self, predictions: list[dict[str, Any]], uploads: list[WaitingEvent], reviewed: set[str]) -> None:
        data = self._new_images()
        decoded = self.drainer.decoded(list(data.items()))
        unsure = {
            row["image_id"] for row in predictions
            if row.get("confidence") is not None and row["confidence"] < self.drainer.sampling.below_confidence
        }  # fmt: skip
        always = unsure | reviewed | {e.image_id for e in uploads}
        sources = {row["image_id"]: row.get("source") for row in predictions}
        images, thumbnails = [], []
        for image_id, bytes_ in data.items():
            result = decoded[image_id]
            whole = None if isinstance(result, str) else result
            if isinstance(result, str):
                self.status[image_id] = result
                self.report.unreadable[result] += 1
                format, width, height = _header(bytes_)
            else:
                thumbnails.append(image_rows.thumbnail_row(image_id, result))
                format, width, height = result.format, result.width, result.height
            if image_id in always or self.drainer.sampling.selects(image_id):
                source = sources.get(image_id)
                images.append(image_rows.image_row(image_id, bytes_, format, width, height, source, self.time, whole))
            elif image_id not in self.status:
                self.status[image_id] = image_rows.NOT_KEPT
        self.lake.insert("thumbnails", pa.Table.from_pylist(thumbnails, schema=schema.THUMBNAILS.arrow()))
        if images:
            self.report.images += self.lake.insert("images", image_rows.images_table(images))

    def _new_images(self) -> dict[str, bytes]:
        """The bytes of the images that the lake does not have complete, without erased ones."""
        with_bytes = {e.image_id: e for e in self.waiting if e.bytes_at is not None}
        image_ids = sorted({e.image_id for e in self.waiting})
        for image_id in self.lake.known("forgotten", "image_id", image_ids):
            self.status[image_id] = ERASED
        known = self.lake.known("images", "image_id", image_ids)
        # A power loss may have lost the thumbnail and not the image: then the thumbnail is made again.
        whole = known - self._without_thumbnail(sorted(known))
        data = {}
        for image_id, event in with_bytes.items():
            if image_id in whole or image_id in self.status:
                continue
            bytes_ = self.drainer.spool.data(event)
            if bytes_ is not None:
                data[image_id] = bytes_
            elif image_id not in known:
                self.status[image_id] = LOST
                self.report.unreadable[LOST] += 1
        return data

    def _without_thumbnail(self, known: list[str]) -> set[str]:
        """The known images without a thumbnail; takes over their `image_status` from the lake."""
        missing = sorted(set(known) - self.lake.known("thumbnails", "image_id", known))
        if missing:
            columns = ["image_id", "image_status"]
            rows = self.lake.look_up("samples", columns, "image_id", missing, "image_status is not null")
            self.status |= dict(zip(rows["image_id"].to_pylist(), rows["image_status"].to_pylist(), strict=True))
        return set(missing)

    # Events ------------------------------------------------------------------------------------------------

    def _prediction_row(self, event: WaitingEvent, types: dict[str, pa.DataType]) -> dict[str, Any]:
        row = events.as_row(event.row, types)
        row.setdefault("timestamp", _received(event))
        unknown = {name: row.pop(name) for name in list(row) if name not in types}
        if unknown:  # the spool of a lake with other promoted columns
            metadata = json.loads(row.get("metadata") or "{}")
            row["metadata"] = json.dumps(unknown | metadata, ensure_ascii=False, sort_keys=True)
        return row | {"prediction_id": event.event_id, "image_id": event.image_id, "ingested_at": self.time}

    def _write_predictions(
        self, predictions: list[dict[str, Any]], uploads: list[WaitingEvent], types: dict[str, pa.DataType]
    ) -> None:
        share = self.drainer.sampling.share
        rows = predictions + self._image_only_rows(predictions, uploads)
        for row in rows:
            row["image_status"] = self.status.get(row["image_id"])
            row["image_share"] = share if share < 1 else None
        new = self.lake.insert("samples", self.drainer.vectors.added_to(self._samples(rows)))
        self.report.predictions += new
        if new < len(rows):
            self.report.contradictions += len(contradictions(self.lake, rows))

    def _samples(self, rows: list[dict[str, Any]]) -> pa.Table:
        fields = [f for f in self.lake.dataset("samples").schema if not f.name.startswith(schema.VECTOR_PREFIX)]
        return pa.Table.from_pylist(rows, schema=pa.schema(fields))

    def _image_only_rows(self, predictions: list[dict[str, Any]], uploads: list[WaitingEvent]) -> list[dict[str, Any]]:
        """A row for each uploaded image without a prediction, so that searches find it."""
        predicted = {row["image_id"] for row in predictions}
        image_ids = sorted({e.image_id for e in uploads} - predicted)
        predicted |= self.lake.known("samples", "image_id", image_ids)
        sources = {e.image_id: events.as_row(e.row, {}).get("source") for e in uploads}
        return [
            {
                "prediction_id": ids.bare_prediction_id(image_id),
                "image_id": image_id,
                "source": sources[image_id],
                "ingested_at": self.time,
            }
            for image_id in image_ids
            if image_id not in predicted and self.status.get(image_id) != ERASED
        ]

    def _write_reviews(self, feedback: list[WaitingEvent]) -> None:
        self.report.reviews += self.lake.insert("reviews", self._reviews(feedback))

    def _reviews(self, feedback: list[WaitingEvent]) -> pa.Table:
        table = schema.REVIEWS.arrow()
        types = {f.name: f.type for f in table}
        rows = []
        for event in feedback:
            row = events.as_row(event.row, types)
            row.setdefault("timestamp", _received(event))
            row |= {"event_id": event.event_id, "image_id": event.image_id, "origin": "customer"}
            rows.append(row | {"key_id": event.key_id, "ingested_at": self.time})
        return pa.Table.from_pylist(rows, schema=table)

    def _write_audit(self) -> None:
        rows = [
            audit.entry(
                e.kind, e.event_id, key_id=e.key_id, event_id=audit.entry_id(e.kind, e.event_id), timestamp=_received(e)
            )
            for e in self.waiting
        ]
        self.lake.insert("audit", audit.rows_to_table(rows))


def reason_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _received(event: WaitingEvent) -> dt.datetime:
    return dt.datetime.fromtimestamp(event.received, dt.UTC)


def _header(data: bytes) -> tuple[str, int, int]:
    """Format, width and height from the file's header, which was readable when the event was accepted."""
    try:
        return read_header(data, float("inf"))
    except UnreadableImage:
        return "unknown", 0, 0
