"""JSON Schemas of what the framework cannot see: bodies that are read raw, headers, path parameters."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Path

from lake.prediction_logs import prediction_rows
from lake.spool import events

UUID: dict[str, Any] = {"type": "string", "format": "uuid"}
TEXT: dict[str, Any] = {"type": "string"}
BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
IMAGE = {"image/*": {"schema": BINARY}}
IMAGE_ID: dict[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the bytes"}

# Fields that are left out may be null. Numbers are accepted as text and text as numbers, as in a CSV file.
_WORD = {"type": ["string", "number", "null"]}
_NUMBER = {"type": ["number", "string", "null"]}
_FRACTION = {**_NUMBER, "description": "0 to 1; less than 0.0001 outside of it is set to 0 or 1"}
_TIME = {
    "type": ["string", "number", "null"],
    "description": "ISO 8601 (without a zone: UTC), digits of a calendar day, or seconds to nanoseconds since 1970",
}
_SIDES = {"type": "array", "minItems": 4, "maxItems": 4, "description": "x, y (top left), width, height in pixels"}
_BOX = {"type": "object", "properties": {"label": _WORD, "score": _FRACTION, "bbox": {**_SIDES, "items": _NUMBER}}}
_SIZE = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
_MASK = {
    "type": "object",
    "properties": {
        "label": _WORD,
        "score": _FRACTION,
        "size": {**_SIZE, "description": "height, width"},
        "counts": {"type": ["string", "array"], "items": {"type": "integer"}, "description": "COCO RLE"},
    },
}
_LIST = ["array", "object", "string", "null"]

EVENT: dict[str, Any] = {
    "type": "object",
    "description": "One prediction of a model. Fields have other names, too: docs/prediction-logs.md. All else becomes "
    "metadata.",
    "required": ["model"],
    "anyOf": [{"required": [name]} for name in prediction_rows.CONTENT],
    "properties": {
        "prediction_id": {
            "type": ["string", "null"],
            "format": "uuid",
            "description": "made by the caller; without one a retry is stored again",
        },
        "image_id": {**IMAGE_ID, "type": ["string", "null"]},
        "model": {"type": ["string", "number"], "minLength": 1},
        "model_version": _WORD,
        "label": _WORD,
        "confidence": _FRACTION,
        "scores": {"type": _LIST, "description": "{label: 0 to 1}, or a list of {label, score}"},
        "boxes": {"type": _LIST, "items": _BOX},
        "masks": {"type": _LIST, "items": _MASK},
        "task": {
            **_WORD,
            "description": f"one of {', '.join(prediction_rows.TASKS)}; default: from the fields present",
        },
        "timestamp": {**_TIME, "description": f"{_TIME['description']}; default: its arrival"},
        "source": _WORD,
        "latency_ms": {**_NUMBER, "minimum": 0},
        "metadata": {"type": ["object", "string", "null"], "description": "a JSON object, or the text of one"},
    },
}
EVENT_NAMING_ITS_IMAGE = {
    **EVENT,
    "required": ["model", "image_id"],
    "properties": {**EVENT["properties"], "image_id": IMAGE_ID},
}
FEEDBACK = {
    "type": "object",
    "required": ["prediction_id", "verdict"],
    "additionalProperties": False,
    "properties": {
        "prediction_id": UUID,
        "verdict": {"enum": [*events.VERDICTS]},
        "comment": {"type": ["string", "null"], "maxLength": events.TEXT_CHARACTERS},
        "ticket": {"type": ["string", "null"], "maxLength": events.TICKET_CHARACTERS},
        "event_id": {"type": ["string", "null"], "format": "uuid"},
        "timestamp": _TIME,
    },
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
    "description": "the same key and body within seven days: the same response again; another body: 422; while the "
    "first is in flight: 409",
}


def request(content: dict[str, Any], storing: bool = False) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself; one that stores accepts an Idempotency-Key."""
    extra: dict[str, Any] = {"requestBody": {"required": True, "content": content}}
    return extra | ({"parameters": [IDEMPOTENCY_KEY]} if storing else {})


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _path(pattern: str, description: str, **more: Any) -> Any:
    # Documented, not validated: the routes refuse bad values with a reason of their own.
    return Path(description=description, json_schema_extra={"pattern": pattern, **more})


ImageId = Annotated[str, _path("^[0-9a-f]{64}$", "SHA-256 of the bytes")]
PredictionId = Annotated[str, Path(json_schema_extra={"format": "uuid"})]
MapId = Annotated[str, _path("^[0-9a-f]{8}$", "a map's id")]
SqlId = Annotated[str, _path("^[A-Za-z0-9_-]{1,100}$", "the `id` that the query was sent with")]
QueryName = Annotated[str, _path("^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", "a saved query's name")]
ExportName = Annotated[str, _path(r"^[A-Za-z0-9._-]+@[0-9]+\.[a-z]+$", "an export's name", maxLength=150)]
RunId = Annotated[str, _path("^[0-9a-f]{1,8}$", "a run's id, or a unique beginning of it")]
RecordId = Annotated[str, _path("^[0-9a-f]{8}$", "8 hexadecimal digits")]
ModelName = Annotated[
    str,
    _path(
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[1-9][0-9]{0,8})?$",
        "a registered model: NAME for its promoted version, NAME@V for a version",
    ),
]
SliceName = Annotated[
    str,
    _path(
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[A-Za-z0-9][A-Za-z0-9._-]{0,99})?$",
        "a slice: NAME for its newest version, NAME@VERSION or NAME@TAG",
    ),
]
SliceTag = Annotated[str, _path("^[A-Za-z][A-Za-z0-9._-]{0,99}$", "a tag, which begins with a letter")]

TreeId = Annotated[str, _path("^[0-9a-f]{8}$", "a tree's id")]
SearchId = Annotated[str, _path("^[0-9a-f]{8}$", "an active search's id")]


def example(value: Any) -> dict[str, Any]:
    """`content` of a response: JSON, with an example."""
    return {"application/json": {"schema": {}, "example": value}}


def documented(value: Any) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that returns JSON like this example."""
    return {200: {"description": "the result", "content": example(value)}}


def page_of(item: Any) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that returns a page of items like this example."""
    schema = {
        "type": "object",
        "required": ["items", "next"],
        "properties": {
            "items": {"type": "array", "items": {}},
            "next": {"type": ["string", "null"], "description": "`cursor` of the next page; null: this is the last"},
        },
    }
    content = {"application/json": {"schema": schema, "example": {"items": [item], "next": None}}}
    return {200: {"description": "a page", "content": content}}


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
