"""Rows of table samples for an ingested image, with ids derived from their content."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from lake import ids
from lake.prediction_logs import prediction_rows

if TYPE_CHECKING:
    from lake.storage.store import Lake


def prediction_row(
    image_id: str, source: str, row: prediction_rows.PredictionRow | None, moment: dt.datetime
) -> dict[str, Any]:
    """A row of samples; without a prediction in `row`, the row that says that the image is in the lake: `bare`."""
    bare = row is None or not prediction_rows.has_prediction(row)
    key = {"image_id": image_id, "ingested_at": moment, "bare": bare}
    if row is None:
        return {"prediction_id": ids.bare_prediction_id(image_id), "source": source, **key}
    if bare:
        prediction_id = ids.bare_prediction_id(image_id)
    else:
        prediction_id = (ids.as_uuid(row.row_id) if row.row_id else None) or _derived_id(image_id, row)
    columns = prediction_rows.columns(row)
    return {**columns, "prediction_id": prediction_id, "source": columns["source"] or source, **key}


def contradictions(lake: Lake, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose prediction_id the lake has with another image, label or confidence."""
    columns = ["prediction_id", "image_id", "label", "confidence"]
    stored = lake.look_up("samples", columns, columns[0], [row["prediction_id"] for row in rows])
    known = {r["prediction_id"]: (r["image_id"], r["label"], r["confidence"]) for r in stored.to_pylist()}
    return [
        row
        for row in rows
        if known.get(row["prediction_id"]) != (row["image_id"], row.get("label"), row.get("confidence"))
    ]


def _derived_id(image_id: str, row: prediction_rows.PredictionRow) -> str:
    stamp = row.timestamp.isoformat() if row.timestamp else None
    return ids.derived_prediction_id(image_id, row.model, row.model_version, stamp, row.row_id)
