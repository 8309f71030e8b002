"""Points around a few axes, and lakes of images that have them as vectors."""

from typing import Any

import numpy as np

from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.embedder import bind, record_of
from lake.open_lake import OpenLake
from tests.conftest import MakeLake
from tests.embeddings.colour import Random
from tests.lake.prediction_rows import add, image


def unit(points: np.ndarray) -> np.ndarray:
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def islands(counts: list[int], strays: int = 0, spread: float = 0.03, seed: int = 0) -> np.ndarray:
    """Points around different axes, one after the other, then strays that belong to none."""
    rng = np.random.default_rng(seed)
    around = [np.eye(8)[i] + rng.normal(0, spread, (n, 8)) for i, n in enumerate(counts)]
    return unit(np.concatenate([*around, rng.normal(size=(strays, 8))]))


def lake_of(make_lake: MakeLake, points: np.ndarray, name: str = "lake") -> OpenLake:
    """A lake where the i-th image has the i-th vector, a label a or b in turn, and some have two rows."""
    lk = make_lake(name, embedders=["random"])
    rows: list[dict[str, Any]] = [{"image_id": image(i), "label": "ab"[i % 2]} for i in range(len(points))]
    add(lk, rows + rows[::5])
    bind(lk, record_of(lk, None), Random())
    store_vectors(lk, "emb_random", {image(i): points[i] for i in range(len(points))})
    return lk
