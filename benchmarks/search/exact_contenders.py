"""The contenders of `exact`, one process each.

The work folder has vectors.npy, queries.npy, passes.npy, names.txt and the lake. Each returns, for the requested parts,
the milliseconds of every query after two warm-up queries, the total CPU seconds, and the positions of the results.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness.contender import Stopwatch

EMBEDDER = "clip-vit-b-32"  # any of 512 dimensions: only its column is used
CLUSTERS, LABELS = 200, 10
FILTER = "label = 'class_3'"

Search = Callable[[np.ndarray], Any]


def build(turn: int, work: str, rows: int, dim: int, queries: int) -> dict[str, Any]:
    """Makes vectors, queries and the lake. The lake has exactly the vectors of `vectors.npy`."""
    import pyarrow as pa

    from embeddings.backfill.backfill import COMMIT_IMAGES
    from embeddings.backfill.vector_columns import store_vectors
    from lake import ids, open_lake
    from lake.ingest.ingest import COMMIT_ROWS
    from lake.storage import schema, store

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, dim), np.float32)
    vectors = _unit(centres[rng.integers(0, CLUSTERS, rows)] + 0.7 * rng.standard_normal((rows, dim), np.float32))
    chosen = vectors[rng.integers(0, rows, queries)]
    labels = rng.integers(0, LABELS, rows)
    np.save(Path(work, "vectors.npy"), vectors)
    np.save(Path(work, "queries.npy"), _unit(chosen + 0.02 * rng.standard_normal((queries, dim), np.float32)))
    np.save(Path(work, "passes.npy"), labels == 3)
    names = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(rows)]
    Path(work, "names.txt").write_text("\n".join(names))
    with Stopwatch() as clock:
        lake = open_lake.create(str(Path(work, "lake")), embedders=[EMBEDDER])
        now = store.now()
        for start in range(0, rows, COMMIT_ROWS):
            part = range(start, min(start + COMMIT_ROWS, rows))
            predictions = [
                {
                    "prediction_id": ids.bare_prediction_id(names[i]),
                    "image_id": names[i],
                    "timestamp": now,
                    "model": "benchmark",
                    "label": f"class_{labels[i]}",
                    "confidence": float(i % 1000) / 1000,
                    "source": f"{i}.jpg",
                    "ingested_at": now,
                }
                for i in part
            ]
            lake.insert("samples", pa.Table.from_pylist(predictions, schema=schema.SAMPLES.arrow()))
        lake.index("samples")
        record = replace(lake.embedders()[0], dim=dim, weights_sha256="0" * 64)
        lake.bind_embedder(record)
        for start in range(0, rows, COMMIT_IMAGES):
            part = range(start, min(start + COMMIT_IMAGES, rows))
            store_vectors(lake, record.column, {names[i]: vectors[i] for i in part})
    return {"seconds": clock.seconds, "fragments": len(lake.dataset("samples").get_fragments())}


def lakeloop(turn: int, work: str, k: int, parts: list[str]) -> dict[str, Any]:
    """`embeddings.search.search.nearest_images`: the rows of the nearest images."""
    with Stopwatch() as startup:
        from embeddings.search.search import nearest_images
        from lake import open_lake

        lake = open_lake.open(str(Path(work, "lake")))
        record = lake.embedders()[0]
        position_of = _places(work)

    def search(where: str | None) -> Search:
        return lambda query: nearest_images(lake, record, query, k, where, ())

    def positions(rows: Any) -> list[int]:
        return [position_of[name] for name in rows["image_id"].to_pylist()]

    searches = {"all": search(None), "where": search(FILTER)}
    return {"startup": startup.figures(), **{p: _timed(work, searches[p], positions) for p in parts}}


def lancedb_flat(turn: int, work: str, k: int, parts: list[str]) -> dict[str, Any]:
    """LanceDB's own flat search on lakeloop's table, opened once: image_id and distance."""
    with Stopwatch() as startup:
        import lancedb

        from lake.storage import schema

        table = lancedb.connect(str(Path(work, "lake"))).open_table("samples")
        column, position_of = schema.vector_column(EMBEDDER), _places(work)

    def search(where: str | None) -> Search:
        def ask(query: np.ndarray) -> Any:
            plan = table.search(query, vector_column_name=column).distance_type("cosine").bypass_vector_index()
            plan = plan.where(where) if where else plan
            return plan.select(["image_id", "_distance"]).limit(k).to_arrow()

        return ask

    def positions(rows: Any) -> list[int]:
        return [position_of[name] for name in rows["image_id"].to_pylist()]

    searches = {"all": search(None), "where": search(FILTER)}
    return {"startup": startup.figures(), **{p: _timed(work, searches[p], positions) for p in parts}}


def numpy(turn: int, work: str, k: int, parts: list[str]) -> dict[str, Any]:
    """A matrix in memory times the query, argpartition, sort."""
    with Stopwatch() as startup:
        vectors = np.load(Path(work, "vectors.npy"))
        passing = np.flatnonzero(np.load(Path(work, "passes.npy")))

    def everything(query: np.ndarray) -> np.ndarray:
        return _best(vectors @ query, k)

    def filtered(query: np.ndarray) -> np.ndarray:
        best: np.ndarray = passing[_best(vectors[passing] @ query, k)]
        return best

    searches: dict[str, Search] = {"all": everything, "where": filtered}
    return {"startup": startup.figures(), **{p: _timed(work, searches[p], np.ndarray.tolist) for p in parts}}


def faiss_flat(turn: int, work: str, k: int, parts: list[str]) -> dict[str, Any]:
    """FAISS IndexFlatIP in memory; the filter is a bitmap selector."""
    with Stopwatch() as startup:
        import faiss

        vectors = np.load(Path(work, "vectors.npy"))
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        bitmap = np.packbits(np.load(Path(work, "passes.npy")), bitorder="little")
        # FAISS changes the signatures of its C++ classes at import; its stubs do not know that.
        selector: Any = faiss.IDSelectorBitmap
        parameters: Any = faiss.SearchParameters
        chosen = parameters(sel=selector(bitmap))

    def search(parameters: Any) -> Search:
        return lambda query: index.search(query[None, :], k, params=parameters)[1][0]

    searches = {"all": search(None), "where": search(chosen)}
    return {"startup": startup.figures(), **{p: _timed(work, searches[p], np.ndarray.tolist) for p in parts}}


def _timed(work: str, search: Search, positions: Callable[[Any], list[int]]) -> dict[str, Any]:
    queries = np.load(Path(work, "queries.npy"))
    for query in queries[:2]:
        search(query)
    neighbours, ms = [], []
    with Stopwatch() as clock:
        for query in queries:
            started = perf_counter()
            neighbours.append(search(query))
            ms.append((perf_counter() - started) * 1e3)
    return {"ms": ms, "cpu_seconds": clock.cpu_seconds, "found": [positions(f) for f in neighbours]}


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    top = np.argpartition(scores, -k)[-k:]
    ordered: np.ndarray = top[np.argsort(-scores[top])]
    return ordered


def _unit(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def _places(work: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(Path(work, "names.txt").read_text().split())}
