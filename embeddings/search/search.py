"""Exact search by example: from an image, ids, a text or a vector to the most similar distinct images.

Similarity is the cosine, -1 to 1, higher is more similar. A filter applies before neighbours are chosen. An image with
several predictions is one result, shown with its newest prediction that passes the filter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embeddings.embedders import embedder as embedders
from embeddings.embedders.checked_batch import embed_checked
from embeddings.embedders.engine import unit
from embeddings.embedders.preprocess import prepare
from lake.errors import BadInput
from lake.ids import image_id
from lake.images.image_header import pixel_type
from lake.images.levels import Levels
from lake.sql import where as filters
from lake.storage import blobs, schema
from lake.storage.store import literals
from lake.storage.vectors import vector_of

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import EmbedderRecord, Lake

UNLIKE_WEIGHT = 0.2
# Rows read for a stable order of images that are equally similar, such as the black frames of a covered lens.
MOST_TIES = 10_000
RESULT_COLUMNS = ("prediction_id", "image_id", "label", "confidence", "source")


def _unhindered() -> None:
    """Of a search that nobody stops."""


def search(
    lake: Lake,
    *,
    image: bytes | str | Path | None = None,
    ids: Sequence[str] = (),
    unlike: Sequence[str] = (),
    text: str | None = None,
    vector: np.ndarray | None = None,
    embedder: str | None = None,
    model: Embedder | None = None,
    k: int = 20,
    where: str | None = None,
    columns: Sequence[str] = (),
    go_on: Callable[[], None] = _unhindered,
) -> pa.Table:
    """The k images most similar to the example, the most similar first; fewer only if fewer pass the filter.

    Give exactly one of `image` (bytes or a file), `ids` (image or prediction ids; several are averaged), `text` or
    `vector` (any length, the embedder's dim). With `ids`, `unlike` are ids to move away from: the mean of their
    vectors is subtracted with a weight of a fifth (Rocchio's feedback with its usual 0.75 and 0.15; Manning, Raghavan,
    Schuetze: Introduction to Information Retrieval, 9.1); similarity is then to that direction. `embedder` names an
    embedder of the lake (default: its first); `model` is that embedder, loaded, for callers that search often. `go_on`
    is called between steps of at most a second or so, and ends the search by raising.
    Columns: prediction_id, image_id, similarity (double), label, confidence, source, then `columns` of samples.
    Raises BadInput for bad arguments, and if the lake has no vectors yet.
    """
    if sum((image is not None, len(ids) > 0, text is not None, vector is not None)) != 1:
        raise BadInput("give exactly one of an image, ids, a text or a vector to search by")
    if k < 1:
        raise BadInput(f"k is {k}; it must be at least 1")
    if unlike and not ids:
        raise BadInput("unlike needs ids: give the ids to search by, too")
    record = embedders.record_of(lake, embedder)
    dim = record.require_dim()
    if ids:
        query = mean_vector(lake, record, ids, go_on)
        if unlike:
            query = query - UNLIKE_WEIGHT * mean_vector(lake, record, unlike, go_on)
    elif vector is not None:
        query = np.asarray(vector, np.float32)
        if query.shape != (dim,):
            raise BadInput(f"the vector has shape {query.shape}; {record.name} has dim {dim}")
    else:
        model = model or embedders.for_lake(lake, record)
        query = _embed(lake, model, image, text)
    query = unit(query[None, :])[0]
    if not np.isfinite(query).all():
        raise BadInput("the example's vector is zero or not finite, so it has no direction to search in")
    return nearest_images(lake, record, query, k, where, columns, go_on)


def mean_vector(
    lake: Lake, record: EmbedderRecord, ids: Sequence[str], go_on: Callable[[], None] = _unhindered
) -> np.ndarray:
    """Mean vector of image or prediction ids, float32 (dim,). Raises BadInput if an id has no vector."""
    vectors = []
    for identifier in ids:
        go_on()
        vectors.append(vector_of(lake, record, identifier))
    mean: np.ndarray = np.stack(vectors).mean(axis=0)
    return mean


def nearest_images(
    lake: Lake,
    record: EmbedderRecord,
    query: np.ndarray,
    k: int,
    where: str | None,
    columns: Sequence[str],
    go_on: Callable[[], None] = _unhindered,
) -> pa.Table:
    """The k distinct images nearest to a unit vector, as `search` returns them."""
    columns_read = _columns(lake, columns)
    condition, passing = None, None
    if where:
        filter_ = filters.check(lake, where)
        condition = filter_.lance
        if condition is None:
            passing = set(filters.row_ids(lake, filter_))
            condition = f"_rowid IN ({','.join(map(str, passing)) or 'NULL'})"
    cosines = _best_images(lake, record, query, k, condition, go_on)
    rows = _newest_rows(lake, list(cosines), condition if passing is None else None, passing, columns_read, go_on)
    ordered = [rows[i] for i in cosines if i in rows]
    fields = lake.dataset("samples").schema
    values = {name: pa.array([r[name] for r in ordered], fields.field(name).type) for name in columns_read}
    similarity = pa.array([cosines[r["image_id"]] for r in ordered], pa.float64())
    names = ["prediction_id", "image_id", "similarity", *[n for n in columns_read if n not in RESULT_COLUMNS[:2]]]
    return pa.table({n: similarity if n == "similarity" else values[n] for n in names})


def _best_images(
    lake: Lake, record: EmbedderRecord, query: np.ndarray, k: int, condition: str | None, go_on: Callable[[], None]
) -> dict[str, float]:
    """image_id -> cosine of the k best images, best first; equally similar ones in the order of their ids.

    Reads more rows while rows repeat images, and while more rows may be as similar as the k-th image (up to MOST_TIES).
    Lance leaves out rows without a vector.
    """
    query_builder = lake.searchable("samples").search(query, vector_column_name=record.column)
    query_builder = query_builder.distance_type("cosine").bypass_vector_index().select(["image_id", "_distance"])
    if condition is not None:
        query_builder = query_builder.where(condition)
    limit = 2 * k + 16
    while True:
        go_on()
        rows = query_builder.limit(limit).to_arrow()
        distances = rows["_distance"].to_pylist()
        best: dict[str, float] = {}
        for name, distance in zip(rows["image_id"].to_pylist(), distances, strict=True):
            best.setdefault(name, distance)
        ordered = sorted(best.items(), key=lambda pair: (pair[1], pair[0]))[:k]
        # Of rows that are equally far, Lance returns any.
        has_all_ties = len(ordered) == k and (distances[-1] > ordered[-1][1] or limit > k + MOST_TIES)
        if has_all_ties or rows.num_rows < limit:
            return {name: 1.0 - distance for name, distance in ordered}
        # As many as the share of repeats so far suggests, and at least twice as many.
        limit = max(2 * limit, limit * k // max(1, len(best)))


def _newest_rows(
    lake: Lake,
    images: list[str],
    condition: str | None,
    passing: set[int] | None,
    columns: Sequence[str],
    go_on: Callable[[], None],
) -> dict[str, dict[str, Any]]:
    """image_id -> its newest row that passes; rows without a timestamp are older than any with one.

    A row passes by the Lance filter `condition`, or if its row id is in `passing`.
    """
    columns_read = list(dict.fromkeys([*columns, "timestamp", "ingested_at"]))
    dataset = lake.dataset("samples")
    newest: dict[str, dict[str, Any]] = {}
    for start in range(0, len(images), 1_000):
        go_on()
        filter = f"image_id IN ({literals(images[start : start + 1_000])})" + (f" AND {condition}" if condition else "")
        for row in dataset.scanner(columns=columns_read, filter=filter, with_row_id=True).to_table().to_pylist():
            if passing is not None and row["_rowid"] not in passing:
                continue
            known = newest.get(row["image_id"])
            if known is None or _age(row) > _age(known):
                newest[row["image_id"]] = row
    return newest


def _age(row: dict[str, Any]) -> tuple[bool, Any, Any, str]:
    stamp = row["timestamp"]
    return stamp is not None, stamp or row["ingested_at"], row["ingested_at"], row["prediction_id"]


def _columns(lake: Lake, extra: Sequence[str]) -> list[str]:
    present = [n for n in lake.dataset("samples").schema.names if not n.startswith(schema.VECTOR_PREFIX)]
    for name in extra:
        if name not in present:
            raise BadInput(f"samples has no column {name!r}; it has {', '.join(present)}")
    return list(dict.fromkeys([*RESULT_COLUMNS, *extra]))


def _embed(lake: Lake, model: Embedder, image: bytes | str | Path | None, text: str | None) -> np.ndarray:
    if text is not None:
        if not isinstance(model, embedders.TextEmbedder):
            raise BadInput(f"{model.spec.name} embeds images only; text needs a CLIP embedder, e.g. clip-vit-b-32")
        if not text.strip():
            raise BadInput("the text is empty")
        vector: np.ndarray = model.embed_texts([text])[0]
        return vector
    if isinstance(image, str | Path):
        if (path := Path(image)).exists() and not path.is_file():
            raise BadInput(f"{image} is not a regular file: a pipe or a device may never end; save the image first")
        try:
            image = path.read_bytes()
        except OSError as error:
            raise BadInput(f"{error.filename}: {error.strerror}") from error
    assert image is not None
    batch = embed_checked(model, [prepare(image, model.spec.preprocessing, levels=_recorded_levels(lake, image))])
    if not batch.kept:
        raise BadInput(f"{batch.reasons[0]}, for this image")
    embedded: np.ndarray = batch.vectors[0]
    return embedded


def _recorded_levels(lake: Lake, image: bytes) -> Levels | None:
    """Black and white of a file of more than 8 bits that the lake has."""
    if pixel_type(image) is None:
        return None
    rows = lake.look_up("images", ["black", "white"], "image_id", [image_id(image)]).to_pylist()
    return blobs.levels_in(rows[0]) if rows else None
