"""Polygons to masks and back.

`fill` gives pycocotools' pixels exactly (github.com/cocodataset/cocoapi, common/maskApi.c, rleFrPoly): the boundary is
followed at five times the resolution, and every crossing of a column's centre toggles the rest of that column.
`outline` is its inverse on whole pixels: one closed line through the corners of all parts and holes. Bridges join them;
each is walked in both directions, so that it encloses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lake.errors import BadInput
from lake.regions import masks

_SCALE = 5
# Points on a boundary: 200 MB of memory while a polygon is filled.
_MOST_POINTS = 5_000_000

Point = tuple[float, float]


def fill(polygons: Sequence[Sequence[float]], height: int, width: int) -> str:
    """Compressed counts of the union of polygons [x1, y1, x2, y2, ...] in pixels. Raises BadInput."""
    if len(polygons) == 1:
        return masks.compress(_runs(polygons[0], height, width))
    union = np.zeros(height * width, bool)
    for polygon in polygons:
        runs = _runs(polygon, height, width)
        union |= np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return masks.encode(union.reshape((height, width), order="F"))


def _runs(polygon: Sequence[float], height: int, width: int) -> list[int]:
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput("a polygon must be a list of numbers x, y, x, y, ...") from error
    if points.ndim != 1 or len(points) < 6 or len(points) % 2:
        raise BadInput(f"a polygon needs at least three points x, y; this one has {points.size} numbers")
    if not np.isfinite(points).all():
        raise BadInput("a polygon has a coordinate that is not a finite number")
    reach = 2.0 * max(height, width) + 64
    if not (np.abs(points) <= reach).all():
        raise BadInput("a polygon's point is farther outside than the size of the image")
    corner = np.trunc(points.reshape(-1, 2) * _SCALE + 0.5).astype(np.int64)
    ends = np.roll(corner, -1, axis=0)
    steps = np.abs(ends - corner).max(axis=1)
    if steps.sum() > _MOST_POINTS:
        raise BadInput(f"a polygon of {len(corner):,} points whose outline is {steps.sum() // _SCALE:,} pixels long")
    moved = steps > 0
    corner, ends, steps = corner[moved], ends[moved], steps[moved]
    if not len(corner):
        return [height * width]
    # Every boundary point, edge after edge, both ends included.
    edge = np.repeat(np.arange(len(corner)), steps + 1)
    first = np.concatenate(([0], np.cumsum(steps + 1)[:-1]))
    along = np.arange(len(edge)) - first[edge]
    flat = np.abs(ends[:, 0] - corner[:, 0]) >= np.abs(ends[:, 1] - corner[:, 1])
    lead = np.where(flat, 0, 1)
    rows = np.arange(len(corner))
    # An edge is walked from its lower coordinate, as the original does: rounding depends on it.
    back = corner[rows, lead] > ends[rows, lead]
    start, stop = np.where(back[:, None], ends, corner), np.where(back[:, None], corner, ends)
    slope = (stop[rows, 1 - lead] - start[rows, 1 - lead]) / (stop[rows, lead] - start[rows, lead])
    step = np.where(back[edge], steps[edge] - along, along)
    leading = step + start[edge, lead[edge]]
    other = np.trunc(start[edge, 1 - lead[edge]] + slope[edge] * step + 0.5).astype(np.int64)
    u, v = np.where(flat[edge], leading, other), np.where(flat[edge], other, leading)
    cross = np.flatnonzero(u[1:] != u[:-1]) + 1
    x = np.where(u[cross] < u[cross - 1], u[cross], u[cross] - 1)
    # The centre of column c is at 5c + 2.
    inside = ((x - 2) % _SCALE == 0) & (x >= 2) & ((x - 2) // _SCALE <= width - 1)
    y = (np.minimum(v[cross], v[cross - 1])[inside] + 0.5) / _SCALE - 0.5
    at = (x[inside] - 2) // _SCALE * height + np.ceil(np.clip(y, 0, height)).astype(np.int64)
    places, times = np.unique(at, return_counts=True)
    toggles = places[(times % 2 == 1) & (places < height * width)]
    runs: list[int] = np.diff(np.concatenate(([0], toggles, [height * width]))).tolist()
    return runs


def outline(mask: np.ndarray) -> list[Point]:
    """One closed line of pixel corners (x, y) around all of a boolean (height, width) mask; [] if it is empty."""
    rings = _rings(np.asarray(mask, bool))
    if not rings:
        return []
    # A bridge in both directions joins each ring to the first point.
    line = list(rings[0])
    for ring in rings[1:]:
        line += [rings[0][0], *ring, ring[0]]
    return line


def _rings(mask: np.ndarray) -> list[list[Point]]:
    """The closed lines between inside and outside, corners only; the mask is to the right of each step."""
    padded = np.pad(mask, 1).astype(np.int8)
    # after[corner]: where the steps that begin at a corner lead.
    after: dict[tuple[int, int], list[tuple[int, int]]] = {}
    across = np.diff(padded, axis=0)[:, 1:-1]
    for y, x in np.argwhere(across).tolist():
        a, b = ((x, y), (x + 1, y)) if across[y, x] > 0 else ((x + 1, y), (x, y))
        after.setdefault(a, []).append(b)
    down = np.diff(padded, axis=1)[1:-1]
    for y, x in np.argwhere(down).tolist():
        a, b = ((x, y + 1), (x, y)) if down[y, x] > 0 else ((x, y), (x, y + 1))
        after.setdefault(a, []).append(b)
    rings: list[list[Point]] = []
    while after:
        point = first = next(iter(after))
        steps: list[tuple[int, int]] = []
        while True:
            targets = after[point]
            target = targets.pop()
            if not targets:
                del after[point]
            steps.append(point)
            point = target
            if point == first:
                break
        rings.append([p for p, before, behind in _triples(steps) if not _straight(before, p, behind)])
    return rings


def _triples(steps: list[tuple[int, int]]) -> list[tuple[Point, Point, Point]]:
    return [(p, steps[i - 1], steps[(i + 1) % len(steps)]) for i, p in enumerate(steps)]


def _straight(a: Point, b: Point, c: Point) -> bool:
    return math.isclose((b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0]), 0.0)
