"""`exact`: milliseconds to find the 20 nearest of 100,000 vectors by cosine, without an index.

Unit vectors of 512 dimensions in 200 clusters, seeded; queries are perturbed members, one at a time. The lake is laid
out as ingest and backfill leave it. `lakeloop` is `embeddings.search.search.nearest_images`: it looks up the newest
commit, checks the filter, and returns rows, not only ids. Peers: LanceDB's flat search on the same table, which returns
image_id and distance; numpy (matrix times vector, argpartition) and FAISS IndexFlatIP on the same vectors in memory,
which return positions. `where` keeps a tenth of the rows: numpy gathers the rows that pass, FAISS gets a bitmap
selector, both with a mask made before; LanceDB and lakeloop evaluate `label = 'class_3'`.

Every result is checked against a search in double precision; a neighbour within 1e-6 of the 20th counts as correct.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import machine
from benchmarks.harness.rounds import Contender, Options, Rounds, estimate, noise, rounds, run, undisturbed

PARTS = ("all", "where")
CONTENDERS = "benchmarks.search.exact_contenders"
ROWS, ROWS_QUICK = 100_000, 20_000
DIM, K = 512, 20
QUERIES = 20
ROUNDS, ROUNDS_QUICK = 7, 3
TIE = 1e-6


def measure(options: Options) -> dict[str, Any]:
    rows, work = ROWS_QUICK if options.quick else ROWS, str(options.work)
    left_out = [f"quick: {rows} vectors instead of {ROWS}"] if options.quick else []
    arguments = {"work": work, "k": K, "parts": list(options.parts)}
    built = run(
        Contender("build", f"{CONTENDERS}:build", {"work": work, "rows": rows, "dim": DIM, "queries": QUERIES}),
        options.work,
    )
    names = ["lakeloop", "lancedb_flat", "numpy"]
    if machine.installed("faiss-cpu"):
        names.append("faiss_flat")
    else:
        left_out.append("faiss_flat: not installed (extra cluster)")
    parts = [Contender(name, f"{CONTENDERS}:{name}", arguments) for name in names]
    # One BLAS thread: read_speed starts its own threads.
    pins = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    parts.append(Contender("memory", "benchmarks.harness.machine:read_speed", environment=pins))
    count = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    # The first round warms the page cache and compiled Python; it is dropped unless it is the only one.
    all_rounds = rounds(parts, count + (count > 1), options.work)[count > 1 :]
    used_rounds = undisturbed(all_rounds)

    true_scores = _true_scores(options.work)
    speed = estimate(r["memory"].result["all_cores"] for r in used_rounds)
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": left_out}
    for name in names:
        for part in options.parts:
            figures = _figures(used_rounds, name, part, true_scores[part])
            group = document["ours"] if name == "lakeloop" else document["peers"].setdefault(name, {})
            group[part] = figures
            if name != "lakeloop":
                pairs = ((_median(r, "lakeloop", part), _median(r, name, part)) for r in used_rounds)
                document["ratios"][f"ms {part}: lakeloop / {name}"] = estimate(a / b for a, b in pairs)
        document["figures"][f"startup_seconds {name}"] = estimate(
            r[name].result["startup"]["seconds"] for r in used_rounds
        )
        document["figures"][f"peak_rss_gb {name}"] = max(r[name].peak_rss for r in used_rounds) / 1e9
    if "all" in options.parts:
        limits = [rows * DIM * 4 / r["memory"].result["all_cores"] / 1e6 for r in used_rounds]
        document["ratios"]["ms all: lakeloop / memory bandwidth"] = estimate(
            _median(r, "lakeloop", "all") / limit for r, limit in zip(used_rounds, limits, strict=True)
        )
        document["figures"]["limit_ms"] = estimate(limits)
    document["figures"] |= {
        "vectors": rows,
        "dim": DIM,
        "k": K,
        "queries_a_round": QUERIES,
        "read_gb_per_second": {
            "one_thread": estimate(r["memory"].result["one_thread"] for r in used_rounds),
            "all_cores": speed,
        },
        "build_seconds": built.result["seconds"],
        "fragments": built.result["fragments"],
        "noise": noise(all_rounds),
    }
    return document


def _true_scores(work: Path) -> dict[str, np.ndarray]:
    """Scores (queries, rows) in double precision; minus infinity where a row does not pass the filter."""
    vectors, queries = np.load(work / "vectors.npy"), np.load(work / "queries.npy")
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    return {"all": scores, "where": np.where(np.load(work / "passes.npy"), scores, -np.inf)}


def _figures(used_rounds: Rounds, name: str, part: str, true_scores: np.ndarray) -> dict[str, Any]:
    parts = [r[name].result[part] for r in used_rounds]
    return {
        "ms_median": estimate(_median(r, name, part) for r in used_rounds),
        "ms_p95": estimate(float(np.quantile(p["ms"], 0.95)) for p in parts),
        "cpu_ms_a_query": estimate(p["cpu_seconds"] * 1e3 / len(p["ms"]) for p in parts),
        "recall": min(_recall(np.array(p["found"]), true_scores) for p in parts),
    }


def _median(runs: dict[str, Any], name: str, part: str) -> float:
    return float(np.median(runs[name].result[part]["ms"]))


def _recall(neighbours: np.ndarray, true_scores: np.ndarray) -> float:
    """Share of the k nearest that were found: `positions` (queries, k), `true_scores` (queries, rows)."""
    kth = np.partition(true_scores, -K, axis=1)[:, -K]
    distinct = [len(set(row)) for row in neighbours.tolist()]
    right = (np.take_along_axis(true_scores, neighbours, axis=1) >= kth[:, None] - TIE).sum(1)
    return float(np.minimum(right, distinct).mean() / K)
