"""The scope of an access key that each request needs.

A path of the API that is not in `ROUTES` needs admin, so that a new route stays closed until it is listed. Everything
else (pages, files and websocket of the app) needs read. This module knows nothing of keys.
"""

from __future__ import annotations

import re

# None: no key needed. {id} stands for one path segment or a part of one. HEAD needs the same as GET.
ROUTES: tuple[tuple[str, str, str | None], ...] = (
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("GET", "/_stcore/health", None),
    ("GET", "/metrics", "read"),
    ("POST", "/v1/predictions", "ingest"),
    ("POST", "/v1/predictions/batch", "ingest"),
    ("POST", "/v1/images", "ingest"),
    ("POST", "/v1/feedback", "feedback"),
    ("POST", "/v1/search", "read"),
    ("POST", "/v1/queries", "read"),
    ("POST", "/v1/models/{id}:predict", "read"),
    ("POST", "/v1/sql", "sql"),
    ("DELETE", "/v1/sql/{id}", "sql"),
    ("GET", "/v1/sql-history", "sql"),
    ("GET", "/v1/saved-queries", "sql"),
    ("GET", "/v1/saved-queries/{id}", "sql"),
    ("PUT", "/v1/saved-queries/{id}", "sql"),
    ("DELETE", "/v1/saved-queries/{id}", "sql"),
    ("GET", "/v1/predictions/{id}", "read"),
    ("GET", "/v1/images/{id}", "read"),
    ("GET", "/v1/thumbnails/{id}", "read"),
    ("GET", "/v1/records/{id}", "read"),
    ("GET", "/v1/queries/{id}", "read"),
    ("GET", "/v1/map-points/{id}", "read"),
    ("GET", "/v1/exports/{id}", "read"),
    ("GET", "/v1/status", "read"),
    ("GET", "/v1/arrivals", "read"),
    ("GET", "/v1/openapi.json", "read"),
    ("GET", "/v1/embedders", "read"),
    ("PUT", "/v1/embedders/{id}/threshold", "edit"),
    ("GET", "/v1/jobs", "read"),
    ("POST", "/v1/jobs", "edit"),  # the route asks for admin where the kind needs it
    ("GET", "/v1/jobs/{id}", "read"),
    ("GET", "/v1/jobs/{id}/events", "read"),
    ("POST", "/v1/jobs/{id}/cancel", "edit"),
    ("POST", "/v1/jobs/{id}/retry", "edit"),
    ("GET", "/v1/runs", "read"),
    ("POST", "/v1/runs", "admin"),
    ("POST", "/v1/runs:tune", "admin"),
    ("POST", "/v1/evaluations", "admin"),
    ("POST", "/v1/gates", "admin"),
    ("GET", "/v1/runs/{id}", "read"),
    ("GET", "/v1/runs/{id}/metrics", "read"),
    ("GET", "/v1/evaluations", "read"),
    ("GET", "/v1/evaluations/{id}", "read"),
    ("GET", "/v1/gates", "read"),
    ("GET", "/v1/gates/{id}", "read"),
    ("GET", "/v1/models", "read"),
    ("POST", "/v1/models", "admin"),
    ("GET", "/v1/models/{id}", "read"),
    ("GET", "/v1/models/{id}/versions", "read"),
    ("GET", "/v1/models/{id}/releases", "read"),
    ("GET", "/v1/models/{id}/card", "read"),
    ("POST", "/v1/models/{id}:promote", "admin"),
    ("POST", "/v1/models/{id}:rollback", "admin"),
    ("POST", "/v1/models/{id}:shadow", "admin"),
    ("POST", "/v1/models/{id}:retire", "admin"),
    ("GET", "/v1/slices", "read"),
    ("POST", "/v1/slices", "edit"),
    ("GET", "/v1/slices/{id}", "read"),
    ("DELETE", "/v1/slices/{id}", "edit"),
    ("GET", "/v1/slices/{id}/versions", "read"),
    ("GET", "/v1/slices/{id}/members", "read"),
    ("GET", "/v1/slices/{id}/diff", "read"),
    ("GET", "/v1/slices/{id}/manifest", "read"),
    ("GET", "/v1/slices/{id}/images", "read"),
    ("POST", "/v1/slices/{id}/freeze", "edit"),
    ("PUT", "/v1/slices/{id}/role", "edit"),
    ("PUT", "/v1/slices/{id}/tags/{id}", "edit"),
    ("DELETE", "/v1/slices/{id}/tags/{id}", "edit"),
    ("GET", "/v1/labels", "read"),
    ("POST", "/v1/labels", "edit"),
    ("GET", "/v1/clusters", "read"),
    ("GET", "/v1/clusters/{id}", "read"),
    ("GET", "/v1/clusters/{id}/members", "read"),
    ("POST", "/v1/clusters/{id}/open", "edit"),
    ("GET", "/v1/isolate", "read"),
    ("POST", "/v1/isolate", "edit"),
    ("GET", "/v1/isolate/{id}", "read"),
    ("POST", "/v1/isolate/{id}/marks", "edit"),
    ("GET", "/v1/isolate/{id}/found", "read"),
    ("POST", "/v1/isolate/{id}/slice", "edit"),
    ("GET", "/v1/metrics", "read"),
    ("GET", "/v1/metrics/dimensions", "read"),
    ("GET", "/v1/metrics/calibration", "read"),
    ("GET", "/v1/metrics/confusion", "read"),
    ("GET", "/v1/metrics/sizes", "read"),
    ("GET", "/v1/metrics/compare", "read"),
    ("POST", "/v1/discover", "read"),
)
_EXACT = {(method, path): scope for method, path, scope in ROUTES if "{id}" not in path}
_PATTERNS = [
    (method, re.compile("[^/]+".join(map(re.escape, path.split("{id}")))), scope)
    for method, path, scope in ROUTES
    if "{id}" in path
]
_AT_ROOT = frozenset({"/healthz", "/readyz", "/metrics", "/v1"})


def scope_of(method: str, path: str) -> str | None:
    """The scope that a request needs; None if it needs no key. The method of a websocket is WEBSOCKET."""
    method = "GET" if method == "HEAD" else method
    if (method, path) in _EXACT:
        return _EXACT[method, path]
    if path.startswith("/v1/") or path in _AT_ROOT:
        scopes = (scope for verb, pattern, scope in _PATTERNS if verb == method and pattern.fullmatch(path))
        return next(scopes, "admin")
    return "read"
