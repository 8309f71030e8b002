"""GET /v1/map-points/{map_id}: the points of a map, for the browser that draws it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from search_app.api.problems import Problem
from search_app.api.schemas import BINARY, MapId
from search_app.backend.map_points import points

if TYPE_CHECKING:
    from search_app.api.service import Service

_ID = re.compile(r"[0-9a-f]{8}")


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/v1/map-points/{map_id}",
        response_class=Response,
        responses={
            200: {"description": "the points", "content": {"application/octet-stream": {"schema": BINARY}}},
            304: {"description": "the points have the ETag in If-None-Match"},
        },
    )
    def map_points(map_id: MapId, request: Request) -> Response:
        """The positions of a map's images: n times x and y (float32, little-endian), then n image ids (32 bytes each).

        Images are ordered by id. The ETag changes when new images are placed.
        """
        if not _ID.fullmatch(map_id):
            raise Problem(422, "bad_id", f"a map's id is 8 hexadecimal digits in lower case, not {map_id[:80]!r}")
        map_ = points(service.lake, map_id)
        if not len(map_.positions):
            raise Problem(404, "unknown_map", f"no map {map_id}")
        # Data behind a login must not stay in a shared cache; the browser's own cache revalidates and gets a 304.
        headers = {"Cache-Control": "private, no-cache", "ETag": f'"{map_.tag}"', "X-Content-Type-Options": "nosniff"}
        if f'"{map_.tag}"' in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(
            map_.positions.astype("<f4").tobytes() + map_.ids, media_type="application/octet-stream", headers=headers
        )

    return router
