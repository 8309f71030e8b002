"""Writes vectors into their column of samples, while others append, update and compact.

A column file is written for a whole fragment. If few rows of a large fragment get a vector, that would copy the other
rows' vectors for nothing; then the rows themselves are rewritten at the end of the table. This module knows rows and
fragments, not networks or images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.storage.lance_files import columns, fragments
from lake.storage.missing_vectors import MissingVectors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lake.storage.store import Lake

# Bytes of other rows' vectors that a column file may copy; above it, the rows are rewritten instead.
WASTE_BYTES = 4 << 20


def store_vectors(
    lake: Lake, column: str, vectors: Mapping[str, np.ndarray], missing: MissingVectors | None = None
) -> int:
    """Writes vectors, by image_id, into every row that lacks one; returns the number of distinct images that got one.

    The vectors may come from anywhere (a serving process has them already), but must be the embedder's own: float32,
    its dim, length 1. `missing` knows which rows lack one, for callers that store often. It makes one commit, or two if
    rows are moved; on a conflict with another writer it reads the rows again and repeats.
    """
    if not vectors:
        return 0
    missing = missing or MissingVectors(lake, column)
    names = pa.array(list(vectors), pa.string())
    matrix = np.stack(list(vectors.values())).astype(np.float32, copy=False)
    stored: set[int] = set()

    def write() -> None:
        gaps = missing.rows()
        gap_rows = gaps.rows_of(vectors)
        vector_row = pc.index_in(gaps.image_id.take(pa.array(gap_rows)), names)
        rows = pa.table({"_rowid": gaps.address[gap_rows], "vector_row": vector_row})
        ids = fragments.fragment_ids(gaps.address[gap_rows])
        patched, moved = [rows.slice(0, 0)], [rows.slice(0, 0)]
        for number in np.unique(ids).tolist():
            part = rows.filter(pa.array(ids == number))
            others = gaps.dataset.get_fragment(number).physical_rows - len(part)
            wasteful = others * matrix[0].nbytes > WASTE_BYTES and others > len(part)
            (moved if wasteful else patched).append(part)
        if len(patched) > 1:
            columns.add_files(lake, gaps.dataset, column, patched[1:], matrix)
            stored.update(pa.concat_tables(patched)["vector_row"].to_pylist())
        if len(moved) > 1:
            columns.move_rows(lake, gaps.dataset, column, pa.concat_tables(moved), matrix)
            stored.update(pa.concat_tables(moved)["vector_row"].to_pylist())

    lake.commit("samples", write)
    return len(stored)
