"""Maps: like beside like, the same again for the same seed, and nothing moves when something comes."""

from pathlib import Path

import numpy as np
import pytest

from embeddings.backfill.vector_columns import store_vectors
from embeddings.clusters.drilldown import cluster
from embeddings.maps import maps, projection
from embeddings.vectors import principal_components
from embeddings.vectors.neighbours import neighbours
from lake.errors import BadInput
from lake.open_lake import OpenLake
from tests.conftest import MakeLake
from tests.embeddings.islands import islands, lake_of, unit
from tests.lake.prediction_rows import add, image


def positions_of(lk: OpenLake, map_: maps.Map) -> dict[str, tuple[float, float]]:
    names, positions = maps.points(lk, map_.id)
    return dict(zip(names.to_pylist(), map(tuple, positions.tolist()), strict=True))


def neighbours_kept(near: np.ndarray, points: np.ndarray) -> float:
    """The share of each point's neighbours (n, k, by number) that are among its k nearest on the map, 0 to 1."""
    nearest_on_map, _ = neighbours(points, near.shape[1])
    return float((near[:, :, None] == nearest_on_map[:, None, :]).any(axis=2).mean())


def arrive(lk: OpenLake, first: int, vectors: np.ndarray) -> None:
    add(lk, [{"image_id": image(first + i), "label": "c"} for i in range(len(vectors))])
    store_vectors(lk, "emb_random", {image(first + i): vector for i, vector in enumerate(vectors)})


def test_islands_and_neighbourhoods_are_preserved() -> None:
    points = islands([100, 60, 40])
    near, _ = neighbours(points, 10)
    positions = projection.project(principal_components.reduce(points, 0))
    assert positions.dtype == np.float32
    assert np.abs(positions).max() == 1.0
    island = np.repeat([0, 1, 2], [100, 60, 40])
    nearest, _ = neighbours(positions, 5)
    assert (island[nearest] == island[:, None]).mean() > 0.99
    assert neighbours_kept(near, positions) > 0.5
    first_two_components = principal_components.reduce(points, 0, 2)
    assert neighbours_kept(near, first_two_components) < 0.4


def test_the_same_seed_gives_the_same_map(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([40, 30]))
    first, again, other = maps.make(lk, seed=3), maps.make(lk, seed=3), maps.make(lk, seed=4)
    assert positions_of(lk, first) == positions_of(lk, again) != positions_of(lk, other)
    assert [map_.id for map_ in maps.list(lk)] == [other.id, again.id, first.id]
    assert maps.get(lk, first.id) == first
    assert (first.method, first.size, first.fitted, first.seed) == ("tsne", 70, 70, 3)


def test_new_images_are_placed_and_nothing_moves(make_lake: MakeLake) -> None:
    points = islands([44, 30])
    lk = lake_of(make_lake, points[4:])
    map_ = maps.make(lk)
    before = positions_of(lk, map_)
    assert maps.place(lk, map_.id) == 0
    arrive(lk, 100, points[:4])
    assert maps.place(lk, map_.id) == 4
    after = positions_of(lk, map_)
    assert {name: after[name] for name in before} == before
    home = np.array([before[image(i)] for i in range(40)])
    away = np.array([before[image(i)] for i in range(40, 70)])
    for i in range(100, 104):  # they come to the first island
        x, y = after[image(i)]
        assert np.hypot(*(home - (x, y)).T).min() < np.hypot(*(away - (x, y)).T).min()
    assert maps.place(lk, map_.id) == 0
    assert positions_of(lk, map_) == after


def test_a_large_lake_is_fitted_on_a_sample(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([90, 60]))
    shares: list[float] = []
    map_ = maps.make(lk, fit_most=149, sample=50, progress=shares.append)
    assert (map_.size, map_.fitted) == (150, 50)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    positions = np.array([positions_of(lk, map_)[image(i)] for i in range(150)])
    nearest, _ = neighbours(positions, 5)
    island = np.repeat([0, 1], [90, 60])
    assert (island[nearest] == island[:, None]).mean() > 0.99
    assert maps.make(lk, fit_most=150, sample=50).fitted == 150


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_few_images_have_a_map(make_lake: MakeLake, count) -> None:
    lk = lake_of(make_lake, islands([count], spread=0.2))
    map_ = maps.make(lk)
    assert map_.size == count
    assert map_.method == ("tsne" if count >= projection.MIN_POINTS else "pca")
    positions = np.array([*positions_of(lk, map_).values()])
    assert np.isfinite(positions).all()
    assert len(np.unique(positions, axis=0)) == count
    arrive(lk, 100, islands([1], seed=5))
    assert maps.place(lk, map_.id) == 1


def test_copies_of_images_have_a_map(make_lake: MakeLake) -> None:
    same = lake_of(make_lake, unit(np.ones((40, 8))), "same")
    assert {*positions_of(same, maps.make(same)).values()} == {(0.0, 0.0)}
    crowd = lake_of(make_lake, np.repeat(islands([4]), 20, axis=0), "crowd")
    positions = np.array([*positions_of(crowd, maps.make(crowd)).values()])
    assert np.isfinite(positions).all()
    assert np.abs(positions).max() == 1.0


def test_only_images_with_a_vector_that_pass(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 10]))
    add(lk, [{"image_id": image("without a vector"), "label": "a"}])
    assert set(positions_of(lk, maps.make(lk, where="label = 'a'"))) == {image(i) for i in range(0, 30, 2)}
    tree = cluster(lk, method="kmeans", k=2)
    map_ = maps.make(lk, node=f"{tree.tree}/1")
    assert set(positions_of(lk, map_)) == {image(i) for i in range(20, 30)}
    arrive(lk, 100, islands([2]))
    assert maps.place(lk, map_.id) == 0  # they are of no node yet
    for reason, options in (
        ("none of these images", {"where": "label = 'z'"}),
        ("no node", {"node": "nowhere/0"}),
        ("give --node alone", {"node": f"{tree.tree}/1", "where": "true"}),
        ("at least 1", {"sample": 0}),
        ("colour", {"where": "colour = 1"}),
    ):
        with pytest.raises(BadInput, match=reason):
            maps.make(lk, **options)
    with pytest.raises(BadInput, match="no map"):
        maps.place(lk, "none")


def test_a_lasso_selects_the_positions_inside_it() -> None:
    positions = np.array([[0, 0], [0.5, 0.5], [0.7, 0.1], [-0.5, 0]], np.float32)
    triangle = [(-0.1, -0.1), (1, -0.1), (0, 1)]
    assert maps.inside(triangle, positions).tolist() == [True, False, True, False]
    assert maps.inside(triangle[::-1], positions).tolist() == [True, False, True, False]
    hollow = [
        (-1, -1),
        (1, -1),
        (1, 1),
        (-1, 1),
        (-1, -1),
        (-0.2, -0.2),
        (0.2, -0.2),
        (0.2, 0.2),
        (-0.2, 0.2),
        (-0.2, -0.2),
    ]
    assert maps.inside(hollow, positions).tolist() == [False, True, True, True]
    for corners in ([], [(0, 0), (1, 1)], [(0, 0)] * 257, [(0, 0, 0)] * 3, [(0, float("nan")), (1, 1), (0, 1)]):
        with pytest.raises(BadInput, match="polygon"):
            maps.inside(corners, positions)


@pytest.mark.parametrize(("spread", "most"), [(1, 0.02), (12, 0.12)])
def test_the_repulsion_on_the_grid_is_nearly_the_sum_over_all_pairs(spread, most) -> None:
    positions = np.random.default_rng(0).normal(0, spread, (1_500, 2)).astype(np.float32)
    exact = projection._repulsion_of_pairs(positions)
    assert np.linalg.norm(projection._repulsion(positions) - exact) < most * np.linalg.norm(exact)


def test_a_map_survives_being_opened_elsewhere(make_lake: MakeLake, tmp_path: Path) -> None:
    import lake

    lk = lake_of(make_lake, islands([12]))
    map_ = maps.make(lk)
    assert positions_of(lake.open(lk.uri), map_) == positions_of(lk, map_)
