"""Filling vector columns: asks the lake what is missing, so every run is a resume and a new embedder is one more run.

Images are decoded in worker processes while the network computes; vectors are committed every few thousand images as
one column file a fragment, which coexists with appends. A repeated image gets a copy of its vector. A second pass
over a failed image is made by the next run: nothing marks it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.embedder import Embedder, bind
from embeddings.preprocess import Prepared
from embeddings.vectors import dim_of, to_column, to_matrix
from lake.workers import WorkerDied, WorkerPool, grouped

if TYPE_CHECKING:
    from pathlib import Path

    from lake.store import EmbedderRecord, Lake

# Images between commits: about a minute of work on two cores is the most a kill can lose.
COMMIT_IMAGES = 4_096
# What a worker prepares at a time, and what is read from storage together: images, and at most so many bytes.
TASK_IMAGES = 16
TASK_BYTES = 8 << 20
READ_IMAGES = 128
READ_BYTES = 64 << 20


@dataclass
class Report:
    """`embedded` counts forward passes and copies, one a distinct image; `failed` images have no vector."""

    embedder: str
    embedded: int = 0
    failed: int = 0
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
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Gives every row of predictions that lacks one a vector of this embedder.

    `file` is where the embedder's weights came from, when from a file. `progress` is called with the number of
    images just done. An interrupt loses at most the images since the last commit.
    """
    report = Report(record.name)
    started = time.perf_counter()
    record = bind(lake, record, embedder, file)
    missing = _missing(lake, record.column)
    copied = _copy_known(lake, record, missing)
    todo = [i for i in missing if i not in copied]
    done: dict[str, np.ndarray] = {}
    said = progress or (lambda n: None)
    said(len(copied))
    if todo:
        count = workers or len(os.sched_getaffinity(0))
        with WorkerPool("embeddings.preprocess:prepare_many", count) as pool:
            tasks = _tasks(lake, todo, embedder, report)
            for prepared, names in _whole(pool.map(tasks), embedder):
                kept = [names[i] for i in prepared.kept]
                said(len(names))
                report.reasons |= {names[i]: reason for i, reason in prepared.reasons.items()}
                if not kept:
                    continue
                out = embedder.embed_batch(prepared.images)  # type: ignore[arg-type]
                done.update(zip((kept[i] for i in out.kept.tolist()), out.vectors, strict=True))
                survivors = set(out.kept.tolist())
                report.reasons |= {
                    name: "the network gave no finite vector" for i, name in enumerate(kept) if i not in survivors
                }
                if len(done) >= COMMIT_IMAGES:
                    report.embedded += store_vectors(lake, record.column, done)
                    done = {}
        report.embedded += store_vectors(lake, record.column, done)
    report.embedded += len(copied)
    report.failed = len(report.reasons)
    report.seconds = time.perf_counter() - started
    report.images_per_second = report.embedded / report.seconds
    return report


def store_vectors(lake: Lake, column: str, vectors: Mapping[str, np.ndarray]) -> int:
    """Writes vectors, by image_id, into every row that lacks one; returns the number of distinct images that got one.

    The vectors may come from anywhere (a serving process has them already), but they must be the embedder's own:
    float32, its dim, unit length. One commit; on a conflict with another writer it looks again and repeats.
    """
    import lance

    if not vectors:
        return 0
    names = pa.array(list(vectors), pa.string())
    matrix = np.stack(list(vectors.values())).astype(np.float32, copy=False)

    def write() -> int:
        dataset = lake.dataset("predictions")
        rows = dataset.scanner(
            columns=["image_id"], filter=f"{column} is null", with_row_id=True, with_row_address=True
        ).to_table()
        place = pc.index_in(rows["image_id"], names)
        rows = rows.append_column("place", place).filter(pc.is_valid(place))
        if not rows.num_rows:
            return 0
        fragments = np.asarray(rows["_rowaddr"]) >> 32
        changed: list[Any] = []
        modified: Any = []
        for fragment in np.unique(fragments).tolist():
            part = rows.filter(pa.array(fragments == fragment))
            patch = pa.table({"_rowid": part["_rowid"], column: to_column(matrix[np.asarray(part["place"])])})
            meta, modified = dataset.get_fragment(fragment).update_columns(patch, left_on="_rowid")
            changed.append(meta)
        operation = lance.LanceOperation.Update(
            updated_fragments=changed, fields_modified=modified, update_mode="rewrite_columns"
        )
        lance.LanceDataset.commit(
            dataset.uri, operation, read_version=dataset.version, storage_options=lake.storage_options
        )
        return len(pc.unique(rows["image_id"]))

    return lake.commit("predictions", write)


def _missing(lake: Lake, column: str) -> list[str]:
    """Distinct images with a row that has no vector, in order of arrival."""
    found = lake.scan("predictions", ["image_id"], f"{column} is null")["image_id"]
    return list(dict.fromkeys(found.to_pylist()))


def _copy_known(lake: Lake, record: EmbedderRecord, missing: list[str]) -> set[str]:
    """Images asked about again: their other rows have the vector already."""
    copied: set[str] = set()
    columns, embedded = ["image_id", record.column], f"{record.column} is not null"
    # Part by part: the vectors of all that is known need not fit in memory.
    for start in range(0, len(missing), COMMIT_IMAGES):
        known = lake.look_up("predictions", columns, "image_id", missing[start : start + COMMIT_IMAGES], embedded)
        if known.num_rows:
            vectors = to_matrix(known[record.column], dim_of(record))
            found = dict(zip(known["image_id"].to_pylist(), vectors, strict=True))
            store_vectors(lake, record.column, found)
            copied |= found.keys()
    return copied


def _tasks(
    lake: Lake, todo: list[str], embedder: Embedder, report: Report
) -> Iterator[tuple[tuple[list[bytes], Any], tuple[list[str], list[bytes]]]]:
    for start in range(0, len(todo), COMMIT_IMAGES):
        names = todo[start : start + COMMIT_IMAGES]
        sizes = _sizes(lake, names)
        report.reasons |= {n: "its bytes are not in the lake" for n in names if n not in sizes}
        for together in grouped((n for n in names if n in sizes), sizes.__getitem__, READ_IMAGES, READ_BYTES):
            stored = {image.image_id: image.data for image in lake.images(together)}
            for part in grouped(together, sizes.__getitem__, TASK_IMAGES, TASK_BYTES):
                files = [stored[n] for n in part]
                yield (files, embedder.spec.preprocessing), (part, files)


def _sizes(lake: Lake, names: list[str]) -> dict[str, int]:
    """image_id -> bytes, of those the lake has."""
    found = lake.look_up("images", ["image_id", "size_bytes"], "image_id", names)
    return dict(zip(found["image_id"].to_pylist(), found["size_bytes"].to_pylist(), strict=True))


def _whole(
    results: Iterator[tuple[Any, tuple[list[str], list[bytes]]]], embedder: Embedder
) -> Iterator[tuple[Prepared, list[str]]]:
    """Results of the pool; after a worker's death its images are prepared one at a time, to find the culprit."""
    for result, (names, files) in results:
        yield _one_by_one(files, embedder) if isinstance(result, WorkerDied) else result, names


def _one_by_one(files: list[bytes], embedder: Embedder) -> Prepared:
    images: list[np.ndarray] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    with WorkerPool("embeddings.preprocess:prepare_many", 1) as careful:
        for index, data in enumerate(files):
            alone = careful.run([data], embedder.spec.preprocessing)
            if isinstance(alone, WorkerDied):
                reasons[index] = alone.reason
            elif alone.kept:
                images.append(alone.images[0])
                kept.append(index)
            else:
                reasons[index] = alone.reasons[0]
    return Prepared(images, kept, reasons)
