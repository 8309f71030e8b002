"""Reads and caches the points of the last few maps until the table `map_points` changes."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lake.storage.store import Lake


@dataclass(frozen=True)
class Points:
    """The positions of a map's images, float32 (n, 2), their ids, 32 bytes each, and a tag of both."""

    positions: np.ndarray
    ids: bytes
    tag: str

    def names(self, numbers: np.ndarray) -> list[str]:
        """The image_ids of the points with these numbers."""
        return [self.ids[32 * i : 32 * i + 32].hex() for i in numbers.tolist()]


def points(lake: Lake, map_id: str) -> Points:
    """The map's points in the order of image_ids; cached until the table `map_points` changes."""
    return _points(lake, map_id, lake.version("map_points"))


@functools.lru_cache(maxsize=4)
def _points(lake: Lake, map_id: str, version: int) -> Points:
    from embeddings.maps import maps

    names, positions = maps.points(lake, map_id)
    ids = bytes.fromhex("".join(names.to_pylist()))
    digest = hashlib.sha256(positions.tobytes() + ids)
    return Points(positions, ids, digest.hexdigest()[:16])
