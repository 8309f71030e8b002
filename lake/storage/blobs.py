"""The bytes of many images: found once, read in batches in the order they are stored.

A batch of neighbours is one stretch of a file, and its reads run side by side; image by image costs a look-up each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.storage.store import LOOK_UP_VALUES, literals

if TYPE_CHECKING:
    from lake.storage.store import Lake

COLUMNS = ("image_id", "format", "width", "height", "source", "size_bytes")
# From this many on one pass over all ids is quicker than look-ups by index.
_SCANNED_FROM = 4 * LOOK_UP_VALUES


@dataclass(frozen=True)
class StoredImage:
    """One image as it was received."""

    image_id: str
    data: bytes
    format: str
    width: int
    height: int
    source: str | None


def locate(lake: Lake, image_ids: Sequence[str], version: int | None = None) -> pa.Table:
    """COLUMNS and `_rowid` of those images that the lake has, in the order they are stored.

    Row ids hold at the version of `images` they were found at.
    """
    dataset = lake.dataset("images", version)
    options: dict[str, Any] = {"columns": [*COLUMNS], "with_row_id": True}
    if len(image_ids) >= _SCANNED_FROM:
        wanted = pa.array(image_ids, pa.string())
        batches = dataset.scanner(**options).to_batches()
        kept = [b.filter(pc.is_in(b["image_id"], wanted)) for b in batches]
        found = pa.Table.from_batches(kept) if kept else dataset.scanner(**options, filter="false").to_table()
    else:
        parts = [image_ids[i : i + LOOK_UP_VALUES] for i in range(0, len(image_ids), LOOK_UP_VALUES)] or [[""]]
        found = pa.concat_tables(
            dataset.scanner(**options, filter=f"image_id in ({literals(part)})").to_table() for part in parts
        )
    return found.sort_by("_rowid")


def read(dataset: Any, row_ids: np.ndarray) -> list[bytes]:
    """The bytes of images by row id, in the order asked for."""
    ordered = np.unique(row_ids)
    data = dict(dataset.read_blobs("data", ids=ordered.tolist()))
    return [data[i] for i in row_ids.tolist()]


def images(lake: Lake, image_ids: Sequence[str], most_bytes: int = 64 << 20) -> Iterator[StoredImage]:
    """The images that the lake has of these, in the order given; about `most_bytes` are held at once."""
    dataset = lake.dataset("images")
    found = locate(lake, image_ids, dataset.version)
    row_of = {row["image_id"]: row for row in found.to_pylist()}
    rows = [row_of[i] for i in dict.fromkeys(image_ids) if i in row_of]
    start = 0
    while start < len(rows):
        end, held = start + 1, rows[start]["size_bytes"]
        while end < len(rows) and held + rows[end]["size_bytes"] <= most_bytes:
            held += rows[end]["size_bytes"]
            end += 1
        batch = rows[start:end]
        for row, data in zip(batch, read(dataset, np.array([r["_rowid"] for r in batch], np.uint64)), strict=True):
            yield StoredImage(row["image_id"], data, row["format"], row["width"], row["height"], row["source"])
        start = end
