"""A model version's answers in batches: to files of a folder, or to images of the lake; logged, or written to a file.

Files are decoded in worker processes, as everywhere. Logged answers take the one way in (`lake/ingest/ingest.py`),
under ids
that follow from run and image: doing it again, or going on after a kill, asks the model only what is not answered.
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
from lake.images.workers import WorkerDied, WorkerPool, grouped
from lake.ingest import ingest, sources
from lake.sql import where
from lake.storage import blobs, schema, store
from training.inference import image_preparation
from training.inference.served_model import Answering, Source
from training.models.trained_model import ProbeModel
from training.tasks.task import Prediction

if TYPE_CHECKING:
    from lake.storage.store import Lake

# Answers that are lost when it is stopped, at most, and what is read together.
COMMIT_IMAGES = 1_024
READ_IMAGES, READ_BYTES = 128, 192 << 20
# One task of a worker.
TASK_IMAGES, TASK_BYTES = 16, 8 << 20
SUFFIXES = (".jsonl", ".parquet")

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Unanswered:
    """An image that the model could not be asked about, and why."""

    image_id: str
    reason: str


@dataclass
class Report:
    """`answered` now; `known`: this run's answers to them are in the lake already; `by_label`: of what was answered
    now; `rejected`: source and reason.
    """

    model: str
    version: int
    run: str
    answered: int = 0
    known: int = 0
    by_label: dict[str, int] = field(default_factory=dict)
    rejected: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Asked:
    """One image to be answered. `data` None: it is in the lake."""

    image_id: str
    source: str
    path: str | None = None
    data: bytes | None = None

    def size(self) -> int:
        return len(self.data or b"")


# What is asked ------------------------------------------------------------------------------------------------------


def files(folder: Path) -> Iterator[_Asked | Unanswered]:
    """Every image file under a folder (or that one file), read. Raises BadInput when there is none such."""
    for item in sources.read(folder, sources.resolve(folder, "folder")):
        try:
            if item.path is None:
                raise BadInput(item.error or "it is no image file")
            data = ingest.file_bytes(item.path)
        except (LakeloopError, OSError) as error:
            yield Unanswered(item.source, error.strerror or str(error) if isinstance(error, OSError) else str(error))
        else:
            yield _Asked(ids.image_id(data), item.source, printable(item.path.absolute()), data)


def stored(lake: Lake, *, slice: str | None = None, filter: str | None = None) -> list[_Asked]:
    """The images of a slice, or those with a row of predictions that passes an SQL filter. Raises BadInput."""
    if slice is not None:
        made = slices.get(lake, slice)
        return [_Asked(name, f"slice {made.id}") for name in slices.members(lake, made).to_pylist()]
    assert filter is not None
    return [_Asked(name, f"where {filter}"[:200]) for name in where.images(lake, filter)]


# Answering ----------------------------------------------------------------------------------------------------------


def run(
    lake: Lake,
    asked: Iterable[_Asked | Unanswered],
    who: Source,
    answering: Answering,
    *,
    log: bool = False,
    out: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Has the version answer, and logs the answers to the lake or writes them to `out`, whole or not at all.

    Raises BadInput when `out` is neither .jsonl nor .parquet.
    """
    report, tell = Report(who.model, who.version, who.run), progress or (lambda n: None)
    started = time.perf_counter()
    with _writer(out) as write:
        for part in grouped(asked, _size, COMMIT_IMAGES, READ_BYTES):
            todo = {one.image_id: one for one in part if isinstance(one, _Asked)}
            refused = [one for one in part if isinstance(one, Unanswered)]
            if log:
                keys = {who.prediction_id(name): name for name in todo}
                for key in lake.known("predictions", "prediction_id", [*keys]):
                    del todo[keys[key]]
                    report.known += 1
            found: list[tuple[_Asked, dict[str, Any]]] = []
            for said in _answers(lake, answering, [*todo.values()], workers):
                if isinstance(said, Unanswered):
                    refused.append(Unanswered(todo[said.image_id].source, said.reason))
                    continue
                event = who.event(said) | {"prediction_id": who.prediction_id(said.image_id), "timestamp": store.now()}
                found.append((todo[said.image_id], event))
                label = said.label if said.label is not None else "(none)"
                report.by_label[label] = report.by_label.get(label, 0) + 1
            report.rejected += [{"source": one.image_id, "reason": one.reason} for one in refused]
            if log and found:
                done = ingest.ingest_items(lake, [_item(*one) for one in found], workers=workers)
                report.rejected += done.rejected
                report.answered += done.predictions_new
                report.known += done.predictions_known
            else:
                report.answered += len(found)
            if write is not None:
                write([_row(*one) for one in found])
            tell(len(part))
    report.seconds = time.perf_counter() - started
    return report


def of_images(
    lake: Lake, answering: Answering, image_ids: Sequence[str], workers: int | None = None
) -> Iterator[Prediction | Unanswered]:
    """Answers to images of the lake, in no particular order: from stored vectors where a probe finds them, else from
    the images' bytes.
    """
    yield from _answers(lake, answering, [_Asked(name, name) for name in image_ids], workers)


def _answers(
    lake: Lake, answering: Answering, asked: Sequence[_Asked], workers: int | None
) -> Iterator[Prediction | Unanswered]:
    waiting = {one.image_id: one for one in asked}
    model = answering.model
    if isinstance(model, ProbeModel):
        for known in model.predictions_of(lake, [one.image_id for one in asked]):
            del waiting[known.image_id]
            yield known
    if not waiting:
        return
    count = workers or len(os.sched_getaffinity(0))
    missing: list[str] = []
    with WorkerPool(image_preparation.WORKER, min(count, len(waiting))) as pool:
        tasks = (
            (([*part], answering.how), [*part])
            for part in grouped(_bytes(lake, [*waiting.values()], missing), _length, TASK_IMAGES, TASK_BYTES)
        )
        for result, part in pool.map(tasks):
            prepared = _one_by_one(part, answering.how) if isinstance(result, WorkerDied) else result
            good = [(name, one) for (name, _), one in zip(part, prepared, strict=True) if not isinstance(one, str)]
            said = answering.predictions([name for name, _ in good], [one for _, one in good])
            for (name, _), answer in zip(good, said, strict=True):
                yield Unanswered(name, answer) if isinstance(answer, str) else answer
            for (name, _), one in zip(part, prepared, strict=True):
                if isinstance(one, str):
                    yield Unanswered(name, one)
    for name in missing:
        yield Unanswered(name, "the lake does not hold its bytes")


def _bytes(lake: Lake, asked: Sequence[_Asked], missing: list[str]) -> Iterator[tuple[str, bytes]]:
    """(image_id, file) of all that have one; the ids of the others go to `missing`."""
    for start in range(0, len(asked), READ_IMAGES):
        part = asked[start : start + READ_IMAGES]
        there = {one.image_id: one.data for one in part if one.data is not None}
        yield from there.items()
        wanted = [one.image_id for one in part if one.image_id not in there]
        found = set()
        for image in blobs.images(lake, wanted) if wanted else ():
            found.add(image.image_id)
            yield image.image_id, image.data
        missing += [name for name in wanted if name not in found]


def _one_by_one(
    part: Sequence[tuple[str, bytes]], how: image_preparation.How
) -> list[image_preparation.Prepared | str]:
    """One of these kills its decoder: the others are not to suffer for it."""
    found: list[image_preparation.Prepared | str] = []
    with WorkerPool(image_preparation.WORKER, 1) as alone:
        for one in part:
            result = alone.run([one], how)
            found += [result.reason] if isinstance(result, WorkerDied) else result
    return found


def _length(file: tuple[str, bytes]) -> int:
    return len(file[1])


def _size(one: _Asked | Unanswered) -> int:
    return one.size() if isinstance(one, _Asked) else 0


# Writing ------------------------------------------------------------------------------------------------------------


def _item(asked: _Asked, event: dict[str, Any]) -> Item:
    """For the one way in: the file with its answer, or the answer to an image that is there."""
    if asked.data is None:
        return Item(asked.source, row=event | {"image_id": asked.image_id})
    return Item(asked.source, data=asked.data, read_annotations=lambda width, height: Annotations(predictions=[event]))


def _row(asked: _Asked, event: dict[str, Any]) -> dict[str, Any]:
    """A row of a prediction log, as `lakeloop ingest` takes it."""
    place = {"image_id": asked.image_id} if asked.path is None else {"image": asked.path}
    return place | {"source": asked.source} | event


class _writer:
    """A file of answers as a context manager: what was written is there under its name when all went well."""

    def __init__(self, out: Path | None) -> None:
        if out is not None and out.suffix.lower() not in SUFFIXES:
            raise BadInput(f"--out {out}: give a name that ends in {' or '.join(SUFFIXES)}")
        if out is not None and not out.absolute().parent.is_dir():
            raise BadInput(f"--out {out}: there is no folder {out.absolute().parent}")
        self._out = out
        self._half = None if out is None else out.with_name(f".{out.name}.{os.getpid()}.part")
        self._parquet: Any = None
        self._text: Any = None

    def __enter__(self) -> Callable[[list[dict[str, Any]]], None] | None:
        if self._out is None or self._half is None:
            return None
        if self._out.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            self._parquet = pq.ParquetWriter(self._half, LOG)
            return self._add_rows
        self._text = self._half.open("w", encoding="utf-8")
        return self._add_lines

    def _add_rows(self, rows: list[dict[str, Any]]) -> None:
        said = [row | {"metadata": json.dumps(row["metadata"])} for row in rows]
        self._parquet.write_table(pa.Table.from_pylist(said, schema=LOG))

    def _add_lines(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            plain = row | {"timestamp": row["timestamp"].isoformat()}
            self._text.write(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> Literal[False]:
        for one in (self._parquet, self._text):
            if one is not None:
                one.close()
        if self._half is not None and self._out is not None:
            if kind is None:
                self._half.replace(self._out)
            else:
                self._half.unlink(missing_ok=True)
        return False


# The columns of a file of answers: those of predictions that an answer fills, and the image's path.
LOG = pa.schema(
    [
        ("image", pa.string()),
        *(
            pa.field(one.name, cast(pa.DataType, one.type))
            for one in schema.PREDICTIONS.columns
            if one.name not in ("ingested_at", "image_status", "image_share", "latency_ms")
        ),
    ]
)
