"""The one way into the lake for bulk data: read, check, decode in workers, commit in big steps.

Order of commits within a step: thumbnails, images, labels, predictions. A kill between them leaves nothing that a
second run does not complete, because every row's key is derived from what it says and known keys are left alone.
Memory is bounded: by bytes read ahead, by tasks in flight, and by the size of a step.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import ids
from lake.errors import BadInput, LakeloopError
from lake.formats import annotation, prediction_rows
from lake.formats.item import MAX_FILE_BYTES, Item, printable
from lake.images import decode
from lake.images.workers import WorkerPool, grouped
from lake.ingest import sources
from lake.storage import image_rows, schema
from lake.storage.store import now

if TYPE_CHECKING:
    from lake.storage.store import Lake

# A step is committed when it holds this much: large enough that commits cost little, small beside 1.5 GB.
COMMIT_BYTES = 96 << 20
COMMIT_ROWS = 8_192
# Read ahead together, so that one query tells which of them the lake knows.
GROUP_ITEMS = 512
GROUP_BYTES = 24 << 20
# One task of a worker.
TASK_ITEMS = 32
TASK_BYTES = 4 << 20
# Between refreshes of the key indexes during one run; unindexed rows are scanned by every look-up.
INDEX_ROWS = 200_000


@dataclass
class IngestReport:
    """What an ingest did. Every file or row is counted once among new, known and rejected."""

    images_new: int = 0
    images_known: int = 0
    predictions_new: int = 0
    predictions_known: int = 0
    labels_new: int = 0
    rejected: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Draft:
    """An item on its way: bytes and id once read, a decoded image once a worker saw it (unless known)."""

    item: Item
    row: prediction_rows.PredictionRow | None = None
    image_id: str = ""
    data: bytes | None = None
    path: Path | None = None
    size_px: tuple[int, int] | None = None  # of an image that the lake has
    decoded: decode.Decoded | None = None
    error: str | None = None

    def size(self) -> int:
        """Bytes held."""
        return len(self.data or b"")


def ingest(
    lake: Lake,
    path: str | Path,
    layout: sources.Layout = "auto",
    *,
    model: annotation.ModelName | None = None,
    workers: int | None = None,
    max_megapixels: float = decode.MAX_MEGAPIXELS_BULK,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Brings a folder, a prediction log or a data set into the lake.

    What a data set says of its images becomes labels; with `model`, that model's answers.

    `workers` decode (default: one a core). `progress` is called with the number of items just finished. Files that
    cannot be read are reported and change nothing for the others; the work done so far survives an interrupt.
    Raises BadInput when `path` is nothing that can be ingested.
    """
    source = Path(path)
    layout = sources.resolve(source, layout)
    items = sources.read(source, layout, model)
    return ingest_items(lake, items, workers=workers, max_megapixels=max_megapixels, progress=progress)


def ingest_items(
    lake: Lake,
    items: Iterable[Item],
    *,
    workers: int | None = None,
    max_megapixels: float = decode.MAX_MEGAPIXELS_BULK,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """`ingest` for items from anywhere: what every layout ends in."""
    run = _Run(lake, max_megapixels, progress)
    started = time.perf_counter()
    count = workers or len(os.sched_getaffinity(0))
    with (
        WorkerPool(image_rows.DECODER, count) as pool,
        ThreadPoolExecutor(4) as readers,
    ):
        groups = run.groups(items, readers)
        for result, drafts in pool.map(run.tasks(groups)):
            run.settle(result, drafts)
            for draft in drafts:
                run.add(draft)
        run.commit()
    run.finish()
    run.report.seconds = time.perf_counter() - started
    return run.report


class _Run:
    def __init__(self, lake: Lake, max_megapixels: float, progress: Callable[[int], None] | None) -> None:
        self.lake = lake
        self.report = IngestReport()
        self.max_megapixels = max_megapixels
        self.progress = progress or (lambda n: None)
        self.promoted = lake.promoted()
        self.schemas = {name: schema.TABLES[name].arrow() for name in ("thumbnails", "images", "labels")}
        core = schema.PREDICTIONS.arrow()
        self.schemas["predictions"] = pa.schema([*core, *(pa.field(n, t) for n, t in self.promoted.items())])
        self.step: dict[str, list[dict[str, Any]]] = {name: [] for name in self.schemas}
        self.step_bytes = 0
        self.unindexed = 0
        # Ids read in this run whose rows are not committed yet: a second copy must not be decoded again.
        self.in_flight: set[str] = set()
        self.unreadable: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}  # of those in flight, once decoded

    # Reading -----------------------------------------------------------------------------------------------

    def groups(self, items: Iterable[Item], readers: ThreadPoolExecutor) -> Iterator[list[_Draft]]:
        """Items read from disk, in order, a group at a time; its new images have their bytes kept."""
        for group in grouped(_read_ahead(items, self.read, readers), _Draft.size, GROUP_ITEMS, GROUP_BYTES):
            yield self.sorted_out(group)

    def read(self, item: Item) -> _Draft:
        draft = _Draft(item, error=item.error, path=item.path)
        try:
            if item.row is not None:
                draft.row = prediction_rows.read_row(item.row, self.promoted, lambda p: file_bytes(_inside(item, p)))
                if draft.row.image_id is not None:
                    draft.image_id = draft.row.image_id.lower()
                    if not ids.is_image_id(draft.image_id):
                        raise BadInput(f"image_id is {draft.row.image_id!r}, not 64 hex digits")
                elif draft.row.image is not None:
                    draft.path = _inside(item, draft.row.image)
            if draft.error is None:
                draft.data = item.data if draft.path is None else file_bytes(draft.path)
                if draft.data is not None:
                    draft.image_id = ids.image_id(draft.data)
        except (LakeloopError, OSError) as error:
            draft.error = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        return draft

    def sorted_out(self, group: list[_Draft]) -> list[_Draft]:
        """Drops the bytes of images that are known; rejects ids that should be known and are not, and erased images."""
        asked = {d.image_id for d in group if d.error is None}
        stored = self.lake.look_up(
            "images", ["image_id", "width", "height"], "image_id", sorted(asked - self.in_flight)
        )
        sizes = {row["image_id"]: (row["width"], row["height"]) for row in stored.to_pylist()}
        known = {*sizes} | (asked & self.in_flight)
        erased = self.lake.erased(sorted(asked))
        for draft in group:
            if draft.error is None and draft.image_id in erased:
                draft.error = f"this image was erased on {erased[draft.image_id]:%Y-%m-%d}"
            draft.size_px = sizes.get(draft.image_id)
            if draft.error is not None or draft.image_id in known:
                draft.data = None
            elif draft.data is None:
                draft.error = f"the lake has no image {draft.image_id}"
            else:
                known.add(draft.image_id)
                self.in_flight.add(draft.image_id)
        return group

    # Decoding ----------------------------------------------------------------------------------------------

    def tasks(self, groups: Iterable[list[_Draft]]) -> Iterator[tuple[tuple[Any, ...], list[_Draft]]]:
        for group in groups:
            for part in grouped(group, _Draft.size, TASK_ITEMS, TASK_BYTES):
                yield ([d.data for d in part if d.data is not None], self.max_megapixels), part

    def settle(self, result: Any, drafts: list[_Draft]) -> None:
        """Gives each new image what its worker found."""
        new = [d for d in drafts if d.data is not None]
        files = [d.data for d in new if d.data is not None]
        for draft, found in zip(new, image_rows.settled(result, files, self.max_megapixels), strict=True):
            if isinstance(found, str):
                draft.error = found
                self.in_flight.discard(draft.image_id)
            else:
                draft.decoded = found

    # Writing -----------------------------------------------------------------------------------------------

    def add(self, draft: _Draft) -> None:
        self.progress(1)
        if draft.error is None and draft.image_id in self.unreadable:
            # A copy of an image that failed while the copy was on its way.
            draft.error = self.unreadable[draft.image_id]
        if draft.error is not None:
            if draft.data is not None:
                self.unreadable[draft.image_id] = draft.error
            self.report.rejected.append({"source": draft.item.source, "reason": draft.error})
            return
        moment = now()
        if draft.decoded is None or draft.data is None:
            self.report.images_known += draft.path is not None or draft.item.data is not None
        else:
            d = draft.decoded
            self.sizes[draft.image_id] = (d.width, d.height)
            place = draft.item.source if draft.row is None else draft.row.source or printable(draft.path or "")
            row = image_rows.image_row(draft.image_id, draft.data, d.format, d.width, d.height, place, moment)
            self.step["images"].append(row)
            self.step["thumbnails"].append(image_rows.thumbnail_row(draft.image_id, d))
            self.step_bytes += len(draft.data) + len(d.thumbnail)
        self.step["predictions"] += self.answers(draft, moment)
        if self.step_bytes >= COMMIT_BYTES or len(self.step["predictions"]) >= COMMIT_ROWS:
            self.commit()

    def answers(self, draft: _Draft, moment: Any) -> list[dict[str, Any]]:
        """The draft's rows of predictions; what its data set says is true goes to the step's labels."""
        given: list[prediction_rows.PredictionRow | None] = [] if draft.row is None else [draft.row]
        size = draft.size_px or self.sizes.get(draft.image_id)
        if draft.item.read_annotations is not None and size is not None:
            said = draft.item.read_annotations(*size)
            self.report.rejected += [{"source": place, "reason": reason} for place, reason in said.rejected]
            self.step["labels"] += [
                _label(draft.image_id, truth, said.annotator, moment) for truth in said.ground_truths
            ]
            more = [{"metadata": said.metadata}] if said.metadata and not said.predictions else []
            for row in (*said.predictions, *more):
                place = {"source": draft.item.source}
                try:
                    given.append(
                        prediction_rows.read_row(place | row | {"image_id": draft.image_id}, self.promoted, _no_file)
                    )
                except LakeloopError as error:
                    self.report.rejected.append({"source": draft.item.source, "reason": str(error)})
        return [_prediction(draft, row, moment) | {"place": draft.item.source} for row in given or [None]]

    def commit(self) -> None:
        """Writes the step. Thumbnails and images first: no row may name an image that is not there."""
        step, self.step = self.step, {name: [] for name in self.schemas}
        self.step_bytes = 0
        insert = self.lake.insert
        insert("thumbnails", self.table("thumbnails", step["thumbnails"]))
        self.report.images_new += insert("images", self.table("images", step["images"]))
        self.report.labels_new += insert("labels", self.table("labels", _distinct(step["labels"], "event_id")))
        self.commit_predictions(step["predictions"])
        for row in step["images"]:
            self.in_flight.discard(row["image_id"])
            self.sizes.pop(row["image_id"], None)
        self.unindexed += len(step["predictions"])
        if self.unindexed >= INDEX_ROWS:
            self.finish()

    def commit_predictions(self, answers: list[dict[str, Any]]) -> None:
        fresh = _distinct(answers, "prediction_id")
        new = self.lake.insert("predictions", self.table("predictions", fresh))
        self.report.predictions_new += new
        known = len(answers) - new
        if known:
            known -= self.reject_contradictions(answers)
        self.report.predictions_known += known

    def reject_contradictions(self, answers: list[dict[str, Any]]) -> int:
        """A known id is a repeat only if it says the same: another answer under it must not vanish silently."""
        wrong = contradictions(self.lake, answers)
        for a in wrong:
            reason = (
                f"another answer is stored under the same id {a['prediction_id']}: "
                "give the rows a timestamp or an id of their own"
            )
            self.report.rejected.append({"source": a["place"], "reason": reason})
        return len(wrong)

    def table(self, name: str, rows_: list[dict[str, Any]]) -> pa.Table:
        if name == "images":
            return image_rows.images_table(rows_)
        return pa.Table.from_pylist(rows_, schema=self.schemas[name])

    def finish(self) -> None:
        for name in self.schemas:
            self.lake.index(name)
        self.unindexed = 0


def contradictions(lake: Lake, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose id the lake has with another image, label or confidence."""
    columns = ["prediction_id", "image_id", "label", "confidence"]
    stored = lake.look_up("predictions", columns, columns[0], [a["prediction_id"] for a in answers])
    said = {r["prediction_id"]: (r["image_id"], r["label"], r["confidence"]) for r in stored.to_pylist()}
    return [a for a in answers if said.get(a["prediction_id"]) != (a["image_id"], a.get("label"), a.get("confidence"))]


def _read_ahead(items: Iterable[Item], read: Callable[[Item], _Draft], readers: ThreadPoolExecutor) -> Iterator[_Draft]:
    """`read` of each item, in order, a few ahead: reading and hashing overlap with decoding."""
    from collections import deque

    ahead: deque[Any] = deque()
    for item in items:
        ahead.append(readers.submit(read, item))
        if len(ahead) > 8:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _inside(item: Item, written: str) -> Path:
    """The path a row means: relative to the log's folder, or absolute."""
    if "\0" in written:
        raise BadInput(f"{written!r} is no path")
    if "://" in written:
        raise BadInput(f"{written!r} is a URL; lakeloop fetches nothing: download it and give the path")
    return Path(written) if item.folder is None else item.folder / written


def file_bytes(path: Path) -> bytes:
    """What is in an ordinary file. Raises BadInput for another kind of file and one that is too large, OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
        raise BadInput("not a regular file")
    size = status.st_size
    if size > MAX_FILE_BYTES:
        raise BadInput(f"the file is {size >> 20} MiB; the limit is {MAX_FILE_BYTES >> 20} MiB")
    return path.read_bytes()


def _no_file(written: str) -> bytes:
    raise BadInput(f"{written!r} is a mask's file; a data set's own annotations hold its masks")


def _label(image_id: str, truth: annotation.GroundTruth, annotator: str, moment: Any) -> dict[str, Any]:
    return {
        "event_id": annotation.event_id(image_id, truth),
        "image_id": image_id,
        "timestamp": moment,
        "task": truth.task,
        "label": truth.label,
        "boxes": truth.boxes,
        "masks": truth.masks,
        "origin": "import",
        "annotator": annotator,
    }


def _prediction(draft: _Draft, row: prediction_rows.PredictionRow | None, moment: Any) -> dict[str, Any]:
    if row is None:
        bare = ids.bare_prediction_id(draft.image_id)
        return {
            "prediction_id": bare,
            "image_id": draft.image_id,
            "source": draft.item.source,
            "ingested_at": moment,
        }
    if prediction_rows.has_prediction(row):
        own = ids.as_uuid(row.row_id) if row.row_id else None
        stamp = row.timestamp.isoformat() if row.timestamp else None
        prediction_id = own or ids.derived_prediction_id(
            draft.image_id, row.model, row.model_version, stamp, row.row_id
        )
    else:
        prediction_id = ids.bare_prediction_id(draft.image_id)
    columns = prediction_rows.columns(row)
    return {
        **columns,
        "prediction_id": prediction_id,
        "image_id": draft.image_id,
        "source": columns["source"] or draft.item.source,
        "ingested_at": moment,
    }


def _distinct(rows_: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The first row of each key: merge_insert would insert repeats within one batch."""
    return list({row[key]: row for row in reversed(rows_)}.values())[::-1]
