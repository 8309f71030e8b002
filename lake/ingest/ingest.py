"""Bulk ingest: reads items, checks them, decodes images in worker processes and commits in large steps.

Order of commits within a step: thumbnails, images, labels, predictions. After a kill between them a second run
completes the lake, because every row's key is derived from its content and known keys are not inserted again. Memory is
bounded by the bytes read ahead, the tasks in flight, and the size of a step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import ids
from lake.errors import BadInput, LakeloopError
from lake.formats import annotation
from lake.formats.item import Item, ReadOptions, printable
from lake.formats.turned_images import Orientation
from lake.images import decode
from lake.images.workers import WorkerPool, grouped
from lake.ingest import sources
from lake.ingest.item_files import file_bytes, item_path, no_file, read_ahead
from lake.ingest.report import IngestReport
from lake.ingest.rows import contradictions, prediction_row
from lake.ingest.white_points import SourceLevels, WhitePoint
from lake.labels.imported_statements import ImportedStatements, Statement
from lake.prediction_logs import prediction_rows
from lake.prediction_logs.instances import check_sizes
from lake.prediction_logs.log import LogOptions, PredictionLog
from lake.storage import image_rows, schema
from lake.storage.known_vectors import KnownVectors
from lake.storage.store import now

if TYPE_CHECKING:
    from lake.storage.store import Lake

# A step is committed at this size: large enough that commits cost little, small compared with 1.5 GB of memory.
COMMIT_BYTES = 96 << 20
COMMIT_ROWS = 8_192
# Items are read in groups: one query finds which of a group the lake has.
GROUP_ITEMS = 512
GROUP_BYTES = 24 << 20
# One task of a worker.
TASK_ITEMS = 32
TASK_BYTES = 4 << 20
# New rows between updates of the key indexes: every look-up scans rows without an index entry.
INDEX_ROWS = 200_000


@dataclass
class _Draft:
    """An item in progress: it gets bytes and id when it is read, and `decoded` from a worker if the image is new."""

    item: Item
    row: prediction_rows.PredictionRow | None = None
    image_id: str = ""
    data: bytes | None = None
    path: Path | None = None
    size_px: tuple[int, int] | None = None  # of an image that is in the lake
    decoded: decode.Decoded | None = None
    error: str | None = None

    def size(self) -> int:
        """Bytes in memory."""
        return len(self.data or b"")


def ingest(
    lake: Lake,
    path: str | Path,
    layout: sources.Layout = "auto",
    *,
    model: annotation.ModelName | None = None,
    orientation: Orientation | None = None,
    white_point: WhitePoint | None = None,
    log: LogOptions | None = None,
    workers: int | None = None,
    max_megapixels: float = decode.MAX_MEGAPIXELS,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Ingests a folder, a prediction log or a data set.

    A data set's annotations become labels; with `model`, they become that model's predictions. `orientation`: whether
    its coordinates are of the stored or the upright pixels of images that EXIF turns; None refuses what is unclear.
    `log`: what the caller says about a prediction log.

    `white_point`: what is white in its images of more than 8 bits, or `auto`; None: as before, or as their values say.
    `workers`: processes that decode (default: one per core). `progress` is called with the number of items just
    finished. Files that cannot be read are reported and do not affect the others; committed steps survive an interrupt.
    Raises BadInput if `path` cannot be ingested.
    """
    source = Path(path)
    layout = sources.resolve(source, layout)
    options = ReadOptions(model or annotation.ModelName(), orientation, log or LogOptions(), (*lake.promoted(),))
    items = sources.read(source, layout, options)
    where = os.path.abspath(source)
    return ingest_items(
        lake, items, where, white_point=white_point, workers=workers, max_megapixels=max_megapixels, progress=progress
    )


def ingest_items(
    lake: Lake,
    items: Iterable[Item],
    source: str | None = None,
    *,
    white_point: WhitePoint | None = None,
    workers: int | None = None,
    max_megapixels: float = decode.MAX_MEGAPIXELS,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """`ingest` for items from any source. `source`: of labels whose reader names no document, and of levels."""
    count = workers or len(os.sched_getaffinity(0))
    levels = SourceLevels(lake, source, white_point, max_megapixels, count)
    run = _Ingest(lake, source, levels, max_megapixels, progress)
    started = time.perf_counter()
    with (
        WorkerPool(image_rows.DECODER, count, answer_bytes=image_rows.ANSWER_BYTES) as pool,
        ThreadPoolExecutor(4) as readers,
    ):
        groups = run.groups(items, readers)
        for result, drafts in pool.map(run.tasks(groups)):
            run.settle(result, drafts)
            for draft in drafts:
                run.add(draft)
        run.commit()
    run.commit_labels(run.imported.rest())
    levels.change()
    run.report.notes += levels.notes
    run.finish()
    if run.log is not None:
        run.report.notes += run.log.lines()
    run.report.seconds = time.perf_counter() - started
    return run.report


class _Ingest:
    def __init__(
        self,
        lake: Lake,
        source: str | None,
        levels: SourceLevels,
        max_megapixels: float,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.lake = lake
        self.source = source
        self.vectors = KnownVectors(lake)
        self.levels = levels
        self.imported = ImportedStatements(lake, now())
        self.statements: list[Statement] = []
        self.report = IngestReport()
        self.max_megapixels = max_megapixels
        self.progress = progress or (lambda n: None)
        self.promoted = lake.promoted()
        self.schemas = {name: schema.TABLES[name].arrow() for name in ("thumbnails", "images", "labels")}
        core = schema.SAMPLES.arrow()
        self.schemas["samples"] = pa.schema([*core, *(pa.field(n, t) for n, t in self.promoted.items())])
        self.step: dict[str, list[dict[str, Any]]] = {name: [] for name in self.schemas if name != "labels"}
        self.step_bytes = 0
        self.unindexed = 0
        # Ids of images in this run that are not committed yet: a second copy is not decoded again.
        self.in_flight: set[str] = set()
        self.unreadable: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}  # of decoded images in flight
        self.log: PredictionLog | None = None

    # Reading -----------------------------------------------------------------------------------------------

    def groups(self, items: Iterable[Item], readers: ThreadPoolExecutor) -> Iterator[list[_Draft]]:
        """Items read from disk, in order, a group at a time; only new images keep their bytes."""
        for group in grouped(read_ahead(items, self.read, readers), _Draft.size, GROUP_ITEMS, GROUP_BYTES):
            yield self.sort_out(group)

    def read(self, item: Item) -> _Draft:
        draft = _Draft(item, error=item.error, path=item.path)
        try:
            if item.row is not None:
                read_row = prediction_rows.read_row if item.log is None else item.log.read_row
                draft.row = read_row(item.row, self.promoted, lambda p: file_bytes(item_path(item, p)))
                if draft.row.image_id is not None:
                    draft.image_id = draft.row.image_id.lower()
                    if not ids.is_image_id(draft.image_id):
                        raise BadInput(f"image_id is {draft.row.image_id!r}, not 64 hex digits")
                elif draft.row.image is not None:
                    draft.path = item_path(item, draft.row.image)
            if draft.error is None:
                draft.data = item.data if draft.path is None else file_bytes(draft.path)
                if draft.data is not None:
                    draft.image_id = ids.image_id(draft.data)
        except (LakeloopError, OSError) as error:
            draft.error = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            if isinstance(error, OSError) and item.row is not None:
                draft.error = f"{printable(error.filename or '')}: {draft.error}"
        return draft

    def sort_out(self, group: list[_Draft]) -> list[_Draft]:
        """Drops the bytes of known images; rejects unknown ids and erased images."""
        image_ids = {d.image_id for d in group if d.image_id and d.error is None}
        stored = self.lake.look_up(
            "images", ["image_id", "width", "height", "white_from"], "image_id", sorted(image_ids - self.in_flight)
        )
        rows = stored.to_pylist()
        sizes = {row["image_id"]: (row["width"], row["height"]) for row in rows}
        white_from = {row["image_id"]: row["white_from"] for row in rows}
        known = {*sizes} | (image_ids & self.in_flight)
        erased = self.lake.erased(sorted(image_ids))
        for draft in group:
            if draft.item.passed_over is not None or draft.item.note is not None:
                continue
            if draft.error is None and draft.image_id in erased:
                draft.error = f"this image was erased on {erased[draft.image_id]:%Y-%m-%d}"
            draft.size_px = sizes.get(draft.image_id)
            if draft.data is not None and draft.error is None and draft.image_id in white_from:
                self.levels.see_known(draft.image_id, draft.data, white_from[draft.image_id])
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
        for group in self.levels.settled(groups, lambda draft: draft.data):
            for part in grouped(group, _Draft.size, TASK_ITEMS, TASK_BYTES):
                yield ([d.data for d in part if d.data is not None], self.max_megapixels, self.levels.declared), part

    def settle(self, result: Any, drafts: list[_Draft]) -> None:
        """Sets each new image's decoded data, or the reason why it cannot be decoded."""
        new = [d for d in drafts if d.data is not None]
        files = [d.data for d in new if d.data is not None]
        for draft, decoded in zip(
            new, image_rows.settled(result, files, self.max_megapixels, self.levels.declared), strict=True
        ):
            if isinstance(decoded, str):
                draft.error = decoded
                self.in_flight.discard(draft.image_id)
            else:
                draft.decoded = decoded

    # Writing -----------------------------------------------------------------------------------------------

    def add(self, draft: _Draft) -> None:
        if draft.item.passed_over is not None:
            self.report.passed_over[draft.item.passed_over] += 1
            return
        if draft.item.note is not None:
            self.report.notes.append(draft.item.note)
            return
        self.progress(1)
        if draft.error is None and draft.image_id in self.unreadable:
            # A copy of an image that failed while this copy was in flight.
            draft.error = self.unreadable[draft.image_id]
        if draft.error is not None:
            if draft.data is not None:
                self.unreadable[draft.image_id] = draft.error
            self.report.reject(draft.item.source, draft.error)
            return
        moment = now()
        if draft.decoded is None or draft.data is None:
            self.report.images_known += draft.path is not None or draft.item.data is not None
        else:
            d = draft.decoded
            self.sizes[draft.image_id] = (d.width, d.height)
            source = draft.item.source if draft.row is None else draft.row.source or printable(draft.path or "")
            row = image_rows.image_row(draft.image_id, draft.data, d.format, d.width, d.height, source, moment, d)
            self.step["images"].append(row)
            self.step["thumbnails"].append(image_rows.thumbnail_row(draft.image_id, d))
            self.step_bytes += len(draft.data) + len(d.thumbnail)
        self.step["samples"] += self.predictions(draft, moment)
        if self.step_bytes >= COMMIT_BYTES or len(self.step["samples"]) >= COMMIT_ROWS:
            self.commit()

    def predictions(self, draft: _Draft, moment: Any) -> list[dict[str, Any]]:
        """The draft's rows of samples. Adds the ground truth of its data set to the step's statements."""
        rows: list[prediction_rows.PredictionRow | None] = [] if draft.row is None else [draft.row]
        size = draft.size_px or self.sizes.get(draft.image_id)
        annotations = None
        if draft.item.read_annotations is not None and size is not None:
            annotations = draft.item.read_annotations(*size)
        elif draft.row is not None and draft.row.truth is not None:
            truth = annotation.GroundTruth(annotation.CLASSIFICATION, draft.row.truth)
            annotations = annotation.Annotations([truth], annotator="log")
        if annotations is not None:
            self.report.count_annotations(annotations)
            source = annotations.source or self.source
            self.statements += [
                Statement(draft.image_id, truth, annotations.annotator, source) for truth in annotations.statements()
            ]
            metadata = [{"metadata": annotations.metadata}] if annotations.metadata else []
            for row in annotations.predictions or metadata:
                row = {"source": draft.item.source} | row | {"image_id": draft.image_id}
                try:
                    rows.append(prediction_rows.read_row(row, self.promoted, no_file))
                except LakeloopError as error:
                    self.report.reject(draft.item.source, str(error))
        refused = False
        if size is not None:
            sound = [row for row in rows if self.fits(row, size, draft)]
            refused, rows = len(sound) < len(rows), sound
        if refused and not rows and draft.decoded is None:
            return []  # the image has its row
        return [
            prediction_row(draft.image_id, draft.item.source, row, moment) | {"item": draft.item.source}
            for row in rows or [None]
        ]

    def fits(self, row: prediction_rows.PredictionRow | None, size: tuple[int, int], draft: _Draft) -> bool:
        """Whether a prediction's masks have the image's size; if not it is rejected. Notes what is said of the row."""
        if row is None:
            return True
        try:
            check_sizes(((m["width"], m["height"]) for m in row.masks or ()), [size])
        except BadInput as error:
            self.report.reject(draft.item.source, str(error))
            return False
        self.report.converted.update(row.converted)
        if draft.item.log is not None:
            self.log = draft.item.log
            self.log.notes.add(draft.item.source, draft.image_id, row)
        return True

    def commit(self) -> None:
        """Commits the step. Thumbnails and images first: no row may refer to an image that is not in the lake."""
        step, self.step = self.step, {name: [] for name in self.step}
        self.step_bytes = 0
        insert = self.lake.insert
        insert("thumbnails", self.table("thumbnails", step["thumbnails"]))
        self.report.images_new += insert("images", self.table("images", step["images"]))
        statements, self.statements = self.statements, []
        new_images = {row["image_id"] for row in step["images"]}
        self.commit_labels(self.imported.rows(statements, new_images))
        self.report.labels_known += sum(statement.truth.says_something() for statement in statements)
        self.commit_predictions(step["samples"], new_images)
        for row in step["images"]:
            self.in_flight.discard(row["image_id"])
            self.sizes.pop(row["image_id"], None)
        self.unindexed += len(step["samples"])
        if self.unindexed >= INDEX_ROWS:
            self.finish()

    def commit_labels(self, rows: list[dict[str, Any]]) -> None:
        new = self.lake.insert("labels", self.table("labels", rows))
        self.report.labels_new += new
        self.report.labels_known -= new  # every statement was counted as known

    def commit_predictions(self, rows: list[dict[str, Any]], new_images: set[str]) -> None:
        kept = self.without_known_images(rows, new_images)
        samples = self.table("samples", _distinct(kept, "prediction_id"))
        new = self.lake.insert("samples", self.vectors.added_to(samples, new_images))
        self.report.predictions_new += new
        known = len(rows) - new
        if len(kept) > new:
            known -= self.reject_contradictions(kept)
        self.report.predictions_known += known

    def without_known_images(self, rows: list[dict[str, Any]], new_images: set[str]) -> list[dict[str, Any]]:
        """Drops rows without a prediction of images that have a row: ground truth adds no sample."""
        bare = {row["image_id"] for row in rows if row["bare"]}
        predicted = {row["image_id"] for row in rows if not row["bare"]}
        known = sorted(bare - predicted - new_images)
        with_row = predicted | (self.lake.known("samples", "image_id", known) if known else set())
        return [row for row in rows if not row["bare"] or row["image_id"] not in with_row]

    def reject_contradictions(self, rows: list[dict[str, Any]]) -> int:
        """Rejects rows whose prediction_id the lake has with other content; returns how many."""
        contradicting = contradictions(self.lake, rows)
        for row in contradicting:
            reason = (
                f"another prediction is stored under the id {row['prediction_id']}: "
                "give each row a timestamp or its own id"
            )
            self.report.reject(row["item"], reason)
        return len(contradicting)

    def table(self, name: str, rows: list[dict[str, Any]]) -> pa.Table:
        if name == "images":
            return image_rows.images_table(rows)
        return pa.Table.from_pylist(rows, schema=self.schemas[name])

    def finish(self) -> None:
        for name in self.schemas:
            self.lake.index(name)
        self.unindexed = 0


def _distinct(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The first row of each key: merge_insert would insert repeats within a batch."""
    return list({row[key]: row for row in reversed(rows)}.values())[::-1]
