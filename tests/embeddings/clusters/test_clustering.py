"""Labels as scikit-learn's: 0, 1, ... and -1 for noise; every edge has an answer, and none of them holds a NaN."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embeddings.clusters import clustering as partitions
from embeddings.clusters.clustering import Partition, partition, usual_size
from embeddings.vectors import neighbours as module
from embeddings.vectors.neighbours import nearest, neighbours
from lake.errors import BadInput
from tests.embeddings.clusters.test_trees import QUICK, islands, unit


def whole(found: Partition, n: int) -> None:
    """What holds of every partition."""
    assert found.labels.shape == (n,)
    assert found.labels.dtype == np.int64
    present = sorted(set(found.labels.tolist()) - {-1})
    assert present == list(range(found.clusters))
    assert len(found.persistence) in (0, found.clusters)
    assert all(0 <= p <= 1 for p in found.persistence)
    if found.outlying is not None:
        assert found.outlying.shape == (n,)
        assert np.isfinite(found.outlying).all()


@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7])
def test_few_vectors(method: Any, n: int) -> None:
    whole(partition(islands([n], spread=0.5), method), n)


@pytest.mark.parametrize("method", [*QUICK, "evoc"])
@pytest.mark.parametrize("n", [1, 2, 40, 3_000])
def test_identical_vectors_are_one_cluster(method: Any, n: int) -> None:
    found = partition(np.tile(np.eye(8, dtype=np.float32)[0], (n, 1)), method)
    whole(found, n)
    assert (found.clusters, found.noise_share) == (1, 0)


@pytest.mark.parametrize(("method", "k"), [("auto", None), ("hdbscan", None), ("kmeans", 3)])
@pytest.mark.parametrize("n", [60, 2_500])
def test_many_copies_of_a_few_images(method: Any, k: int | None, n: int) -> None:
    """More copies than a point has neighbours: the neighbour graph falls apart, and no distance may be nought."""
    found = partition(np.eye(8, dtype=np.float32)[np.arange(n) % 3], method, k)
    whole(found, n)
    assert found.clusters == 3
    assert (found.labels == found.labels[np.arange(n) % 3]).all()


@pytest.mark.parametrize("counts", [(40, 25), (1_500, 900)])
def test_two_islands_without_a_link(counts: tuple[int, int]) -> None:
    found = partition(islands(list(counts), spread=0.01), "hdbscan")
    whole(found, sum(counts))
    assert found.clusters == 2
    assert found.noise_share < 0.05
    assert len(set(found.labels[: counts[0]].tolist()) & set(found.labels[counts[0] :].tolist()) - {-1}) == 0


def test_all_noise_is_said_by_hdbscan_and_mended_by_auto() -> None:
    scattered = unit(np.random.default_rng(0).normal(size=(300, 8)))
    alone = partition(scattered, "hdbscan", min_cluster_size=100)
    whole(alone, 300)
    assert (alone.clusters, alone.noise_share, set(alone.labels.tolist())) == (0, 1.0, {-1})
    found = partition(scattered, "auto", min_cluster_size=100)
    whole(found, 300)
    assert (found.method, found.clusters) == ("kmeans", found.params["k"])
    assert str(found.remark).startswith("HDBSCAN found 0 clusters, the largest with 0% of the images, and 100% noise")


def test_too_many_for_hdbscan_is_kmeans_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "AUTO_HDBSCAN_MOST", 50)
    monkeypatch.setattr(partitions, "HDBSCAN_MOST", 50)
    found = partition(islands([40, 20]))
    assert (found.method, found.remark) == (
        "kmeans",
        "k-means was used: 60 images are too many for HDBSCAN to be quick",
    )
    with pytest.raises(BadInput, match="60 images are too many for hdbscan"):
        partition(islands([40, 20]), "hdbscan")


def test_a_number_of_clusters_is_a_wish_for_kmeans() -> None:
    found = partition(islands([20, 20]), "auto", 5)
    assert (found.method, found.params, found.clusters, found.remark) == ("kmeans", {"k": 5}, 5, None)


def test_the_graph_finds_what_all_pairs_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole clusters are alike; a point at an edge may be noise in one and not in the other."""
    points = islands([300, 200, 100, 60], strays=60, spread=0.05)
    exact = partition(points, "hdbscan")
    monkeypatch.setattr(partitions, "EXACT_MOST", 0)
    graph = partition(points, "hdbscan")
    whole(graph, len(points))
    assert exact.clusters == graph.clusters == 4
    pairs, counts = np.unique(np.stack([exact.labels, graph.labels]), axis=1, return_counts=True)
    assert np.sort(counts)[-5:].sum() > 0.98 * len(points)  # four clusters and noise, one to one
    assert len(set(pairs[0, np.argsort(counts)[-5:]].tolist())) == 5


def test_all_pairs_is_the_package_itself() -> None:
    """Without copies, labels are those of hdbscan.HDBSCAN on the same points."""
    import hdbscan

    points = islands([120, 80, 40], strays=30, spread=0.1)
    found = partition(points, "hdbscan")
    reduced = partitions.reduce(points, 0).astype(np.float64)
    peer = hdbscan.HDBSCAN(**found.params, algorithm="generic", core_dist_n_jobs=1).fit(reduced)
    both = set(zip(found.labels.tolist(), peer.labels_.tolist(), strict=True))
    assert len(both) == found.clusters + 1  # one to one, noise to noise
    assert (-1, -1) in both


@pytest.mark.parametrize("n", [200, 2_500])
@pytest.mark.parametrize("method", QUICK)
def test_a_seed_gives_equal_labels(method: Any, n: int) -> None:
    points = islands([n // 2, n // 3], strays=n // 10, spread=0.15)
    one, other = (partition(points, method, seed=3) for _ in range(2))
    assert (one.labels == other.labels).all()
    assert one.persistence == other.persistence


@pytest.mark.soak  # it compiles for up to a minute on a machine that has not
def test_evoc_by_name() -> None:
    said: list[str] = []
    found = partition(islands([200, 150], spread=0.02), "evoc", seed=1, progress=said.append)
    whole(found, 350)
    assert found.method == "evoc"
    assert found.clusters >= 2
    assert any("compiles" in line for line in said)
    with pytest.raises(BadInput, match="12 images are too few for evoc"):
        partition(islands([12]), "evoc")


@settings(max_examples=30)
@given(
    points=hnp.arrays(np.float32, st.tuples(st.integers(0, 25), st.just(3)), elements=st.integers(-2, 2)),
    method=st.sampled_from(QUICK),
)
def test_any_points_are_partitioned(points: np.ndarray, method: Any) -> None:
    """A grid of few places: copies, lines, opposite points and the origin are common."""
    length = np.linalg.norm(points, axis=1, keepdims=True)
    whole(partition(points / np.where(length, length, 1), method), len(points))


@pytest.mark.parametrize(("n", "size"), [(2, 2), (9, 4), (100, 5), (2_624, 13), (50_000, 56)])
def test_the_usual_smallest_cluster(n: int, size: int) -> None:
    assert usual_size(n) == size


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("faiss", [True, False])
def test_neighbours_are_exact(metric: Any, faiss: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not faiss:
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
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
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    index, distance = neighbours(np.ones((30, 4), np.float32), 3)
    assert not (index == np.arange(30)[:, None]).any()
    assert all(len(set(row)) == 3 for row in index.tolist())
    assert (distance == 0).all()


def test_neighbours_may_be_nearly_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 8 in 400 places: lists hold too few for 12 neighbours, so that some are looked for in all."""
    monkeypatch.setattr(module, "PROBE_FROM", 1_000)
    monkeypatch.setattr(module, "PROBED", 1)
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


def test_neighbours_refuse_what_cannot_be() -> None:
    with pytest.raises(BadInput, match="k is 3; 3 vectors have from 1 to 2 neighbours each"):
        neighbours(np.eye(3, dtype=np.float32), 3)
    with pytest.raises(BadInput, match="k is 0"):
        nearest(np.eye(3), np.eye(3), 0)
