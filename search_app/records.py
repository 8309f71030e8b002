"""Everything the lake knows about one image, as one JSON-ready dictionary.

Only reads, one image at a time, by SQL. It knows nothing of HTTP or screens; the browser's detail panel and
`GET /v1/records/{image_id}` show what it returns.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lake.store import Lake

PREDICTIONS_SHOWN = 50
_OWN_COLUMNS = (
    "prediction_id image_id timestamp model model_version task label confidence scores boxes masks source"
    " latency_ms metadata ingested_at"
).split()

_IMAGE = "SELECT image_id, width, height, format, source FROM images WHERE image_id = ?"
_PREDICTIONS = f"""
    SELECT COLUMNS(lambda name: NOT starts_with(name, 'emb_')) FROM predictions WHERE image_id = ?
    ORDER BY model IS NULL, timestamp DESC NULLS LAST, ingested_at DESC LIMIT {PREDICTIONS_SHOWN}"""
_LABELS = """
    SELECT timestamp, task, label, origin, annotator FROM labels WHERE image_id = ?
    ORDER BY timestamp DESC NULLS LAST"""
_TRUTH = "SELECT label FROM labels_current WHERE image_id = ? AND task = 'classification' LIMIT 1"
_SLICES = "SELECT DISTINCT name, version FROM slice_members WHERE image_id = ? ORDER BY name, version"


def record(lake: Lake, image_id: str) -> dict[str, Any] | None:
    """The image, its predictions (newest first, at most 50), labels, current truth and slices.

    None when the lake has no such image. Times are ISO 8601 UTC, NaN and infinity are null. Boxes are in
    pixels of the stored image; promoted columns and JSON metadata are merged under `metadata`.
    """
    images = lake.sql(_IMAGE, [image_id]).to_pylist()
    if not images:
        return None
    truth = lake.sql(_TRUTH, [image_id]).to_pylist()
    predictions = [_prediction(row) for row in lake.sql(_PREDICTIONS, [image_id]).to_pylist()]
    return {
        **images[0],
        "truth": truth[0]["label"] if truth else None,
        "predictions": predictions,
        "labels": [_plain(row) for row in lake.sql(_LABELS, [image_id]).to_pylist()],
        "slices": [_plain(row) for row in lake.sql(_SLICES, [image_id]).to_pylist()],
    }


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
    """`value` with only what JSON can say: dates as ISO 8601 UTC, bytes as text, no NaN."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
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
