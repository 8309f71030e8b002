"""Maps of the lake, or of a node of a tree: images as points in two dimensions, for looking only.

A map is stored: its record in `maps`, the images' positions in `map_points`. New images are placed among the others,
which never move. Positions are in [-1, 1]; near means similar, far means nothing. `projection.py` computes positions;
this module knows the lake.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.embedders import embedder as embedders
from embeddings.maps import projection
from embeddings.vectors import principal_components
from lake.errors import BadInput
from lake.slices import cluster_nodes
from lake.sql import where as filters
from lake.storage import schema, store
from lake.storage.store import literal
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from lake.storage.store import Lake

Progress = Callable[[float], None]

# Above MAX_FIT points the projection is fitted on FIT_SAMPLE of them, and the others are placed by their neighbours.
MAX_FIT = 200_000
FIT_SAMPLE = 50_000
MAX_CORNERS = 256


@dataclass(frozen=True)
class Map:
    """The record of a map; its fields are the columns of `maps`."""

    id: str
    embedder: str
    node: str | None
    where: str | None
    method: str
    params: str | None
    seed: int
    size: int
    fitted: int
    predictions_version: int
    created_at: dt.datetime


def make(
    lake: Lake,
    *,
    embedder: str | None = None,
    where: str | None = None,
    node: str | None = None,
    seed: int = 0,
    fit_most: int = MAX_FIT,
    sample: int = FIT_SAMPLE,
    progress: Progress | None = None,
) -> Map:
    """Projects the distinct images that pass `where`, or the members of `node` (TREE/PATH), and saves the map.

    A node is projected afresh: another map's axes hide what separates its images. Above `fit_most` images the
    projection is fitted on `sample` of them, drawn by `seed`. The same images and seed give the same positions.
    `progress` receives the share that is done, 0 to 1.
    Raises BadInput for a bad filter, a node that does not exist, or if no image has a vector.
    """
    if fit_most < 1 or sample < 1:
        raise BadInput(f"fit_most is {fit_most} and sample {sample}; both must be at least 1")
    if node is not None and (where is not None or embedder is not None):
        raise BadInput("a node has its own images and embedder: give --node alone, without --where or --embedder")
    version = lake.version("samples")
    record = embedders.record_of(lake, cluster_nodes.embedder(lake, node) if node is not None else embedder)
    names, vectors = image_vectors(lake, record, _image_ids(lake, node, where))
    if not names:
        raise BadInput(f"none of these images has a {record.name} vector; run: lakeloop embed --embedder {record.name}")
    report = progress or (lambda share: None)
    points = principal_components.reduce(vectors, 0)
    fits_all = len(points) <= fit_most
    fit_rows = np.arange(len(points))
    if not fits_all:
        sampled = np.random.default_rng(seed).choice(len(points), min(sample, len(points)), replace=False)
        fit_rows = np.sort(sampled)
    positions = np.zeros((len(points), 2), np.float32)
    positions[fit_rows] = projection.project(
        points[fit_rows], seed, lambda share: report(share * (0.95 if fits_all else 0.6))
    )
    other_rows = np.setdiff1d(np.arange(len(points)), fit_rows)
    for start in range(0, len(other_rows), 50_000):
        part = other_rows[start : start + 50_000]
        positions[part] = projection.place(points[fit_rows], positions[fit_rows], points[part])
        report(0.6 + 0.35 * (start + len(part)) / len(other_rows))
    map_ = Map(
        uuid.uuid4().hex[:8],
        record.name,
        node,
        where,
        *projection.method_of(len(fit_rows)),
        seed,
        len(points),
        len(fit_rows),
        version,
        store.now(),
    )
    _insert_points(lake, map_.id, names, positions)  # before the row of `maps`, which is the commit
    lake.insert("maps", pa.Table.from_pylist([asdict(map_)], schema=schema.MAPS.arrow()))
    report(1.0)
    return map_


def place(lake: Lake, map_id: str) -> int:
    """Places the images that belong on the map and are not on it yet; returns how many. The others do not move.

    Raises BadInput if the lake does not have the map, or if all its images were erased.
    """
    map_ = get(lake, map_id)
    names, vectors = image_vectors(
        lake, embedders.record_of(lake, map_.embedder), _image_ids(lake, map_.node, map_.where)
    )
    placed_ids, positions = points(lake, map_id)
    row_of = {name: i for i, name in enumerate(placed_ids.to_pylist())}
    new = [i for i, name in enumerate(names) if name not in row_of]
    old = [i for i, name in enumerate(names) if name in row_of]
    if not new:
        return 0
    if not old:
        raise BadInput(f"map {map_id} has no images left to place others by; make a new map")
    placed_positions = positions[[row_of[names[i]] for i in old]]
    reduced = principal_components.reduce(vectors, 0)
    _insert_points(
        lake, map_id, [names[i] for i in new], projection.place(reduced[old], placed_positions, reduced[new])
    )
    return len(new)


def list(lake: Lake) -> Sequence[Map]:
    """Every map, the newest first."""
    rows = lake.dataset("maps").to_table().to_pylist()
    maps = [Map(**{name: row[name] for name in Map.__dataclass_fields__}) for row in rows]
    return sorted(maps, key=lambda map_: (map_.created_at, map_.id), reverse=True)


def get(lake: Lake, map_id: str) -> Map:
    """The map of this id. Raises BadInput if the lake does not have it."""
    for map_ in list(lake):
        if map_.id == map_id:
            return map_
    raise BadInput(f"no map {map_id!r}; make one with: lakeloop map")


def points(lake: Lake, map_id: str) -> tuple[pa.StringArray, np.ndarray]:
    """The map's image_ids, sorted (n,), and their positions, float32 (n, 2).

    If two processes placed an image at the same moment, it has two rows; always the same one counts.
    """
    rows = lake.scan("map_points", ["image_id", "x", "y"], f"map = {literal(map_id)}")
    rows = rows.sort_by([(name, "ascending") for name in ("image_id", "x", "y")])
    names = rows["image_id"].combine_chunks()
    is_first = np.ones(len(names), bool)
    if len(names) > 1:
        is_first[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    positions = np.stack([rows["x"].to_numpy(), rows["y"].to_numpy()], axis=1)[is_first]
    return names.filter(pa.array(is_first)), np.ascontiguousarray(positions, np.float32)


def inside(corners: Sequence[Sequence[float]] | np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Which positions (n, 2) are inside the polygon with 3 to 256 corners (x, y): bool (n,).

    By the even-odd rule: an area that is encircled twice is outside. Raises BadInput if the corners are not a polygon.
    """
    polygon = np.asarray(corners, np.float64)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or not 3 <= len(polygon) <= MAX_CORNERS:
        raise BadInput(f"a polygon must have 3 to {MAX_CORNERS} corners of two numbers each")
    if not np.isfinite(polygon).all():
        raise BadInput("a polygon's corners must be finite numbers")
    is_inside = np.zeros(len(positions), bool)
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    candidates = np.flatnonzero(((positions >= low) & (positions <= high)).all(axis=1))
    x, y = positions[candidates, 0].astype(np.float64), positions[candidates, 1].astype(np.float64)
    within = np.zeros(len(candidates), bool)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, 1, axis=0), strict=True):
        if y1 != y2:
            within ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    is_inside[candidates] = within
    return is_inside


def _image_ids(lake: Lake, node: str | None, where: str | None) -> Sequence[str] | None:
    if node is not None:
        return cluster_nodes.members(lake, [node])
    return None if where is None else filters.images(lake, where)


def _insert_points(lake: Lake, map_id: str, names: Sequence[str], positions: np.ndarray) -> None:
    columns = {"map": [map_id] * len(names), "image_id": names, "x": positions[:, 0], "y": positions[:, 1]}
    lake.insert("map_points", pa.table(columns, schema=schema.MAP_POINTS.arrow()))
