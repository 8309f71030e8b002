"""Predicts many images, of a folder or of the lake, with a model version; logs them or writes a file.

Worker processes decode the files. Predictions are logged through `lake/ingest/ingest.py`, under ids derived from run
and image: a second call, or one after a kill, predicts only the missing images.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pyarrow as pa

from lake import ids, slices
from lake.errors import BadInput, LakeloopError
from lake.formats.annotation import Annotations
from lake.formats.item import Item, printable
from lake.images import decode
from lake.images.levels import Levels
from lake.images.workers import WorkerDied, WorkerPool, grouped
from lake.ingest import ingest, item_files, sources
from lake.sql import where
from lake.storage import blobs, schema, store
from training.inference import image_preparation
from training.inference.served_model import Predictor, ServedVersion
from training.models.trained_model import ProbeModel
from training.tasks.task import Prediction

if TYPE_CHECKING:
    from lake.storage.store import Lake

# The most predictions that an interruption loses, and the most images that are read together.
COMMIT_IMAGES = 1_024
READ_IMAGES, READ_BYTES = 128, 192 << 20
# The most for one task of a worker.
TASK_IMAGES, TASK_BYTES = 16, 8 << 20
SUFFIXES = (".jsonl", ".parquet")

Progress = Callable[[int], None]
# image_id, file, and black and white as recorded in the lake.
ImageFile = tuple[str, bytes, Levels | None]


@dataclass(frozen=True)
class Unpredicted:
    """An image without a prediction, and the reason."""

    image_id: str
    reason: str


@dataclass
class PredictionReport:
    """`predicted`: images predicted now; `known`: images whose prediction is in the lake already; `by_label`: counts of
    the predictions made now; `rejected`: source and reason of each image without a prediction.
    """

    model: str
    version: int
    run: str
    predicted: int = 0
    known: int = 0
    by_label: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class BatchImage:
    """One image to predict. `data` is None if the image is in the lake."""

    image_id: str
    source: str
    path: str | None = None
    data: bytes | None = None

    def size(self) -> int:
        return len(self.data or b"")


# Images ------------------------------------------------------------------------------------------------------


def files(folder: Path) -> Iterator[BatchImage | Unpredicted]:
    """Every image file under a folder (or that one file), read. Raises BadInput if there is none."""
    for item in sources.read(folder, sources.resolve(folder, "folder")):
        if item.passed_over is not None or item.note is not None:
            continue
        try:
            if item.path is None:
                raise BadInput(item.error or "it is not an image file")
            data = item_files.file_bytes(item.path)
        except (LakeloopError, OSError) as error:
            yield Unpredicted(item.source, error.strerror or str(error) if isinstance(error, OSError) else str(error))
        else:
            yield BatchImage(ids.image_id(data), item.source, printable(item.path.absolute()), data)


def stored(lake: Lake, *, slice: str | None = None, filter: str | None = None) -> list[BatchImage]:
    """The images of a slice, or those with a sample that passes a SQL filter. Raises BadInput."""
    if slice is not None:
        slice_ = slices.get(lake, slice)
        return [BatchImage(image_id, f"slice {slice_.id}") for image_id in slices.members(lake, slice_).to_pylist()]
    assert filter is not None
    return [BatchImage(image_id, f"where {filter}"[:200]) for image_id in where.images(lake, filter)]


# Predicting ---------------------------------------------------------------------------------------------------------


def run(
    lake: Lake,
    images: Iterable[BatchImage | Unpredicted],
    version: ServedVersion,
    predictor: Predictor,
    *,
    log: bool = False,
    out: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> PredictionReport:
    """Predicts the images, and logs the predictions to the lake (`log`) or writes them to the file `out`.

    The file appears only when it is complete. Raises BadInput unless `out` ends in .jsonl or .parquet.
    """
    report = PredictionReport(version.model, version.version, version.run)
    started = time.perf_counter()
    with _PredictionFile(out) as write:
        for part in grouped(images, _size, COMMIT_IMAGES, READ_BYTES):
            todo = {image.image_id: image for image in part if isinstance(image, BatchImage)}
            unpredicted = [image for image in part if isinstance(image, Unpredicted)]
            if log:
                keys = {version.prediction_id(image_id): image_id for image_id in todo}
                for key in lake.known("samples", "prediction_id", [*keys]):
                    del todo[keys[key]]
                    report.known += 1
            events: list[tuple[BatchImage, dict[str, Any]]] = []
            for result in _predictions(lake, predictor, [*todo.values()], workers):
                image = todo[result.image_id]
                if isinstance(result, Unpredicted):
                    unpredicted.append(Unpredicted(image.source, result.reason))
                    continue
                key_columns = {"prediction_id": version.prediction_id(result.image_id), "timestamp": store.now()}
                events.append((image, version.event(result) | key_columns))
                label = result.label if result.label is not None else "(none)"
                report.by_label[label] = report.by_label.get(label, 0) + 1
            report.rejected += [{"source": image.image_id, "reason": image.reason} for image in unpredicted]
            if log and events:
                ingested = ingest.ingest_items(lake, [_item(*event) for event in events], workers=workers)
                report.rejected += ingested.rejected
                report.predicted += ingested.predictions_new
                report.known += ingested.predictions_known
            else:
                report.predicted += len(events)
            if write is not None:
                write([_row(*event) for event in events])
            if progress is not None:
                progress(len(part))
    report.seconds = time.perf_counter() - started
    return report


def predict_images(
    lake: Lake, predictor: Predictor, image_ids: Sequence[str], workers: int | None = None
) -> Iterator[Prediction | Unpredicted]:
    """Predictions for images of the lake, in no particular order. A probe uses stored vectors where they exist, else
    the bytes of the images.
    """
    yield from _predictions(lake, predictor, [BatchImage(image_id, image_id) for image_id in image_ids], workers)


def _predictions(
    lake: Lake, predictor: Predictor, images: Sequence[BatchImage], workers: int | None
) -> Iterator[Prediction | Unpredicted]:
    remaining = {image.image_id: image for image in images}
    model = predictor.model
    if isinstance(model, ProbeModel):
        for prediction in model.predictions_of(lake, [image.image_id for image in images]):
            del remaining[prediction.image_id]
            yield prediction
    if not remaining:
        return
    count = workers or len(os.sched_getaffinity(0))
    missing: list[str] = []
    with WorkerPool(image_preparation.WORKER, min(count, len(remaining))) as pool:
        tasks = (
            (([*part], predictor.preparation, decode.MAX_MEGAPIXELS), [*part])
            for part in grouped(_bytes(lake, [*remaining.values()], missing), _length, TASK_IMAGES, TASK_BYTES)
        )
        for result, part in pool.map(tasks):
            prepared = _one_by_one(part, predictor.preparation) if isinstance(result, WorkerDied) else result
            readable, arrays = [], []
            for (image_id, *_), outcome in zip(part, prepared, strict=True):
                if isinstance(outcome, str):
                    yield Unpredicted(image_id, outcome)
                else:
                    readable.append(image_id)
                    arrays.append(outcome)
            for image_id, predicted in zip(readable, predictor.predictions(readable, arrays), strict=True):
                yield Unpredicted(image_id, predicted) if isinstance(predicted, str) else predicted
    for image_id in missing:
        yield Unpredicted(image_id, "the lake does not have its bytes")


def _bytes(lake: Lake, images: Sequence[BatchImage], missing: list[str]) -> Iterator[ImageFile]:
    """The files of all images that have bytes; the ids of the others are added to `missing`."""
    for start in range(0, len(images), READ_IMAGES):
        part = images[start : start + READ_IMAGES]
        loaded = {image.image_id: image.data for image in part if image.data is not None}
        yield from ((image_id, data, None) for image_id, data in loaded.items())
        wanted = [image.image_id for image in part if image.image_id not in loaded]
        stored_ids = set()
        for stored_image in blobs.images(lake, wanted) if wanted else ():
            stored_ids.add(stored_image.image_id)
            yield stored_image.image_id, stored_image.data, stored_image.levels
        missing += [image_id for image_id in wanted if image_id not in stored_ids]


def _one_by_one(
    part: Sequence[ImageFile], preparation: image_preparation.ImagePreparation
) -> list[image_preparation.PreparedImage | str]:
    """Prepares each file in its own call: one of them kills its decoder, and the others must not be lost with it."""
    results: list[image_preparation.PreparedImage | str] = []
    with WorkerPool(image_preparation.WORKER, 1) as pool:
        for file in part:
            result = pool.run([file], preparation, decode.MAX_MEGAPIXELS)
            results += [result.reason] if isinstance(result, WorkerDied) else result
    return results


def _length(file: ImageFile) -> int:
    return len(file[1])


def _size(image: BatchImage | Unpredicted) -> int:
    return image.size() if isinstance(image, BatchImage) else 0


# Writing ------------------------------------------------------------------------------------------------------------


def _item(image: BatchImage, event: dict[str, Any]) -> Item:
    """An item to ingest: the file with its prediction, or the prediction for an image of the lake."""
    if image.data is None:
        return Item(image.source, row=event | {"image_id": image.image_id})
    return Item(image.source, data=image.data, read_annotations=lambda width, height: Annotations(predictions=[event]))


def _row(image: BatchImage, event: dict[str, Any]) -> dict[str, Any]:
    """A row of a prediction log that `lakeloop ingest` accepts."""
    reference = {"image_id": image.image_id} if image.path is None else {"image": image.path}
    return reference | {"source": image.source} | event


class _PredictionFile:
    """A prediction log as a context manager. The file gets its name only if no error occurred."""

    def __init__(self, out: Path | None) -> None:
        if out is not None and out.suffix.lower() not in SUFFIXES:
            raise BadInput(f"--out {out}: the name must end in {' or '.join(SUFFIXES)}")
        if out is not None and not out.absolute().parent.is_dir():
            raise BadInput(f"--out {out}: there is no folder {out.absolute().parent}")
        self._out = out
        self._partial = None if out is None else out.with_name(f".{out.name}.{os.getpid()}.part")
        self._parquet: Any = None
        self._text: Any = None

    def __enter__(self) -> Callable[[list[dict[str, Any]]], None] | None:
        if self._out is None or self._partial is None:
            return None
        if self._out.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            self._parquet = pq.ParquetWriter(self._partial, LOG)
            return self._add_rows
        self._text = self._partial.open("w", encoding="utf-8")
        return self._add_lines

    def _add_rows(self, rows: list[dict[str, Any]]) -> None:
        encoded = [row | {"metadata": json.dumps(row["metadata"])} for row in rows]
        self._parquet.write_table(pa.Table.from_pylist(encoded, schema=LOG))

    def _add_lines(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            encoded = row | {"timestamp": row["timestamp"].isoformat()}
            self._text.write(json.dumps(encoded, ensure_ascii=False, allow_nan=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> Literal[False]:
        for writer in (self._parquet, self._text):
            if writer is not None:
                writer.close()
        if self._partial is not None and self._out is not None:
            if kind is None:
                self._partial.replace(self._out)
            else:
                self._partial.unlink(missing_ok=True)
        return False


# The columns of a prediction log: those of the table samples that a prediction fills, and the path of the image.
LOG = pa.schema(
    [
        ("image", pa.string()),
        *(
            pa.field(column.name, cast(pa.DataType, column.type))
            for column in schema.SAMPLES.columns
            if column.name not in ("ingested_at", "image_status", "image_share", "latency_ms")
        ),
    ]
)
