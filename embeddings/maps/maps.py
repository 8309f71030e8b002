"""Maps: the lake, or a node of a drill-down tree, in two dimensions, for looking only.

A map is kept: its record in `maps`, where each image stands in `map_points`. New images are placed among those that
stand there, which never move. Places are in [-1, 1]; near means alike, far means nothing. How vectors become places is
in projection.py; this module knows the lake.
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

# Above FIT_MOST points the projection is fitted on SAMPLE of them, and the rest placed by their neighbours.
FIT_MOST = 200_000
SAMPLE = 50_000
MOST_CORNERS = 256


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
    fit_most: int = FIT_MOST,
    sample: int = SAMPLE,
    progress: Progress | None = None,
) -> Map:
    """Projects the distinct images that pass `where`, or the members of `node` (TREE/PATH), and keeps the result.

    A node is projected afresh: another map's axes hide what separates its images. Above `fit_most` images the
    projection is fitted on `sample` of them, drawn by `seed`. The same images and seed give the same places.
    `progress` is told the share that is done, 0 to 1.
    Raises BadInput for a bad filter, a node that does not exist, or when no image has a vector.
    """
    if fit_most < 1 or sample < 1:
        raise BadInput(f"fit_most is {fit_most} and sample {sample}; both must be at least 1")
    if node is not None and (where is not None or embedder is not None):
        raise BadInput("a node has its own images and embedder: give --node alone, without --where or --embedder")
    version = lake.version("predictions")
    record = embedders.record_of(lake, cluster_nodes.embedder(lake, node) if node is not None else embedder)
    names, vectors = image_vectors(lake, record, _wanted(lake, node, where))
    if not names:
        raise BadInput(f"no image here has a {record.name} vector; run: lakeloop embed --embedder {record.name}")
    tell = progress or (lambda share: None)
    points = principal_components.reduce(vectors, 0)
    whole = len(points) <= fit_most
    fitted = np.arange(len(points))
    if not whole:
        chosen = np.random.default_rng(seed).choice(len(points), min(sample, len(points)), replace=False)
        fitted = np.sort(chosen)
    places = np.zeros((len(points), 2), np.float32)
    places[fitted] = projection.project(points[fitted], seed, lambda share: tell(share * (0.95 if whole else 0.6)))
    rest = np.setdiff1d(np.arange(len(points)), fitted)
    for at in range(0, len(rest), 50_000):
        some = rest[at : at + 50_000]
        places[some] = projection.place(points[fitted], places[fitted], points[some])
        tell(0.6 + 0.35 * (at + len(some)) / len(rest))
    made = Map(
        uuid.uuid4().hex[:8],
        record.name,
        node,
        where,
        *projection.method_of(len(fitted)),
        seed,
        len(points),
        len(fitted),
        version,
        store.now(),
    )
    _add(lake, made.id, names, places)  # first: the row in maps is the commit
    lake.insert("maps", pa.Table.from_pylist([asdict(made)], schema=schema.MAPS.arrow()))
    tell(1.0)
    return made


def place(lake: Lake, map_id: str) -> int:
    """Places the images that belong on the map and do not stand there yet; returns how many. Nothing moves.

    Raises BadInput when there is no such map.
    """
    made = get(lake, map_id)
    names, vectors = image_vectors(lake, embedders.record_of(lake, made.embedder), _wanted(lake, made.node, made.where))
    known, places = points(lake, map_id)
    standing = {name: i for i, name in enumerate(known.to_pylist())}
    new = [i for i, name in enumerate(names) if name not in standing]
    old = [i for i, name in enumerate(names) if name in standing]
    if not new:
        return 0
    if not old:
        raise BadInput(f"none of the images of map {map_id} is left to place others by; make a new map")
    among = places[[standing[names[i]] for i in old]]
    reduced = principal_components.reduce(vectors, 0)
    _add(lake, map_id, [names[i] for i in new], projection.place(reduced[old], among, reduced[new]))
    return len(new)


def list(lake: Lake) -> Sequence[Map]:  # `maps.list` reads as what it is
    """Every map, the newest first."""
    rows = lake.dataset("maps").to_table().to_pylist()
    made = [Map(**{name: row[name] for name in Map.__dataclass_fields__}) for row in rows]
    return sorted(made, key=lambda one: (one.created_at, one.id), reverse=True)


def get(lake: Lake, map_id: str) -> Map:
    """The map of that id. Raises BadInput when there is none."""
    for made in list(lake):
        if made.id == map_id:
            return made
    raise BadInput(f"no map {map_id!r}; make one with: lakeloop map")


def points(lake: Lake, map_id: str) -> tuple[pa.StringArray, np.ndarray]:
    """The map's image_ids, sorted (n), and where they stand, float32 (n, 2).

    Two that placed the same image at the same moment made two rows of it; one of them counts, always the same.
    """
    found = lake.scan("map_points", ["image_id", "x", "y"], f"map = {literal(map_id)}")
    found = found.sort_by([(name, "ascending") for name in ("image_id", "x", "y")])
    names = found["image_id"].combine_chunks()
    first = np.ones(len(names), bool)
    if len(names) > 1:
        first[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    places = np.stack([found["x"].to_numpy(), found["y"].to_numpy()], axis=1)[first]
    return names.filter(pa.array(first)), np.ascontiguousarray(places, np.float32)


def inside(corners: Sequence[Sequence[float]] | np.ndarray, places: np.ndarray) -> np.ndarray:
    """Which of the places (n, 2) lie inside the polygon of 3 to 256 corners (x, y): bool (n,). Even-odd, so what is
    encircled twice is outside. Raises BadInput for corners that are no polygon.
    """
    polygon = np.asarray(corners, np.float64)
    if polygon.ndim != 2 or polygon.shape[1] != 2 or not 3 <= len(polygon) <= MOST_CORNERS:
        raise BadInput(f"a polygon has 3 to {MOST_CORNERS} corners of two numbers each")
    if not np.isfinite(polygon).all():
        raise BadInput("a polygon's corners are finite numbers")
    chosen = np.zeros(len(places), bool)
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    near = np.flatnonzero(((places >= low) & (places <= high)).all(axis=1))
    x, y = places[near, 0].astype(np.float64), places[near, 1].astype(np.float64)
    within = np.zeros(len(near), bool)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, 1, axis=0), strict=True):
        if y1 != y2:
            within ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    chosen[near] = within
    return chosen


def _wanted(lake: Lake, node: str | None, where: str | None) -> Sequence[str] | None:
    if node is not None:
        return cluster_nodes.members(lake, [node])
    return None if where is None else filters.images(lake, where)


def _add(lake: Lake, map_id: str, names: Sequence[str], places: np.ndarray) -> None:
    columns = {"map": [map_id] * len(names), "image_id": names, "x": places[:, 0], "y": places[:, 1]}
    lake.insert("map_points", pa.table(columns, schema=schema.MAP_POINTS.arrow()))
