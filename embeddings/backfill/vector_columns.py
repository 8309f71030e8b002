"""Writing vectors into their column of predictions, beside writers that append, update and compact.

A column file is written for a fragment as a whole. Where few of a large fragment's rows get a vector, that would copy
all the others' for nothing; there the rows themselves are written anew, at the table's end. It knows rows and
fragments; nothing of networks or images.
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

# Bytes of other rows' vectors that a column file may copy before its rows are written anew instead.
WASTE_BYTES = 4 << 20


def store_vectors(
    lake: Lake, column: str, vectors: Mapping[str, np.ndarray], missing: MissingVectors | None = None
) -> int:
    """Writes vectors, by image_id, into every row that lacks one; returns the number of distinct images that got one.

    The vectors may come from anywhere (a serving process has them already), but they must be the embedder's own:
    float32, its dim, unit length. `missing` knows which rows lack one, for callers that store often. One commit, or
    two where rows are moved; on a conflict with another writer it looks again and repeats.
    """
    if not vectors:
        return 0
    missing = missing or MissingVectors(lake, column)
    names = pa.array(list(vectors), pa.string())
    matrix = np.stack(list(vectors.values())).astype(np.float32, copy=False)
    stored: set[int] = set()

    def write() -> None:
        gaps = missing.rows()
        which = gaps.rows_of(vectors)
        place = pc.index_in(gaps.image_id.take(pa.array(which)), names)
        rows = pa.table({"_rowid": gaps.address[which], "place": place})
        ids = fragments.fragment_ids(gaps.address[which])
        patched, moved = [rows.slice(0, 0)], [rows.slice(0, 0)]
        for number in np.unique(ids).tolist():
            part = rows.filter(pa.array(ids == number))
            others = gaps.dataset.get_fragment(number).physical_rows - len(part)
            wasteful = others * matrix[0].nbytes > WASTE_BYTES and others > len(part)
            (moved if wasteful else patched).append(part)
        if len(patched) > 1:
            columns.add_files(lake, gaps.dataset, column, patched[1:], matrix)
            stored.update(pa.concat_tables(patched)["place"].to_pylist())
        if len(moved) > 1:
            columns.move_rows(lake, gaps.dataset, column, pa.concat_tables(moved), matrix)
            stored.update(pa.concat_tables(moved)["place"].to_pylist())

    lake.commit("predictions", write)
    return len(stored)
