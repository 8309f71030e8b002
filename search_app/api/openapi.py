"""Completes the OpenAPI document: problems of every route, access keys, routes outside FastAPI."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from search_app.api.problems import MEDIA_TYPE

if TYPE_CHECKING:
    from fastapi import FastAPI

_ALWAYS = (401, 403)
_WRITING = (400, 409, 413, 415, 422, 429, 503, 507)
_READING = (422, 503)
_MEANINGS = {
    400: "a header is malformed",
    401: "no access key, or a bad one",
    403: "the key lacks the scope, or the Host or Origin is not this server's",
    404: "there is nothing of that name",
    409: "a request under this Idempotency-Key is in flight, the query was cancelled, or the state does not allow it",
    412: "the content is not the one in If-Match any more",
    413: "the body is too large",
    415: "the type of the body is not accepted here",
    416: "the range begins after the last byte",
    422: "the request is wrong: `reason` and `detail` say how; nothing was stored",
    429: "more than the server accepts now; see Retry-After",
    431: "the event is too large for a header, or the query for the head of a request",
    503: "not now; see Retry-After",
    507: "the disk is nearly full; see Retry-After",
}


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str = Field(description="for people: what is wrong, and what to do")
    reason: str = Field(description="for machines: one word that never changes")


def describe(api: FastAPI, raw_paths: dict[str, Any]) -> None:
    """Completes the document that the app publishes; `raw_paths` are the entries of routes it does not serve."""
    generate = api.openapi

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = generate()
            schema["paths"] |= deepcopy(raw_paths)
            _complete(schema)
        assert api.openapi_schema is not None
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]


def _complete(schema: dict[str, Any]) -> None:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            responses = operation["responses"]
            responses.pop("422", None)
            queries = any(parameter["in"] == "query" for parameter in operation.get("parameters", ()))
            for code in sorted(_problems(path, method, responses) | ({431} if queries else set())):
                content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
                responses[str(code)] = {"description": _MEANINGS[code], "content": content}
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = ProblemDocument.model_json_schema()
    components["schemas"].pop("HTTPValidationError", None)
    components["schemas"].pop("ValidationError", None)
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "bearerFormat": "ll_<key_id>_<secret>"}
    }
    schema["security"] = [{}, {"key": []}]


def _problems(path: str, method: str, responses: dict[str, Any]) -> set[int]:
    """The status codes of problems: those of the method, and those the route declares itself."""
    if path in ("/healthz", "/readyz"):
        return {503}
    codes = {*_ALWAYS, *(_WRITING if method in ("post", "put", "delete") else _READING)}
    codes |= {404} if "{" in path else set()
    return codes | {int(code) for code in responses if int(code) >= 400}
