"""The OpenAPI document: what the framework cannot find out by itself, because bodies are read raw.

The bodies and headers of the routes that take events in, the problems any route may answer with, the access keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_app.api.routes import batch, exports, models, predictions
from search_app.api.routes.search import SearchRequest
from search_app.api.routes.sql import SavedQueryRequest, SqlRequest

if TYPE_CHECKING:
    from fastapi import FastAPI

_ID = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the bytes"}
_UUID = {"type": "string", "format": "uuid"}
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", "description": "a saved query's name"}
_QUERY = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,100}$", "description": "the `id` the query was asked with"}
_MAP = {"type": "string", "pattern": "^[0-9a-f]{8}$", "description": "a map's id"}
_MODEL = {
    "type": "string",
    "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[1-9][0-9]{0,8})?$",
    "description": "a registered model: NAME for what is promoted, NAME@V for a version",
}
_TEXT = {"type": "string"}
_BYTES = {"type": "string", "format": "binary"}
_IMAGE = {"image/*": {"schema": _BYTES}}

# What was not given may be null. Numbers are taken for text and the other way round, as in a CSV file.
_WORD = {"type": ["string", "number", "null"]}
_NUMBER = {"type": ["number", "string", "null"]}
_FRACTION = {**_NUMBER, "description": "0 to 1"}
_TIME = {"type": ["string", "number", "null"], "description": "ISO 8601 (without a zone: UTC), or seconds since 1970"}
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
_MANY = ["array", "object", "string", "null"]

_EVENT = {
    "type": "object",
    "description": "One answer of a model. Fields beyond these become metadata.",
    "required": ["model"],
    "anyOf": [{"required": [name]} for name in ("label", "scores", "boxes", "masks")],
    "properties": {
        "prediction_id": {
            "type": ["string", "null"],
            "format": "uuid",
            "description": "made by the caller; without one a retry is stored again",
        },
        "image_id": {**_ID, "type": ["string", "null"]},
        "model": {"type": ["string", "number"], "minLength": 1},
        "model_version": _WORD,
        "label": _WORD,
        "confidence": _FRACTION,
        "scores": {"type": _MANY, "description": "{label: 0 to 1}, or a list of {label, score}"},
        "boxes": {"type": _MANY, "items": _BOX},
        "masks": {"type": _MANY, "items": _MASK},
        "task": _WORD,
        "timestamp": {**_TIME, "description": f"{_TIME['description']}; default: its arrival"},
        "source": _WORD,
        "latency_ms": _NUMBER,
        "metadata": {"type": ["object", "string", "null"], "description": "a JSON object, or the text of one"},
    },
}
_NAMING = {
    **_EVENT,
    "required": ["model", "image_id"],
    "properties": {**_EVENT["properties"], "image_id": _ID},  # type: ignore[dict-item]
}
_FEEDBACK = {
    "type": "object",
    "required": ["prediction_id", "verdict"],
    "additionalProperties": False,
    "properties": {
        "prediction_id": _UUID,
        "verdict": {"enum": ["correct", "incorrect", "unsure"]},
        "comment": {"type": ["string", "null"], "maxLength": 10_000},
        "ticket": {"type": ["string", "null"], "maxLength": 1_000},
        "event_id": {"type": ["string", "null"], "format": "uuid"},
        "timestamp": _TIME,
    },
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "reason"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "for people: what was wrong, and the way out"},
        "reason": {"type": "string", "description": "for machines: one word"},
    },
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
    "description": "the same key and body within seven days: the same answer again; another body: 422; in flight: 409",
}
_HEADER = {
    "name": predictions.HEADER,
    "in": "header",
    "required": False,
    "content": {"application/json": {"schema": _EVENT}},
    "description": f"the event as ASCII JSON, when the body is an image; at most {predictions.HEADER_BYTES:,} bytes",
}
_ROWS = {
    "type": "object",
    "required": ["columns", "rows", "truncated", "seconds"],
    "properties": {
        "columns": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "type"],
                "properties": {"name": _TEXT, "type": {"type": "string", "description": "DuckDB's"}},
            },
        },
        "rows": {"type": "array", "items": {"type": "array"}},
        "truncated": {"type": "boolean", "description": "there were more rows than `max_rows`, or more than 256 MiB"},
        "seconds": {"type": "number"},
        "error": {"type": "object", "description": "what kept the rest from coming, after the first rows were sent"},
    },
}
_EXPORT = {"type": "string", "pattern": r"^[A-Za-z0-9._-]+@[0-9]+\.[a-z]+$", "maxLength": 150}
_PATHS = {
    "prediction_id": _UUID,
    "map_id": _MAP,
    "sql_id": _QUERY,
    "name": _NAME,
    "export_name": _EXPORT,
    "model": _MODEL,
}
_STORE_NOTHING = ("/v1/queries", "/v1/search", "/v1/sql", models.PATH)
_SAID = {
    "type": "object",
    "required": ["prediction_id", "image_id", "model", "model_version", "run", "task", "latency_ms"],
    "properties": {
        "prediction_id": _UUID | {"description": "new; log the answer under it"},
        "image_id": _ID,
        "model": _TEXT,
        "model_version": _TEXT,
        "run": {"type": "string", "description": "the training run that made the version"},
        "task": {"enum": ["classification", "detection", "segmentation"]},
        "label": {"type": ["string", "null"]},
        "confidence": {"type": ["number", "null"], "description": "0 to 1"},
        "scores": {"type": "array", "items": {"type": "object"}, "description": "label and score, the highest first"},
        "boxes": {"type": "array", "items": {"type": "object"}},
        "masks": {"type": "array", "items": {"type": "object"}},
        "latency_ms": {"type": "number", "description": "from the whole request to its answer, milliseconds"},
    },
}
_COMMON = (401, 403)
_WRITES = (400, 409, 413, 415, 422, 429, 503, 507)
_MEANINGS = {
    400: "a header is malformed",
    401: "no access key, or a bad one",
    403: "the key lacks the scope, or the Host or Origin is not this server's",
    404: "there is none of that name",
    409: "a request under this Idempotency-Key is in flight, or the query was cancelled",
    413: "the body is too large",
    415: "the body is of no type taken here",
    422: "the request is wrong: `reason` and `detail` say how; nothing was stored",
    429: "more than the server takes in now; see Retry-After",
    431: "the event is too large for a header",
    503: "not now; see Retry-After",
    507: "the disk is nearly full; see Retry-After",
}


def describe(api: FastAPI) -> None:
    """Completes the document the app publishes."""
    made = api.openapi

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            _complete(made())
        assert api.openapi_schema is not None
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> None:
    paths = schema["paths"]
    paths[predictions.PATH] = {
        "post": {
            "summary": "Add Prediction",
            "description": "One answer of a model with its image, safe on disk before it is answered.",
            "operationId": "add_prediction",
            "parameters": [_HEADER],
            "responses": _stored("prediction_id", "image_id"),
        }
    }
    url = {"type": "object", "required": ["url"], "properties": {"url": _TEXT}}
    bodies = {
        predictions.PATH: {**_IMAGE, "application/json": {"schema": _NAMING}},
        batch.PATH: {batch.NDJSON: {"schema": _TEXT}, batch.ARROW: {"schema": _BYTES}},
        "/v1/images": {**_IMAGE, "application/json": {"schema": url}},
        "/v1/feedback": {"application/json": {"schema": _FEEDBACK}},
        "/v1/queries": _IMAGE,
        "/v1/search": {"application/json": {"schema": SearchRequest.model_json_schema()}},
        "/v1/sql": {"application/json": {"schema": SqlRequest.model_json_schema()}},
        models.PATH: {
            **_IMAGE,
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["image_id"],
                    "properties": {"image_id": _ID},
                    "additionalProperties": False,
                }
            },
        },
    }
    for path, content in bodies.items():
        paths[path]["post"]["requestBody"] = {"required": True, "content": content}
        if path not in _STORE_NOTHING:
            paths[path]["post"].setdefault("parameters", []).append(_KEY)
    paths["/v1/images"]["post"]["responses"] = _stored("image_id")
    paths["/v1/feedback"]["post"]["responses"] = _stored("event_id")
    found = {"type": "object", "required": ["results"], "properties": {"results": _list({"type": "object"})}}
    paths["/v1/search"]["post"]["responses"] = {"200": _answer("the images, best first", found)}
    paths["/v1/search"]["post"]["responses"]["200"]["content"][batch.ARROW] = {"schema": _BYTES}
    paths[batch.PATH]["post"]["responses"] = {"200": _answer("each item's status", _items())}
    paths["/v1/sql"]["post"]["responses"] = {"200": _answer("the rows, in the order of the columns", _ROWS)}
    paths["/v1/sql"]["post"]["responses"]["200"]["content"][batch.ARROW] = {"schema": _BYTES}
    paths[models.PATH]["post"]["responses"] = {"200": _answer("the answer, which is stored nowhere", _SAID)}
    saving = paths["/v1/saved-queries/{name}"]["put"]
    saving["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": SavedQueryRequest.model_json_schema()}},
    }
    saving["responses"] = {"200": _answer("as it is saved now", {"type": "object"})}
    for path, methods in paths.items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] = _PATHS.get(parameter["name"], _ID)
            codes = [*_COMMON, *(_WRITES if method in ("post", "put") else (422, 503))]
            codes += [404] if "{" in path or path == "/v1/feedback" else []
            codes += [431] if path == predictions.PATH else []
            if path in ("/healthz", "/readyz"):
                codes = [503]
            operation["responses"].pop("422", None)
            for code in sorted(codes):
                operation["responses"][str(code)] = {
                    "description": _MEANINGS[code],
                    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
    for path in ("/v1/thumbnails/{image_id}", "/v1/queries/{query_id}", "/v1/images/{image_id}"):
        paths[path]["get"]["responses"]["200"] = {"description": "the picture", "content": _IMAGE}
        paths[path]["get"]["responses"]["304"] = {"description": "the picture the request names in If-None-Match"}
    points = paths["/v1/map-points/{map_id}"]["get"]["responses"]
    points["200"] = {"description": "the points", "content": {"application/octet-stream": {"schema": _BYTES}}}
    points["304"] = {"description": "the points the request names in If-None-Match"}
    archive = {"description": "the archive", "content": {exports.ZIP: {"schema": _BYTES}}}
    paths["/v1/exports/{export_name}"]["get"]["responses"]["200"] = archive
    text = {"text/plain": {"schema": _TEXT}}
    paths["/metrics"]["get"]["responses"]["200"] = {"description": "Prometheus' exposition format", "content": text}
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = _PROBLEM
    components["schemas"].pop("HTTPValidationError", None)
    components["schemas"].pop("ValidationError", None)
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "bearerFormat": "ll_<key_id>_<secret>"}
    }
    schema["security"] = [{}, {"key": []}]


def _stored(*ids: str) -> dict[str, Any]:
    document = {
        "type": "object",
        "required": [*ids, "status"],
        "properties": {**dict.fromkeys(ids, _TEXT), "status": {"enum": ["stored", "known"]}},
    }
    return {"201": _answer("stored, and safe on disk", document), "200": _answer("known already", document)}


def _items() -> dict[str, Any]:
    item = {
        "type": "object",
        "required": ["index", "status", "code"],
        "properties": {
            "index": {"type": "integer"},
            "prediction_id": {"type": ["string", "null"]},
            "image_id": _ID,
            "status": {"enum": ["stored", "known", "refused"]},
            "code": {"type": "integer"},
            "reason": _TEXT,
            "detail": _TEXT,
        },
    }
    return {"type": "object", "required": ["items"], "properties": {"items": _list(item)}}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _answer(meaning: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}
