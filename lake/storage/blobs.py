"""Reads the bytes of many images, in batches.

The reads of a batch run in parallel, and its neighbours lie side by side in a file; image by image would cost a
look-up each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.images.levels import Levels
from lake.storage.store import LOOK_UP_VALUES, literals

if TYPE_CHECKING:
    from lake.storage.store import Lake

COLUMNS = ("image_id", "format", "width", "height", "source", "size_bytes", "black", "white")
# From this many images on, one pass over all ids is faster than look-ups by index.
_SCANNED_FROM = 4 * LOOK_UP_VALUES


@dataclass(frozen=True)
class StoredImage:
    """One image as it was received. `levels`: black and white of more than 8 bits, as recorded; None: not recorded."""

    image_id: str
    data: bytes
    format: str
    width: int
    height: int
    source: str | None
    levels: Levels | None = None


def locate(lake: Lake, image_ids: Sequence[str], version: int | None = None) -> pa.Table:
    """COLUMNS and `_rowid` of the images that the lake has, in the order they are stored.

    A row id is valid at that version of `images` only.
    """
    dataset = lake.dataset("images", version)
    options: dict[str, Any] = {"columns": [*COLUMNS], "with_row_id": True}
    if len(image_ids) >= _SCANNED_FROM:
        wanted = pa.array(image_ids, pa.string())
        batches = dataset.scanner(**options).to_batches()
        matches = [b.filter(pc.is_in(b["image_id"], wanted)) for b in batches]
        empty = dataset.scanner(**options, filter="false")
        rows = pa.Table.from_batches(matches) if matches else empty.to_table()
    else:
        parts = [image_ids[i : i + LOOK_UP_VALUES] for i in range(0, len(image_ids), LOOK_UP_VALUES)] or [[""]]
        rows = pa.concat_tables(
            dataset.scanner(**options, filter=f"image_id in ({literals(part)})").to_table() for part in parts
        )
    return rows.sort_by("_rowid")


def levels_in(row: Mapping[str, Any]) -> Levels | None:
    """Black and white in a row of `images`."""
    return None if row["white"] is None else Levels(row["black"], row["white"])


def read(dataset: Any, row_ids: np.ndarray) -> list[bytes]:
    """The bytes of images by row id, in the given order."""
    ordered = np.unique(row_ids)
    data = dict(dataset.read_blobs("data", ids=ordered.tolist()))
    return [data[i] for i in row_ids.tolist()]


def images(lake: Lake, image_ids: Sequence[str], most_bytes: int = 64 << 20) -> Iterator[StoredImage]:
    """The images among `image_ids` that the lake has, in the given order; about `most_bytes` are in memory at once."""
    dataset = lake.dataset("images")
    row_of = {row["image_id"]: row for row in locate(lake, image_ids, dataset.version).to_pylist()}
    rows = [row_of[i] for i in dict.fromkeys(image_ids) if i in row_of]
    start = 0
    while start < len(rows):
        end, size = start + 1, rows[start]["size_bytes"]
        while end < len(rows) and size + rows[end]["size_bytes"] <= most_bytes:
            size += rows[end]["size_bytes"]
            end += 1
        batch = rows[start:end]
        for row, data in zip(batch, read(dataset, np.array([r["_rowid"] for r in batch], np.uint64)), strict=True):
            format, width, height, source = (row[name] for name in ("format", "width", "height", "source"))
            yield StoredImage(row["image_id"], data, format, width, height, source, levels_in(row))
        start = end
