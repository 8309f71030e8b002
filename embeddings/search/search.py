"""Search by example: from an image, ids, text or a vector to the most similar distinct images, exactly.

Similarity is the cosine, -1 to 1, higher is more alike. A filter is applied before neighbours are chosen. An image
with several rows is one result: its newest row that passes the filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embeddings.embedders import embedder as embedders
from embeddings.embedders.engine import unit
from embeddings.embedders.preprocess import prepare
from lake.errors import BadInput
from lake.sql import where as filters
from lake.storage import schema
from lake.storage.store import literals
from lake.storage.vectors import dim_of, vector_of

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import EmbedderRecord, Lake

UNLIKE_WEIGHT = 0.2
RESULT_COLUMNS = ("prediction_id", "image_id", "label", "confidence", "source")


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
) -> pa.Table:
    """The k images most like the example, best first; fewer only when fewer pass the filter.

    Give exactly one of `image` (bytes or a file), `ids` (image or prediction ids; several are averaged), `text` or
    `vector` (any length, dim of the embedder). Beside `ids`, `unlike` are ids to keep away from: the mean of their
    vectors is taken off with a weight of a fifth (Rocchio's feedback with its usual 0.75 and 0.15; Manning, Raghavan,
    Schuetze: Introduction to Information Retrieval, 9.1); similarity is then to that direction. `embedder` names one of
    the lake's (default: its first); `model` is that embedder, loaded, for callers that search often. `columns` of
    predictions come beside the usual ones.
    Columns: prediction_id, image_id, similarity (double), label, confidence, source, then `columns`.
    Raises BadInput for bad arguments and for a lake whose vectors are still missing.
    """
    if sum((image is not None, len(ids) > 0, text is not None, vector is not None)) != 1:
        raise BadInput("search by exactly one of an image, ids, a text or a vector")
    if k < 1:
        raise BadInput(f"k is {k}; it must be at least 1")
    if unlike and not ids:
        raise BadInput("ids to be unlike need ids to be like")
    record = embedders.record_of(lake, embedder)
    dim = dim_of(record)
    if ids:
        query = mean_vector(lake, record, ids)
        if unlike:
            query = query - UNLIKE_WEIGHT * mean_vector(lake, record, unlike)
    elif vector is not None:
        query = np.asarray(vector, np.float32)
        if query.shape != (dim,):
            raise BadInput(f"the vector has shape {query.shape}; {record.name} has dim {dim}")
    else:
        model = model or embedders.for_lake(lake, record)
        query = _embed(model, image, text)
    query = unit(query[None, :])[0]
    if not np.isfinite(query).all():
        raise BadInput("the example's vector is zero or not finite; it points nowhere")
    return nearest(lake, record, query, k, where, columns)


def mean_vector(lake: Lake, record: EmbedderRecord, ids: Sequence[str]) -> np.ndarray:
    """Mean vector of image or prediction ids, float32 (dim,). Raises BadInput if an id has no vector."""
    vectors: np.ndarray = np.stack([vector_of(lake, record, identifier) for identifier in ids])
    mean: np.ndarray = vectors.mean(axis=0)
    return mean


def nearest(
    lake: Lake, record: EmbedderRecord, query: np.ndarray, k: int, where: str | None, columns: Sequence[str]
) -> pa.Table:
    """The k distinct images nearest to a unit vector. See `search`."""
    wanted = _columns(lake, columns)
    condition, passing = None, None
    if where:
        checked = filters.check(lake, where)
        condition = checked.lance
        if condition is None:
            passing = set(filters.row_ids(lake, checked))
            condition = f"_rowid IN ({','.join(map(str, passing)) or 'NULL'})"
    scores = _best_images(lake, record, query, k, condition)
    rows = _newest_rows(lake, list(scores), condition if passing is None else None, passing, wanted)
    ordered = [rows[i] for i in scores if i in rows]
    kinds = lake.dataset("predictions").schema
    out = {name: pa.array([r[name] for r in ordered], kinds.field(name).type) for name in wanted}
    similarity = pa.array([scores[r["image_id"]] for r in ordered], pa.float64())
    names = ["prediction_id", "image_id", "similarity", *[n for n in wanted if n not in RESULT_COLUMNS[:2]]]
    return pa.table({n: similarity if n == "similarity" else out[n] for n in names})


def _best_images(
    lake: Lake, record: EmbedderRecord, query: np.ndarray, k: int, condition: str | None
) -> dict[str, float]:
    """image_id -> cosine of the k best images, best first. Looks further while rows repeat images.

    Rows without a vector are no candidates: Lance leaves them out.
    """
    search = lake.searchable("predictions").search(query, vector_column_name=record.column)
    search = search.distance_type("cosine").bypass_vector_index().select(["image_id", "_distance"])
    if condition is not None:
        search = search.where(condition)
    ask = k
    while True:
        found = search.limit(ask).to_arrow()
        best: dict[str, float] = {}
        for name, distance in zip(found["image_id"].to_pylist(), found["_distance"].to_pylist(), strict=True):
            best.setdefault(name, 1.0 - distance)
        if len(best) >= k or found.num_rows < ask:
            return dict(list(best.items())[:k])
        # Exactly as many more as the share of repeats seen so far asks for, and at least twice.
        ask = max(2 * ask, ask * k // max(1, len(best)))


def _newest_rows(
    lake: Lake, images: list[str], condition: str | None, passing: set[int] | None, wanted: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """image_id -> its newest row that passes; rows without a timestamp are older than any with one.

    What passes is said by a Lance filter or by a set of row ids.
    """
    read = list(dict.fromkeys([*wanted, "timestamp", "ingested_at"]))
    dataset = lake.dataset("predictions")
    newest: dict[str, dict[str, Any]] = {}
    for start in range(0, len(images), 1_000):
        filter = f"image_id IN ({literals(images[start : start + 1_000])})" + (f" AND {condition}" if condition else "")
        for row in dataset.scanner(columns=read, filter=filter, with_row_id=True).to_table().to_pylist():
            if passing is not None and row["_rowid"] not in passing:
                continue
            held = newest.get(row["image_id"])
            if held is None or _age(row) > _age(held):
                newest[row["image_id"]] = row
    return newest


def _age(row: dict[str, Any]) -> tuple[bool, Any, Any, str]:
    stamp = row["timestamp"]
    return stamp is not None, stamp or row["ingested_at"], row["ingested_at"], row["prediction_id"]


def _columns(lake: Lake, extra: Sequence[str]) -> list[str]:
    present = [n for n in lake.dataset("predictions").schema.names if not n.startswith(schema.VECTOR_PREFIX)]
    for name in extra:
        if name not in present:
            raise BadInput(f"predictions has no column {name!r}; it has {', '.join(present)}")
    return list(dict.fromkeys([*RESULT_COLUMNS, *extra]))


def _embed(model: Embedder, image: bytes | str | Path | None, text: str | None) -> np.ndarray:
    if text is not None:
        if not isinstance(model, embedders.TextEmbedder):
            raise BadInput(f"{model.spec.name} embeds images only; text needs a CLIP embedder, e.g. clip-vit-b-32")
        if not text.strip():
            raise BadInput("the text is empty")
        vector: np.ndarray = model.embed_texts([text])[0]
        return vector
    if isinstance(image, str | Path):
        try:
            image = Path(image).read_bytes()
        except OSError as error:
            raise BadInput(f"{error.filename}: {error.strerror}") from error
    assert image is not None
    out = model.embed_batch([prepare(image, model.spec.preprocessing)])
    if not len(out.kept):
        raise BadInput("the network gave no finite vector for this image")
    embedded: np.ndarray = out.vectors[0]
    return embedded
