"""Vectors between Lance's columns and numpy's matrices, one row a distinct image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lake.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lake.storage.store import EmbedderRecord, Lake


BATCH = 8_192


def dim_of(record: EmbedderRecord) -> int:
    """The length of the embedder's vectors. Raises BadInput while nothing is embedded with it."""
    if record.dim is None:
        raise BadInput(f"nothing is embedded with {record.name} yet; run: lakeloop embed --embedder {record.name}")
    return record.dim


def of_images(lake: Lake, record: EmbedderRecord, wanted: Sequence[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Distinct images and their vectors, float32 (n, dim), in the order of their ids; only `wanted` when given.

    Images without a vector are left out. Raises BadInput while nothing is embedded with it.
    """
    dim = dim_of(record)
    found = lake.scan("predictions", ["image_id", record.column], f"{record.column} is not null")
    names = np.asarray(found["image_id"].to_pylist(), dtype=str)
    distinct, first = np.unique(names, return_index=True)
    if wanted is not None:
        chosen = np.isin(distinct, np.asarray(wanted, dtype=str))
        distinct, first = distinct[chosen], first[chosen]
    return distinct.tolist(), to_matrix(found[record.column], dim)[first]


def to_matrix(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    """float32 (n, dim) of a vector column without nulls."""
    return np.asarray(column.combine_chunks().flatten()).reshape(-1, dim)


def to_column(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """A vector column of the rows of a matrix (n, dim)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def in_batches(
    lake: Lake, record: EmbedderRecord, wanted: Sequence[str] | None = None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Distinct images and their vectors, as `of_images`, some thousand at a time and in no particular order.

    For what does not need all vectors at once: a million of them are gigabytes.
    """
    dim = dim_of(record)
    chosen = None if wanted is None else set(wanted)
    seen: set[str] = set()
    batches = lake.dataset("predictions").to_batches(
        columns=["image_id", record.column], filter=f"{record.column} is not null", batch_size=BATCH
    )
    for batch in batches:
        kept: list[int] = []
        names: list[str] = []
        for place, name in enumerate(batch["image_id"].to_pylist()):
            if name not in seen and (chosen is None or name in chosen):
                seen.add(name)
                kept.append(place)
                names.append(name)
        if names:
            matrix = np.asarray(batch[record.column].flatten()).reshape(-1, dim)
            yield names, matrix[kept]
