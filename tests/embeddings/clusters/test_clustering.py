"""Labels as scikit-learn's: 0, 1, ... and -1 for noise; every edge has an answer, and none of them holds a NaN."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embeddings.clusters import clustering as module
from embeddings.clusters.clustering import Clustering, cluster_vectors, default_min_cluster_size
from embeddings.vectors import principal_components
from lake.errors import BadInput
from tests.embeddings.clusters.test_drilldown import QUICK
from tests.embeddings.islands import islands, unit


def check(clustering: Clustering, n: int) -> None:
    """Asserts what is true of every clustering of n vectors."""
    assert clustering.labels.shape == (n,)
    assert clustering.labels.dtype == np.int64
    present = sorted(set(clustering.labels.tolist()) - {-1})
    assert present == list(range(clustering.n_clusters))
    assert len(clustering.persistence) in (0, clustering.n_clusters)
    assert all(0 <= p <= 1 for p in clustering.persistence)
    if clustering.outlier_scores is not None:
        assert clustering.outlier_scores.shape == (n,)
        assert np.isfinite(clustering.outlier_scores).all()


@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7])
def test_few_vectors(method: Any, n: int) -> None:
    check(cluster_vectors(islands([n], spread=0.5), method), n)


@pytest.mark.parametrize("method", [*QUICK, "evoc"])
@pytest.mark.parametrize("n", [1, 2, 40, 3_000])
def test_identical_vectors_are_one_cluster(method: Any, n: int) -> None:
    clustering = cluster_vectors(np.tile(np.eye(8, dtype=np.float32)[0], (n, 1)), method)
    check(clustering, n)
    assert (clustering.n_clusters, clustering.noise_share) == (1, 0)


@pytest.mark.parametrize(("method", "k"), [("auto", None), ("hdbscan", None), ("kmeans", 3)])
@pytest.mark.parametrize("n", [60, 2_500])
def test_many_copies_of_a_few_images(method: Any, k: int | None, n: int) -> None:
    """More copies than a point has neighbours: the neighbour graph falls apart, and no distance may be nought."""
    clustering = cluster_vectors(np.eye(8, dtype=np.float32)[np.arange(n) % 3], method, k)
    check(clustering, n)
    assert clustering.n_clusters == 3
    assert (clustering.labels == clustering.labels[np.arange(n) % 3]).all()


@pytest.mark.parametrize("counts", [(40, 25), (1_500, 900)])
def test_two_islands_without_a_link(counts: tuple[int, int]) -> None:
    clustering = cluster_vectors(islands(list(counts), spread=0.01), "hdbscan")
    check(clustering, sum(counts))
    assert clustering.n_clusters == 2
    assert clustering.noise_share < 0.05
    assert len(set(clustering.labels[: counts[0]].tolist()) & set(clustering.labels[counts[0] :].tolist()) - {-1}) == 0


def test_hdbscan_may_give_only_noise_and_auto_uses_kmeans_instead() -> None:
    scattered = unit(np.random.default_rng(0).normal(size=(300, 8)))
    alone = cluster_vectors(scattered, "hdbscan", min_cluster_size=100)
    check(alone, 300)
    assert (alone.n_clusters, alone.noise_share, set(alone.labels.tolist())) == (0, 1.0, {-1})
    clustering = cluster_vectors(scattered, "auto", min_cluster_size=100)
    check(clustering, 300)
    assert (clustering.method, clustering.n_clusters) == ("kmeans", clustering.params["k"])
    assert str(clustering.remark).startswith(
        "HDBSCAN found 0 clusters, the largest with 0% of the images, and 100% noise"
    )


def test_too_many_vectors_for_hdbscan_are_clustered_by_kmeans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_AUTO_HDBSCAN", 50)
    monkeypatch.setattr(module, "MAX_HDBSCAN", 50)
    clustering = cluster_vectors(islands([40, 20]))
    assert (clustering.method, clustering.remark) == (
        "kmeans",
        "k-means was used: 60 images are too many for HDBSCAN to be quick",
    )
    with pytest.raises(BadInput, match="60 images are too many for hdbscan"):
        cluster_vectors(islands([40, 20]), "hdbscan")


def test_a_number_of_clusters_selects_kmeans() -> None:
    clustering = cluster_vectors(islands([20, 20]), "auto", 5)
    assert (clustering.method, clustering.params, clustering.n_clusters, clustering.remark) == (
        "kmeans",
        {"k": 5},
        5,
        None,
    )


def test_the_neighbour_graph_gives_the_clusters_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole clusters are alike; a point at an edge may be noise in one and not in the other."""
    points = islands([300, 200, 100, 60], strays=60, spread=0.05)
    exact = cluster_vectors(points, "hdbscan")
    monkeypatch.setattr(module, "MAX_EXACT", 0)
    graph = cluster_vectors(points, "hdbscan")
    check(graph, len(points))
    assert exact.n_clusters == graph.n_clusters == 4
    pairs, counts = np.unique(np.stack([exact.labels, graph.labels]), axis=1, return_counts=True)
    assert np.sort(counts)[-5:].sum() > 0.98 * len(points)  # four clusters and noise, one to one
    assert len(set(pairs[0, np.argsort(counts)[-5:]].tolist())) == 5


def test_all_pairs_gives_the_labels_of_the_hdbscan_package() -> None:
    """Without copies, labels are those of hdbscan.HDBSCAN on the same points."""
    import hdbscan

    points = islands([120, 80, 40], strays=30, spread=0.1)
    clustering = cluster_vectors(points, "hdbscan")
    reduced = principal_components.reduce(points, 0).astype(np.float64)
    peer = hdbscan.HDBSCAN(**clustering.params, algorithm="generic", core_dist_n_jobs=1).fit(reduced)
    pairs_of_labels = set(zip(clustering.labels.tolist(), peer.labels_.tolist(), strict=True))
    assert len(pairs_of_labels) == clustering.n_clusters + 1  # one to one, noise to noise
    assert (-1, -1) in pairs_of_labels


@pytest.mark.parametrize("n", [200, 2_500])
@pytest.mark.parametrize("method", QUICK)
def test_a_seed_gives_equal_labels(method: Any, n: int) -> None:
    points = islands([n // 2, n // 3], strays=n // 10, spread=0.15)
    first, second = (cluster_vectors(points, method, seed=3) for _ in range(2))
    assert (first.labels == second.labels).all()
    assert first.persistence == second.persistence


@pytest.mark.soak  # it compiles for up to a minute on a machine that has not
def test_evoc_by_name() -> None:
    stages: list[str] = []
    clustering = cluster_vectors(islands([200, 150], spread=0.02), "evoc", seed=1, progress=stages.append)
    check(clustering, 350)
    assert clustering.method == "evoc"
    assert clustering.n_clusters >= 2
    assert any("compiles" in line for line in stages)
    with pytest.raises(BadInput, match="12 images are too few for evoc"):
        cluster_vectors(islands([12]), "evoc")


@settings(max_examples=30)
@given(
    points=hnp.arrays(np.float32, st.tuples(st.integers(0, 25), st.just(3)), elements=st.integers(-2, 2)),
    method=st.sampled_from(QUICK),
)
def test_any_points_can_be_clustered(points: np.ndarray, method: Any) -> None:
    """A grid of few places: copies, lines, opposite points and the origin are common."""
    length = np.linalg.norm(points, axis=1, keepdims=True)
    check(cluster_vectors(points / np.where(length, length, 1), method), len(points))


@pytest.mark.parametrize(("n", "size"), [(2, 2), (9, 4), (100, 5), (2_624, 13), (50_000, 56)])
def test_the_default_min_cluster_size(n: int, size: int) -> None:
    assert default_min_cluster_size(n) == size
