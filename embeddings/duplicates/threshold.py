"""The cosine from which two images are proposed as near-duplicates, for each embedder of a lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from embeddings.embedders import embedder as embedders
from embeddings.embedders import specs
from lake.errors import BadInput
from lake.storage import schema
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import EmbedderRecord, Lake


def threshold_of(lake: Lake, record: EmbedderRecord, threshold: float | None = None) -> float:
    """`threshold` if it is set, else the lake's saved one, else the embedder's default.

    Raises BadInput unless `threshold` is from -1 to 1.
    """
    if threshold is not None:
        if not -1 <= threshold <= 1:
            raise BadInput(f"threshold is {threshold}; it is a cosine, from -1 to 1")
        return threshold
    rows = lake.scan("embedders", ["name", "duplicates_from"]).to_pylist()
    saved = next((row["duplicates_from"] for row in rows if row["name"] == record.name), None)
    return specs.duplicates_from(record.name) if saved is None else float(saved)


def save_threshold(lake: Lake, threshold: float, *, embedder: str | None = None) -> None:
    """Saves the lake's own threshold. Raises BadInput as `threshold_of` does.

    For lakes where calibration cannot help: where different images look as alike as copies (photographs of one product,
    taken by a machine), every proposed pair would be wrong, and 0.999 proposes only identical images.
    """
    record = embedders.record_of(lake, embedder)
    threshold = threshold_of(lake, record, threshold)
    row = lake.dataset("embedders").to_table(filter=f"name = {literal(record.name)}").to_pylist()[0]
    row["duplicates_from"] = threshold
    lake.update("embedders", pa.Table.from_pylist([row], schema=schema.EMBEDDERS.arrow()))
