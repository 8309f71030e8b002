"""Vectors of images, read from their columns into numpy matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lake import ids
from lake.errors import BadInput
from lake.storage.store import literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lake.storage.store import EmbedderRecord, Lake


BATCH_ROWS = 8_192


def vector_of(lake: Lake, record: EmbedderRecord, identifier: str, version: int | None = None) -> np.ndarray:
    """The vector of an image_id or prediction_id, float32 (dim,), length 1; at `version` of samples (None: newest).

    Raises BadInput if the lake does not have the id, or no vector for it yet.
    """
    key = "image_id" if ids.kind(identifier) == "image" else "prediction_id"
    value = identifier if key == "image_id" else str(ids.as_uuid(identifier))
    rows = lake.dataset("samples", version).to_table(
        columns=[record.column], filter=f"{key} = {literal(value)} and {record.column} is not null", limit=1
    )
    if not rows.num_rows:
        if not lake.known("samples", key, [value]):
            raise BadInput(f"the lake has no {key} {identifier}")
        raise BadInput(f"{identifier} has no {record.name} vector yet; run: lakeloop embed --embedder {record.name}")
    return np.asarray(rows[record.column][0].as_py(), np.float32)


def image_vectors(
    lake: Lake, record: EmbedderRecord, image_ids: Sequence[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Distinct image_ids, sorted, and their vectors, float32 (n, dim), in the same order.

    Only images in `image_ids`; None: all. Images without a vector are left out. Raises BadInput if the lake has no
    vectors of this embedder yet.
    """
    dim = record.require_dim()
    rows = lake.scan("samples", ["image_id", record.column], f"{record.column} is not null")
    names = np.asarray(rows["image_id"].to_pylist(), dtype=str)
    distinct, first = np.unique(names, return_index=True)
    if image_ids is not None:
        wanted = np.isin(distinct, np.asarray(image_ids, dtype=str))
        distinct, first = distinct[wanted], first[wanted]
    return distinct.tolist(), to_matrix(rows[record.column], dim)[first]


def vector_batches(
    lake: Lake, record: EmbedderRecord, image_ids: Sequence[str] | None = None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Like `image_vectors`, in batches of at most BATCH_ROWS images, in no particular order.

    For callers that do not need all vectors at once: a million vectors are gigabytes.
    """
    dim = record.require_dim()
    wanted = None if image_ids is None else set(image_ids)
    seen: set[str] = set()
    batches = lake.dataset("samples").to_batches(
        columns=["image_id", record.column], filter=f"{record.column} is not null", batch_size=BATCH_ROWS
    )
    for batch in batches:
        rows: list[int] = []
        names: list[str] = []
        for row, name in enumerate(batch["image_id"].to_pylist()):
            if name not in seen and (wanted is None or name in wanted):
                seen.add(name)
                rows.append(row)
                names.append(name)
        if names:
            matrix = np.asarray(batch[record.column].flatten()).reshape(-1, dim)
            yield names, matrix[rows]


def to_matrix(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    """A vector column without nulls as float32 (n, dim)."""
    return np.asarray(column.combine_chunks().flatten()).reshape(-1, dim)


def to_column(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """The rows of a matrix (n, dim) as a vector column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def full_id(lake: Lake, word: str) -> str:
    """The image_id or prediction_id that `word` is, or that alone begins with it: 6 digits at least.

    A full id is returned as it is. Raises BadInput, and names some ids if several begin so.
    """
    if ids.is_image_id(word) or ids.as_uuid(word) is not None:
        return word
    if not ids.is_beginning(word.lower()):
        forms = "an image_id (64 hex digits) or a prediction_id (UUID), or at least the first 6 digits of one"
        raise BadInput(f"{word!r} is not an id; expected {forms}")
    start = word.lower()
    found: set[str] = set()
    for key in ("image_id", "prediction_id"):
        rows = lake.scan("samples", [key], f"{key} >= '{start}' AND {key} < '{start}g'")
        found |= set(rows[key].to_pylist())
    if not found:
        raise BadInput(f"no image_id or prediction_id begins with {word!r}")
    if len(found) > 1:
        some = ", ".join(sorted(found)[:4]) + (", ..." if len(found) > 4 else "")
        raise BadInput(f"{len(found):,} ids begin with {word!r}: {some}; give more digits")
    return found.pop()
