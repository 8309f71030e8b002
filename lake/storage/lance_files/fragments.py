"""What a table's manifest tells of its fragments: their files, the columns in each, and the addresses of rows.

A fragment is a range of rows in one data file or several, each with some of the columns. A row's address is the
fragment's id in the upper 32 bits and the row's offset in the fragment in the lower 32, deleted rows counted.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import lance


def addresses(fragment_id: int, offsets: np.ndarray) -> np.ndarray:
    """uint64, of rows of one fragment by their offsets."""
    return (fragment_id << 32) + offsets.astype(np.uint64)


def fragment_ids(row_addresses: np.ndarray) -> np.ndarray:
    """int64, the fragment of each row."""
    return (row_addresses >> np.uint64(32)).astype(np.int64)


def offsets(row_addresses: np.ndarray) -> np.ndarray:
    """int64, each row's offset in its fragment."""
    return (row_addresses & np.uint64(0xFFFFFFFF)).astype(np.int64)


def paths(fragment: lance.LanceFragment) -> tuple[str, ...]:
    """The fragment's data files, relative to the table's folder `data`. A file never changes."""
    return tuple(file.path for file in fragment.metadata.files)


def field_id(dataset: lance.LanceDataset, column: str) -> int | None:
    """The number that manifests have for a column, or None if the table lacks it. It is never used again."""
    field = dataset.lance_schema.field(column)
    return None if field is None else int(field.id())


def file_with(fragment: lance.LanceFragment, field: int | None) -> tuple[str, int] | None:
    """The file that holds a column, as in `paths`, and the column's place in it; None if all its rows are null."""
    for file in fragment.metadata.files:
        if field in file.fields:
            return file.path, file.column_indices[list(file.fields).index(field)]
    return None


def fingerprints(dataset: lance.LanceDataset, columns: Iterable[str]) -> dict[str, tuple[Any, int]]:
    """Each fragment and its number of rows, by a key that changes when a row or a value of these columns does."""
    fields = {field for column in columns for field in nested(dataset.lance_schema.field(column))}
    keyed = {}
    for fragment in dataset.get_fragments():
        metadata = fragment.metadata
        files = [(file.path, sorted(fields & {*file.fields})) for file in metadata.files]
        identity = (metadata.id, [entry for entry in files if entry[1]], metadata.num_deletions)
        key = hashlib.blake2b(repr(identity).encode(), digest_size=12).hexdigest()
        keyed[key] = (fragment, metadata.physical_rows - metadata.num_deletions)
    return keyed


def nested(field: Any) -> Iterator[int]:
    """The numbers of a field and of all fields inside it."""
    yield field.id()
    for child in field.children():
        yield from nested(child)
