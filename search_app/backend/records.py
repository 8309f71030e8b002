"""Reads everything the lake knows about one image, as one JSON-ready dictionary.

The detail panel of the app and `GET /v1/records/{image_id}` show it. The module knows nothing of HTTP or pages.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import TYPE_CHECKING, Any

from lake import ids
from lake.spool import events
from lake.sql.tables import MOST_WHOLE
from lake.storage import schema
from lake.storage.store import literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from lake.spool.spool import WaitingEvent
    from lake.storage.store import Lake

PREDICTIONS_SHOWN = 50
_REVIEW_COLUMNS = ["event_id", "prediction_id", "timestamp", "origin", "verdict", "comment", "ticket"]
_OWN_COLUMNS = [column.name for column in schema.SAMPLES.columns]
_OWN_TYPES = {field.name: field.type for field in schema.SAMPLES.arrow()}


def record(lake: Lake, image_id: str) -> dict[str, Any] | None:
    """The image, its predictions (newest first, at most 50), labels, current class, reviews and slices.

    None if the lake has no such image. Times are ISO 8601 UTC, NaN and infinity are null. Boxes are in pixels of the
    upright image; promoted columns and JSON metadata are merged under `metadata`.
    """
    if not ids.is_image_id(image_id):
        return None
    # Indexed look-ups of Lance: a few milliseconds each, where a DuckDB connection alone takes forty.
    filter = f"image_id = '{image_id}'"
    images = lake.scan("images", ["image_id", "width", "height", "format", "size_bytes", "source"], filter).to_pylist()
    if not images:
        return None
    predictions = lake.scan("samples", [*_OWN_COLUMNS, *lake.promoted()], filter).to_pylist()
    labels = lake.scan(
        "labels", ["event_id", "timestamp", "task", "label", "incomplete", "origin", "annotator"], filter
    ).to_pylist()
    reviews = lake.scan("reviews", _REVIEW_COLUMNS, filter).to_pylist()
    slices = lake.scan("slice_members", ["name", "version"], filter).to_pylist()
    predictions.sort(key=_age, reverse=True)
    labels.sort(key=lambda row: (row["timestamp"], row["event_id"]), reverse=True)
    classes = [row["label"] for row in labels if row["task"] == "classification"]
    return {
        **images[0],
        "truth": classes[0] if classes else None,
        "predictions": [_prediction(row) for row in predictions[:PREDICTIONS_SHOWN]],
        "labels": [_plain(row) for row in labels],
        "reviews": _newest_first(reviews),
        "slices": sorted((_plain(row) for row in slices), key=lambda row: (row["name"], row["version"])),
    }


def waiting_prediction(event: WaitingEvent, promoted: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """A prediction in the spool, in the form of `stored_prediction`. `promoted`: the lake's typed columns."""
    row = events.as_row(event.row, {**_OWN_TYPES, **promoted}) | {"prediction_id": event.event_id}
    row.setdefault("timestamp", dt.datetime.fromtimestamp(event.received, dt.UTC))
    return {"image_id": event.image_id, **_prediction(row), "reviews": []}


def stored_prediction(lake: Lake, prediction_id: str) -> dict[str, Any] | None:
    """A prediction and its verdicts, newest first, in the form of `record`; None if the lake has none of this id."""
    filter = f"prediction_id = {literal(prediction_id)}"
    rows = lake.scan("samples", [*_OWN_COLUMNS, *lake.promoted()], filter).to_pylist()
    if not rows:
        return None
    reviews = lake.scan("reviews", _REVIEW_COLUMNS, filter).to_pylist()
    return {"image_id": rows[0]["image_id"], **_prediction(rows[0]), "reviews": _newest_first(reviews)}


def _newest_first(reviews: list[dict[str, Any]]) -> list[Any]:
    return [_plain(r) for r in sorted(reviews, key=lambda r: (r["timestamp"], r["event_id"]), reverse=True)]


def _age(row: dict[str, Any]) -> tuple[bool, bool, Any]:
    """Sorts predictions after image-only rows, rows with a time after rows without, then by time."""
    return row["model"] is not None, row["timestamp"] is not None, row["timestamp"] or row["ingested_at"]


def _prediction(row: dict[str, Any]) -> dict[str, Any]:
    own = {name: row.get(name) for name in _OWN_COLUMNS if name not in ("image_id", "metadata")}
    promoted = {name: value for name, value in row.items() if name not in _OWN_COLUMNS and value is not None}
    return dict(_plain({**own, "metadata": {**_metadata(row.get("metadata")), **promoted}}))


def _metadata(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"metadata": value}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: dates as ISO 8601 UTC, bytes as text, no NaN."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case int() if abs(value) > MOST_WHOLE:
            return str(value)
        case float():
            return value if math.isfinite(value) else None
        case dt.datetime():
            utc = value.astimezone(dt.UTC) if value.tzinfo else value.replace(tzinfo=dt.UTC)
            return utc.isoformat().replace("+00:00", "Z")
        case bytes():
            return value.decode("ascii", "replace")
        case None | bool() | int() | str():
            return value
        case _:
            return str(value)
