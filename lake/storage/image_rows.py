"""Makes rows of `images` and `thumbnails`, and decodes the files for them, in bulk ingest and in the drainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.images.workers import BULK_MEMORY_BYTES, WorkerDied, WorkerPool
from lake.storage import schema

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from lake.images.decode import Declared, Decoded

DECODER = "lake.images.decode:decode_many"
# The most that it may answer with: a thumbnail of 16 KiB for each of at most 32 files, and little else.
ANSWER_BYTES = 4 << 20
# `image_status` of a prediction whose image is readable, but belongs to the share that is not stored.
NOT_KEPT = "its bytes were not kept"


def settled(
    result: list[Decoded | str] | WorkerDied,
    files: Sequence[bytes],
    max_megapixels: float,
    declared: Declared | None = None,
    memory_bytes: int = BULK_MEMORY_BYTES,
    timeout: float = 120.0,
) -> list[Decoded | str]:
    """The result of a task of DECODER, for each file: the decoded image, or the reason why it cannot be decoded.

    `declared`: the levels that the task was given. If the worker died, every file is tried alone, for `timeout` seconds
    each, to find the file that killed it. A worker that answers for fewer or more files is as good as dead.
    """
    if not isinstance(result, WorkerDied) and len(result) == len(files):
        return result
    results: list[Decoded | str] = []
    with WorkerPool(DECODER, 1, memory_bytes=memory_bytes, timeout=timeout, answer_bytes=ANSWER_BYTES) as careful:
        for data in files:
            alone = careful.run([data], max_megapixels, declared)
            if not isinstance(alone, WorkerDied):
                alone = alone[0] if len(alone) == 1 else f"its decoder answered for {len(alone)} files"
            results.append(alone.reason if isinstance(alone, WorkerDied) else alone)
    return results


def image_row(
    image_id: str,
    data: bytes,
    format: str,
    width: int,
    height: int,
    source: str | None,
    moment: dt.datetime,
    decoded: Decoded | None = None,
) -> dict[str, Any]:
    """`decoded`: None if the image cannot be decoded."""
    return {
        "image_id": image_id,
        "width": width,
        "height": height,
        "format": format,
        "size_bytes": len(data),
        "source": source,
        "ingested_at": moment,
        "data": data,
        **(levels_columns(decoded) if decoded is not None else {}),
    }


def levels_columns(decoded: Decoded) -> dict[str, Any]:
    """The columns of `images` that say what is black and white; nulls for 8 bits."""
    levels = decoded.levels
    black, white = (None, None) if levels is None else (levels.black, levels.white)
    return {"pixel_type": decoded.pixel_type, "black": black, "white": white, "white_from": decoded.levels_from}


def thumbnail_row(image_id: str, decoded: Decoded) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "width": decoded.thumbnail_width,
        "height": decoded.thumbnail_height,
        "jpeg": decoded.thumbnail,
    }


def images_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The rows as `Lake.insert("images", ...)` takes them: merge_insert needs blobs in their own struct."""
    import lance

    fields = schema.IMAGES.arrow()
    columns = {f.name: pa.array([r.get(f.name) for r in rows], f.type) for f in fields if f.name != "data"}
    columns["data"] = lance.blob_array([r["data"] for r in rows])
    return pa.table(columns, schema=fields)
