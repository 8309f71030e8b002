"""The contenders of `cluster`, one process each.

A contender of `generator` and `cifar10` loads vectors and runs once on a few of them (imports, compilation and thread
pools are start-up, reported apart), then once on all. Labels go to a file, because they are scored outside.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.contender import Stopwatch

CLUSTERS, SPREAD = 100, 1.0
WARM = 2_000
EMBEDDER = "clip-vit-b-32"  # any of 512 dimensions: only its column is used


def generated(rows: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32 (rows, dim) in CLUSTERS uneven clusters, and the cluster of each, int (rows,)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLUSTERS, dim), np.float32)
    classes = rng.choice(CLUSTERS, rows, p=rng.dirichlet(np.full(CLUSTERS, 5.0)))
    vectors = rng.standard_normal((rows, dim), np.float32)
    vectors *= SPREAD
    for start in range(0, rows, 100_000):
        part = slice(start, start + 100_000)
        vectors[part] += centres[classes[part]]
        vectors[part] /= np.linalg.norm(vectors[part], axis=1, keepdims=True)
    return vectors, classes


def lakeloop(turn: int, vectors: str, out: str, k: int) -> dict[str, Any]:
    """`embeddings.clusters.clustering.cluster_vectors`, method auto, with its defaults."""
    with Stopwatch() as startup:
        from embeddings.clusters.clustering import cluster_vectors
    remark: list[str | None] = []

    def run(points: np.ndarray) -> np.ndarray:
        clustering = cluster_vectors(points, "auto", seed=turn)
        remark[:] = [f"{clustering.method}: {clustering.n_clusters} clusters; {clustering.remark or 'as requested'}"]
        return clustering.labels

    return _timed(vectors, out, startup, run) | {"remark": remark[0]}


def evoc(turn: int, vectors: str, out: str, k: int) -> dict[str, Any]:
    """EVoC with its defaults, seeded. The labels of all its layers go to a second file."""
    with Stopwatch() as startup:
        from evoc import EVoC
    layers: list[np.ndarray] = []

    def run(points: np.ndarray) -> np.ndarray:
        model = EVoC(random_state=turn)
        labels: np.ndarray = model.fit_predict(points)
        layers[:] = list(model.cluster_layers_)
        return labels

    figures = _timed(vectors, out, startup, run)
    np.save(Path(out).with_suffix(".layers.npy"), np.stack(layers))
    return figures


def kmeans_sklearn(turn: int, vectors: str, out: str, k: int) -> dict[str, Any]:
    """scikit-learn's KMeans on its PCA to 50, with the true number of classes."""
    with Stopwatch() as startup:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA

    def run(points: np.ndarray) -> np.ndarray:
        reduced = PCA(50, svd_solver="randomized", random_state=turn).fit_transform(points)
        labels: np.ndarray = KMeans(k, n_init=1, random_state=turn).fit_predict(reduced)
        return labels

    return _timed(vectors, out, startup, run)


def kmeans_faiss(turn: int, vectors: str, out: str, k: int) -> dict[str, Any]:
    """FAISS's Kmeans on all vectors, with the true number of classes."""
    with Stopwatch() as startup:
        import faiss

    def run(points: np.ndarray) -> np.ndarray:
        model = faiss.Kmeans(points.shape[1], k, niter=25, seed=turn + 1, max_points_per_centroid=len(points))
        model.train(points)
        return np.asarray(model.index.search(points, 1)[1][:, 0])

    return _timed(vectors, out, startup, run)


def umap_hdbscan(turn: int, vectors: str, out: str, k: int) -> dict[str, Any]:
    """UMAP to 10 dimensions (15 neighbours, min_dist 0, cosine), then the hdbscan package."""
    with Stopwatch() as startup:
        import hdbscan
        import umap  # type: ignore[import-not-found,import-untyped,unused-ignore]

    def run(points: np.ndarray) -> np.ndarray:
        placed = umap.UMAP(n_components=10, min_dist=0.0, metric="cosine", random_state=turn).fit_transform(points)
        labels: np.ndarray = hdbscan.HDBSCAN(min_cluster_size=max(15, len(points) // 500)).fit_predict(placed)
        return labels

    return _timed(vectors, out, startup, run)


def million(turn: int, rows: int, dim: int) -> dict[str, Any]:
    """The top level of `rows` vectors that are already in memory."""
    from embeddings.clusters.clustering import cluster_vectors

    vectors, classes = generated(rows, dim)
    with Stopwatch() as clock:
        clustering = cluster_vectors(vectors, seed=turn)
    return clock.figures() | {"ami": ami(classes, clustering.labels), "clusters": clustering.n_clusters}


def opening(turn: int, work: str, rows: int, node: int, dim: int, times: int) -> dict[str, Any]:
    """Seconds to open a node of `node` images in a lake of `rows`, `times` times; the tree exists before."""
    import pyarrow as pa

    from embeddings.backfill.backfill import COMMIT_IMAGES
    from embeddings.backfill.vector_columns import store_vectors
    from embeddings.clusters.drilldown import cluster
    from lake import ids, open_lake
    from lake.ingest.ingest import COMMIT_ROWS
    from lake.storage import schema, store

    vectors, classes = generated(rows, dim)
    names = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(rows)]
    lake = open_lake.create(str(Path(work, f"lake{turn}")), embedders=[EMBEDDER])
    now = store.now()
    for start in range(0, rows, COMMIT_ROWS):
        predictions = [
            {
                "prediction_id": ids.bare_prediction_id(names[i]),
                "image_id": names[i],
                "timestamp": now,
                "model": "benchmark",
                "label": f"class_{classes[i] % 10}",
                "confidence": float(i % 1000) / 1000,
                "source": "inside" if i < node else "outside",
                "ingested_at": now,
            }
            for i in range(start, min(start + COMMIT_ROWS, rows))
        ]
        lake.insert("samples", pa.Table.from_pylist(predictions, schema=schema.SAMPLES.arrow()))
    lake.index("samples")
    record = replace(lake.embedders()[0], dim=dim, weights_sha256="0" * 64)
    lake.bind_embedder(record)
    for start in range(0, rows, COMMIT_IMAGES):
        part = range(start, min(start + COMMIT_IMAGES, rows))
        store_vectors(lake, record.column, {names[i]: vectors[i] for i in part})
    tree = cluster(lake, where="source = 'inside'", method="kmeans", k=2).tree
    taken = []
    for seed in range(times):
        with Stopwatch() as clock:
            cluster(lake, node=f"{tree}/", seed=seed)
        taken.append(clock.seconds)
    return {"seconds": taken}


def ami(classes: np.ndarray, labels: np.ndarray) -> float:
    """Adjusted mutual information; noise counts as one cluster."""
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(classes, labels))


def _timed(vectors: str, out: str, startup: Stopwatch, run: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    points = np.load(vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Stopwatch() as warm:
            run(points[:WARM])
        with Stopwatch() as clock:
            labels = run(points)
    np.save(out, labels)
    return clock.figures() | {"startup_seconds": startup.seconds, "first_use_seconds": warm.seconds}
