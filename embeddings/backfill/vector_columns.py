"""Writing vectors into their column of predictions, beside writers that append, update and compact.

A column file is written for a fragment as a whole. Where few of a large fragment's rows get a vector, that would copy
all the others' for nothing; there the rows themselves are written anew, at the table's end. It knows rows and
fragments; nothing of networks or images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.storage.missing_vectors import Missing
from lake.storage.vectors import to_column

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lake.storage.store import Lake

# Bytes of other rows' vectors that a column file may copy before its rows are written anew instead.
WASTE_BYTES = 4 << 20


def store_vectors(lake: Lake, column: str, vectors: Mapping[str, np.ndarray], missing: Missing | None = None) -> int:
    """Writes vectors, by image_id, into every row that lacks one; returns the number of distinct images that got one.

    The vectors may come from anywhere (a serving process has them already), but they must be the embedder's own:
    float32, its dim, unit length. `missing` knows which rows lack one, for callers that store often. One commit, or
    two where rows are moved; on a conflict with another writer it looks again and repeats.
    """
    if not vectors:
        return 0
    missing = missing or Missing(lake, column)
    names = pa.array(list(vectors), pa.string())
    matrix = np.stack(list(vectors.values())).astype(np.float32, copy=False)
    stored: set[int] = set()

    def write() -> None:
        gaps = missing.rows()
        which = gaps.rows_of(vectors)
        place = pc.index_in(gaps.image_id.take(pa.array(which)), names)
        rows = pa.table({"_rowid": gaps.address[which], "place": place})
        fragments = gaps.address[which] >> np.uint64(32)
        patched, moved = [rows.slice(0, 0)], [rows.slice(0, 0)]
        for number in np.unique(fragments).tolist():
            part = rows.filter(pa.array(fragments == number))
            others = gaps.dataset.get_fragment(number).physical_rows - len(part)
            wasteful = others * matrix[0].nbytes > WASTE_BYTES and others > len(part)
            (moved if wasteful else patched).append(part)
        if len(patched) > 1:
            _patch(lake, gaps.dataset, column, patched[1:], matrix)
            stored.update(pa.concat_tables(patched)["place"].to_pylist())
        if len(moved) > 1:
            _move(lake, gaps.dataset, column, pa.concat_tables(moved), matrix)
            stored.update(pa.concat_tables(moved)["place"].to_pylist())

    lake.commit("predictions", write)
    return len(stored)


def _patch(lake: Lake, dataset: Any, column: str, parts: list[pa.Table], matrix: np.ndarray) -> None:
    """A new column file for each part's fragment. Every other column and its index stay as they are."""
    import lance

    changed: list[Any] = []
    modified: Any = []
    for part in parts:
        fragment = dataset.get_fragment(part["_rowid"][0].as_py() >> 32)
        patch = pa.table({"_rowid": part["_rowid"], column: to_column(matrix[np.asarray(part["place"])])})
        meta, modified = fragment.update_columns(patch, left_on="_rowid")
        changed.append(meta)
    operation = lance.LanceOperation.Update(
        updated_fragments=changed, fields_modified=modified, update_mode="rewrite_columns"
    )
    _commit(lake, dataset, operation)


def _move(lake: Lake, dataset: Any, column: str, rows: pa.Table, matrix: np.ndarray) -> None:
    """The rows with their vectors, and all else they said, in a new fragment; where they were they are deleted."""
    import lance

    others = [name for name in dataset.schema.names if name != column]
    # Without stable row ids, which the lake's tables do not have, a row's id is its address.
    found = dataset.to_table(others, filter=f"_rowid in ({_listed(rows)})", with_row_id=True)
    place = rows["place"].take(pc.index_in(found["_rowid"], rows["_rowid"]))
    whole = found.append_column(dataset.schema.field(column), to_column(matrix[np.asarray(place)]))
    added = lance.fragment.write_fragments(
        whole.select(dataset.schema.names).cast(dataset.schema),
        dataset,
        mode="append",
        storage_options=lake.storage_options,
    )
    left: list[Any] = []
    emptied: list[int] = []
    numbers = np.asarray(rows["_rowid"]) >> np.uint64(32)
    for number in np.unique(numbers).tolist():
        fragment = dataset.get_fragment(number)
        rest = fragment.delete(f"_rowid in ({_listed(rows.filter(pa.array(numbers == number)))})")
        if rest is None:
            emptied.append(number)
        else:
            left.append(rest)
    operation = lance.LanceOperation.Update(
        updated_fragments=left, removed_fragment_ids=emptied, new_fragments=added, update_mode="rewrite_rows"
    )
    _commit(lake, dataset, operation)


def _listed(rows: pa.Table) -> str:
    return ",".join(map(str, rows["_rowid"].to_pylist()))


def _commit(lake: Lake, dataset: Any, operation: Any) -> None:
    """Conflicts with whatever touched the same fragments since `dataset` was read; appends do not."""
    import lance

    lance.LanceDataset.commit(
        dataset.uri, operation, read_version=dataset.version, storage_options=lake.storage_options
    )
