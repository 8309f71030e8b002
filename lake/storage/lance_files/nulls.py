"""Finds the nulls of a column from the footers of Lance's data files, where they tell.

A filter `column is null` makes Lance read the whole column: gigabytes, for vectors. But the footer tells for each page
whether it has no nulls, only nulls, or some; only pages with some are read. A page whose description is unknown here
is read, too; nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lake.storage.lance_files import fragments

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import lance

Kind = Literal["none", "all", "some"]

_LAYERS = re.compile(r"\bRepdef\w+")
_ROWS = re.compile(r"\bnum_items: (\d+)")
# Rows read at once: of 1,280 numbers, 10 MB.
BATCH_ROWS = 2_048


@dataclass(frozen=True)
class PageNulls:
    """`rows` is None if the footer does not tell: the description of a page of nulls has no length."""

    kind: Kind
    rows: int | None


def of_fragment(dataset: lance.LanceDataset, fragment: lance.LanceFragment, column: str) -> np.ndarray:
    """Offsets in the fragment of the rows where `column` is null, deleted rows counted: int64, ascending."""
    file = fragments.file_with(fragment, fragments.field_id(dataset, column))
    if file is None:
        return np.arange(fragment.physical_rows)
    return of_file(session_of(dataset, dataset.latest_storage_options()), *file, column)


def session_of(dataset: lance.LanceDataset, storage_options: dict[str, str] | None) -> Any:
    """What `of_file` reads the table's data files through."""
    from lance.file import LanceFileSession

    return LanceFileSession(f"{dataset.uri}/data", storage_options=storage_options)


def of_file(session: Any, path: str, index: int, column: str) -> np.ndarray:
    """Offsets of the file's rows where `column`, the file's `index`-th, is null: int64, ascending.

    Deleted rows are counted. `session`: see `session_of`.
    """
    reader = session.open_reader(path, columns=[column])
    metadata = reader.metadata()
    parts = [np.empty(0, np.int64)]
    for start, stop, kind in regions([page(p) for p in metadata.columns[index].pages], metadata.num_rows):
        if kind == "all":
            parts.append(np.arange(start, stop))
        elif kind == "some":
            parts.append(start + _read(reader, start, stop - start))
    return np.concatenate(parts)


def page(described: Any) -> PageNulls:
    """Reads the footer's description of a page, in file format 2.2."""
    text = described.encoding
    layers = set(_LAYERS.findall(text))
    if "ConstantLayout" in text:
        empty = "inline_value: None" in text and not sum(b.size for b in described.buffers)
        return PageNulls("all" if layers == {"RepdefNullableItem"} and empty else "some", None)
    rows = _ROWS.search(text)
    valid = layers == {"RepdefAllValidItem"} and "has_validity: true" not in text
    return PageNulls("none" if valid else "some", int(rows[1]) if rows else None)


def regions(pages: Sequence[PageNulls], rows: int) -> Iterator[tuple[int, int, Kind]]:
    """(start, stop, kind) of consecutive rows, in no particular order, covering all of them.

    Lengths are counted from both ends; everything from the first to the last page without a length is one region.
    """
    front, back = 0, len(pages)
    start, stop = 0, rows
    known: list[tuple[int, int, Kind]] = []
    while front < back and (length := pages[front].rows) is not None:
        known.append((start, start + length, pages[front].kind))
        start, front = start + length, front + 1
    while back > front and (length := pages[back - 1].rows) is not None:
        known.append((stop - length, stop, pages[back - 1].kind))
        stop, back = stop - length, back - 1
    between: set[Kind] = {p.kind for p in pages[front:back]}
    if start > stop or (start < stop) != bool(between):  # the lengths do not add up, so they mean something else
        yield 0, rows, "some"
        return
    yield from known
    if start < stop:
        yield start, stop, between.pop() if len(between) == 1 else "some"


def _read(reader: Any, start: int, rows: int) -> np.ndarray:
    parts = [np.empty(0, np.int64)]
    offset = 0
    for batch in reader.read_range(start, rows, batch_size=BATCH_ROWS, batch_readahead=4).to_batches():
        column = batch.column(0)
        if column.null_count:
            parts.append(offset + np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)))
        offset += batch.num_rows
    return np.concatenate(parts)
