"""Writes values into one column of rows that exist: a new file of the column, or the rows again at the table's end.

`rows` have `_rowid`, which is the row's address at the dataset's version, and `vector_row`, the row of `matrix` that is
its vector. Each function makes one commit, and raises OSError if another writer changed the same fragments meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.storage import schema
from lake.storage.lance_files import fragments
from lake.storage.store import literals
from lake.storage.vectors import to_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lance

    from lake.storage.store import Lake


def add_files(
    lake: Lake, dataset: lance.LanceDataset, column: str, parts: Sequence[pa.Table], matrix: np.ndarray
) -> None:
    """Writes a new file of the column for the fragment of each part; other columns and their indexes stay as they are.

    All rows of a part lie in one fragment. The fragment's other rows keep their values, which are copied.
    """
    import lance

    changed: list[Any] = []
    modified: Any = []
    for rows in parts:
        address = rows["_rowid"].combine_chunks().to_numpy()[:1]
        fragment = dataset.get_fragment(int(fragments.fragment_ids(address)[0]))
        values = pa.table({"_rowid": rows["_rowid"], column: to_column(matrix[np.asarray(rows["vector_row"])])})
        metadata, modified = fragment.update_columns(values, left_on="_rowid")
        changed.append(metadata)
    operation = lance.LanceOperation.Update(
        updated_fragments=changed, fields_modified=modified, update_mode="rewrite_columns"
    )
    _commit(lake, dataset, operation)


def move_rows(lake: Lake, dataset: lance.LanceDataset, column: str, rows: pa.Table, matrix: np.ndarray) -> None:
    """Writes the whole rows, with their vectors, into a new fragment, and deletes them where they were."""
    import lance

    others = [name for name in dataset.schema.names if name != column]
    # A row's id is its address, because the lake's tables do not have stable row ids.
    stored = dataset.to_table(others, filter=f"_rowid in ({_listed(rows)})", with_row_id=True)
    vector_row = rows["vector_row"].take(pc.index_in(stored["_rowid"], rows["_rowid"]))
    whole = stored.append_column(dataset.schema.field(column), to_column(matrix[np.asarray(vector_row)]))
    added = lance.fragment.write_fragments(
        whole.select(dataset.schema.names).cast(dataset.schema),
        dataset,
        mode="append",
        storage_options=lake.storage_options,
    )
    shrunk: list[Any] = []
    emptied: list[int] = []
    ids = fragments.fragment_ids(np.asarray(rows["_rowid"]))
    for number in np.unique(ids).tolist():
        fragment = dataset.get_fragment(number)
        rest = fragment.delete(f"_rowid in ({_listed(rows.filter(pa.array(ids == number)))})")
        if rest is None:
            emptied.append(number)
        else:
            shrunk.append(rest)
    operation = lance.LanceOperation.Update(
        updated_fragments=shrunk, removed_fragment_ids=emptied, new_fragments=added, update_mode="rewrite_rows"
    )
    _commit(lake, dataset, operation)


def _listed(rows: pa.Table) -> str:
    return ",".join(map(str, rows["_rowid"].to_pylist()))


def _commit(lake: Lake, dataset: lance.LanceDataset, operation: Any) -> None:
    """Conflicts with every write to the same fragments since the dataset's version, except appends."""
    import lance

    lance.LanceDataset.commit(
        dataset.uri, operation, read_version=dataset.version, storage_options=lake.storage_options
    )


def set_values(lake: Lake, table: str, values: pa.Table) -> None:
    """Replaces values of rows that exist, in few columns: `values` has the table's key, and the columns to replace.

    Other columns, such as the bytes of images, are neither read nor written. One commit; rows that do not exist are
    left out.
    """
    key = schema.TABLES[table].key
    names = [name for name in values.column_names if name != key]

    def write() -> None:
        import lance

        dataset = lake.dataset(table).checkout_version(lake.version(table))
        keys = values[key].to_pylist()
        stored = dataset.to_table([key], filter=f"{key} in ({literals(keys)})", with_row_id=True)
        if not stored.num_rows:
            return
        picked = values.take(pc.index_in(stored[key], values[key]))
        picked = picked.select(names).append_column("_rowid", stored["_rowid"])
        ids = fragments.fragment_ids(np.asarray(stored["_rowid"]))
        changed: list[Any] = []
        modified: set[int] = set()
        for number in np.unique(ids).tolist():
            part = picked.filter(pa.array(ids == number))
            metadata, fields = dataset.get_fragment(number).update_columns(part, left_on="_rowid")
            changed.append(metadata)
            modified.update(fields)
        operation = lance.LanceOperation.Update(
            updated_fragments=changed, fields_modified=[*modified], update_mode="rewrite_columns"
        )
        _commit(lake, dataset, operation)

    lake.commit(table, write)
