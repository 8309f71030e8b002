"""Sizes of objects as COCO defines them: small below 32 x 32 pixels of area, large from 96 x 96, else medium.

https://cocodataset.org/#detection-eval. Areas of masks are computed from their run lengths, for a whole column at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from lake.storage.store import Lake

SIZES = ("small", "medium", "large")
SMALL_BELOW, LARGE_FROM = 32**2, 96**2


def bucket_sql(area: str) -> str:
    """The SQL expression for the size (small, medium, large) of an area in pixels."""
    return f"CASE WHEN {area} < {SMALL_BELOW} THEN 'small' WHEN {area} < {LARGE_FROM} THEN 'medium' ELSE 'large' END"


def bucket(areas: np.ndarray) -> np.ndarray:
    """0 (small), 1 (medium) or 2 (large) for areas in pixels, any shape."""
    buckets: np.ndarray = np.searchsorted([SMALL_BELOW, LARGE_FROM], areas, side="right")
    return buckets


def mask_areas(counts: pa.Array) -> np.ndarray:
    """Areas in pixels, int64 (n,), of masks as compressed COCO RLE (see `lake/regions/masks.py`), text without nulls.

    The text is not checked again: ingest has checked it.
    """
    n = len(counts)
    texts: list[bytes] = [text.encode() for text in counts.to_pylist()]
    characters = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    if not len(characters):
        return np.zeros(n, np.int64)
    last: np.ndarray = (characters & 0x20) == 0  # of a number
    number = np.cumsum(last) - last
    first: np.ndarray = np.r_[0, np.flatnonzero(last)[:-1] + 1]
    digit = np.arange(len(characters)) - first[number]
    values = np.add.reduceat((characters & 0x1F) << (5 * digit), first)
    end = np.flatnonzero(last)
    values -= np.where(characters[end] & 0x10, 1 << (5 * (digit[end] + 1)), 0)  # negative ones
    ends = np.cumsum([len(text) for text in texts])
    mask: np.ndarray = np.asarray(np.searchsorted(ends, first, side="right"))
    start: np.ndarray = np.asarray(np.searchsorted(first, np.r_[0, ends[:-1]], side="left"))
    position = np.arange(len(values)) - start[mask]
    # Runs of the mask itself are every second one, each stored as the difference to the one before it: its value
    # counts once for itself and once for every such run after it.
    odd = position % 2 == 1
    runs = np.bincount(mask[odd], minlength=n)
    weight = runs[mask[odd]] - position[odd] // 2
    return np.bincount(mask[odd], values[odd] * weight, minlength=n).astype(np.int64)


def of_masks(lake: Lake) -> pa.Table:
    """prediction_id, sizes (distinct, list of text) and areas (list of int64) of each prediction with masks."""
    import pyarrow as pa

    tables: list[pa.Table] = []
    batches = lake.dataset("samples").to_batches(columns=["prediction_id", "masks"], filter="masks is not null")
    for batch in batches:
        masks = batch["masks"]
        lengths = masks.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        areas = mask_areas(masks.flatten().field("counts"))
        names = np.array(SIZES)[bucket(areas)].tolist()
        ends = np.cumsum(lengths).tolist()
        parts = [names[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
        offsets = pa.array(np.r_[0, ends], pa.int32())
        tables.append(
            pa.table(
                {
                    "prediction_id": batch["prediction_id"],
                    "sizes": pa.array([sorted(set(part)) for part in parts], pa.list_(pa.string())),
                    "areas": pa.ListArray.from_arrays(offsets, pa.array(areas)),
                }
            )
        )
    kinds = [("prediction_id", pa.string()), ("sizes", pa.list_(pa.string())), ("areas", pa.list_(pa.int64()))]
    return pa.concat_tables(tables) if tables else pa.schema(kinds).empty_table()
