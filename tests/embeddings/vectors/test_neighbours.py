"""Nearest neighbours, exact and approximate, with FAISS and without."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from embeddings.vectors import neighbours as module
from embeddings.vectors.neighbours import nearest, neighbours
from lake.errors import BadInput
from tests.embeddings.islands import unit


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("faiss", [True, False])
def test_neighbours_are_exact(metric: Any, faiss: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not faiss:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "BLOCK", 32)
    points = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    index, distance = neighbours(points, 7, metric=metric)
    compared = unit(points) if metric == "cosine" else points
    far = np.linalg.norm(compared[:, None] - compared, axis=2)
    far = far**2 / 2 if metric == "cosine" else far
    np.fill_diagonal(far, np.inf)
    assert (index == np.argsort(far, axis=1)[:, :7]).all()
    assert np.allclose(distance, np.sort(far, axis=1)[:, :7], atol=1e-5)


@pytest.mark.parametrize("faiss", [True, False])
def test_a_vector_is_not_its_own_neighbour_but_a_copy_is(faiss: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not faiss:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    index, distance = neighbours(np.ones((30, 4), np.float32), 3)
    assert not (index == np.arange(30)[:, None]).any()
    assert all(len(set(row)) == 3 for row in index.tolist())
    assert (distance == 0).all()


def test_approximate_neighbours_are_nearly_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 8 in 400 places: lists hold too few for 12 neighbours, so that some are looked for in all."""
    monkeypatch.setattr(module, "APPROXIMATE_FROM", 1_000)
    monkeypatch.setattr(module, "PROBED_LISTS", 1)
    rng = np.random.default_rng(0)
    points = np.repeat(rng.normal(size=(400, 10)), 8, axis=0) + rng.normal(0, 1e-2, (3_200, 10))
    exact, _ = neighbours(points.astype(np.float32), 12)
    index, distance = neighbours(points.astype(np.float32), 12, exact=False)
    again, _ = neighbours(points.astype(np.float32), 12, exact=False)
    assert (index == again).all()
    assert (index >= 0).all()
    assert all(len(set(row)) == 12 for row in index.tolist())
    assert (np.diff(distance, axis=1) >= 0).all()
    assert (index[:, :7] == exact[:, :7]).mean() > 0.9


def test_bad_values_of_k_are_refused() -> None:
    with pytest.raises(BadInput, match="k is 3; it must be from 1 to 2, since there are 3 vectors"):
        neighbours(np.eye(3, dtype=np.float32), 3)
    with pytest.raises(BadInput, match="k is 0"):
        nearest(np.eye(3), np.eye(3), 0)
