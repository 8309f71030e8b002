"""Rows of predictions for tests that need no image."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from lake.open_lake import OpenLake
from lake.storage import store


def image(name: object) -> str:
    """An image_id for a name."""
    return hashlib.sha256(str(name).encode()).hexdigest()


def add(lake: OpenLake, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Adds rows to predictions, each about a new image unless the row has an image_id; returns the prediction_ids."""
    moment = store.now()
    start = lake.dataset("samples").count_rows()
    whole = [
        {
            "prediction_id": str(uuid.UUID(int=start + i)),
            "image_id": image(start + i),
            "model": "m",
            "ingested_at": moment,
            **row,
        }
        for i, row in enumerate(rows)
    ]
    fields = [f for f in lake.dataset("samples").schema if not f.name.startswith("emb_")]
    lake.insert("samples", pa.Table.from_pylist(whole, schema=pa.schema(fields)))
    return [str(row["prediction_id"]) for row in whole]


def label(lake: OpenLake, *statements: tuple[str, str | None, Any]) -> None:
    """Adds statements (image_id, label, moment) about images."""
    columns = ("image_id", "label", "timestamp")
    rows = [
        dict(zip(columns, row, strict=True))
        | {"event_id": str(uuid.uuid4()), "task": "classification", "origin": "human"}
        for row in statements
    ]
    lake.insert("labels", pa.Table.from_pylist(rows, schema=lake.dataset("labels").schema))
