"""The route that gives a map's points to the browser that draws it."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from fastapi import APIRouter, Request, Response

from search_app.api.problems import Problem

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from search_app.api.service import Service

_ID = re.compile(r"[0-9a-f]{8}")


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/map-points/{map_id}", response_class=Response)
    def map_points(map_id: str, request: Request) -> Response:
        """Where a map's images stand: n times x and y (float32, little-endian), then n image ids (32 bytes each).

        Images come in the order of their ids. The ETag changes when new images are placed.
        """
        if not _ID.fullmatch(map_id):
            raise Problem(422, "bad_id", f"a map's id is 8 hexadecimal digits in lower case, not {map_id[:80]!r}")
        found = points(service.lake, map_id)
        if not len(found.places):
            raise Problem(404, "unknown_map", f"no map {map_id}")
        # What is private to a login must not stay in a shared cache; the browser's own asks again and gets a 304.
        headers = {"Cache-Control": "private, no-cache", "ETag": f'"{found.tag}"', "X-Content-Type-Options": "nosniff"}
        if f'"{found.tag}"' in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(
            found.places.astype("<f4").tobytes() + found.ids, media_type="application/octet-stream", headers=headers
        )

    return router


@dataclass(frozen=True)
class Points:
    """Where a map's images stand, float32 (n, 2), their ids, 32 bytes each, and a tag of them both."""

    places: np.ndarray
    ids: bytes
    tag: str

    def names(self, numbers: np.ndarray) -> list[str]:
        """The image_ids of some of the points."""
        return [self.ids[32 * i : 32 * i + 32].hex() for i in numbers.tolist()]


def points(lake: Lake, map_id: str) -> Points:
    """The map's points in the order of image_ids; kept until somebody writes to `map_points`."""
    return _points(lake, map_id, lake.version("map_points"))


@functools.lru_cache(maxsize=4)
def _points(lake: Lake, map_id: str, version: int) -> Points:
    from embeddings.maps import maps

    names, places = maps.points(lake, map_id)
    ids = bytes.fromhex("".join(names.to_pylist()))
    digest = hashlib.sha256(places.tobytes() + ids)
    return Points(places, ids, digest.hexdigest()[:16])
