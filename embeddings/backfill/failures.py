"""Images of which an embedder gave no vector: recorded with the reason, and not tried again until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from lake.storage import schema
from lake.storage.store import literal, now

if TYPE_CHECKING:
    from lake.storage.store import Lake


def of(lake: Lake, embedder: str) -> dict[str, str]:
    """image_id -> why the embedder gave no vector of it."""
    rows = lake.scan("embedding_failures", ["image_id", "reason"], f"embedder = {literal(embedder)}")
    return dict(zip(rows["image_id"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def record(lake: Lake, embedder: str, reasons: Mapping[str, str]) -> None:
    """Records failures, by image_id."""
    rows = [
        {"id": f"{embedder}/{image_id}", "embedder": embedder, "image_id": image_id, "reason": reason, "at": now()}
        for image_id, reason in reasons.items()
    ]
    lake.insert("embedding_failures", pa.Table.from_pylist(rows, schema=schema.EMBEDDING_FAILURES.arrow()))


def forget(lake: Lake, embedder: str) -> None:
    """Forgets the embedder's failures: its next run tries the images again."""
    if of(lake, embedder):
        lake.delete("embedding_failures", f"embedder = {literal(embedder)}")
