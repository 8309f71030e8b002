"""`cluster`: one level of a drill-down beside its peers, opening a node, and a million vectors.

`generator`: 50,000 unit vectors of 512 dimensions in 100 uneven clusters, seeded. `cifar10`: the 50,000 training images
of CIFAR-10 by efficientnet-lite0 at 96 pixels, 1,280 dimensions projected to 512 by a seeded random matrix. `lakeloop`
is `embeddings.clusters.clustering.cluster_vectors` with method auto and its defaults; EVoC uses its defaults; k-means
of scikit-learn (on PCA to 50) and of FAISS (on the vectors) get the number of classes. AMI is adjusted mutual
information with the true classes; noise counts as one cluster. `ami_best_layer` is the best layer of EVoC.

`open`: milliseconds to open a node of 10,000 images of a lake of 50,000, reading and saving included, with another seed
each time. `million`: 1,000,000 vectors of the generator, in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness import data as benchmark_data
from benchmarks.harness import machine
from benchmarks.harness.rounds import Contender, Options, Rounds, Run, estimate, noise, run, say, undisturbed
from benchmarks.search import vectors
from benchmarks.search.cluster_contenders import CLUSTERS, ami, generated

PARTS = ("generator", "cifar10", "open", "million")
CONTENDERS = "benchmarks.search.cluster_contenders"
DIM = 512
ROWS, ROWS_QUICK = 50_000, 10_000
NODE, NODE_QUICK = 10_000, 2_000
OPENINGS, OPENINGS_QUICK = 40, 8
MILLION, MILLION_QUICK = 1_000_000, 100_000
ROUNDS, ROUNDS_QUICK = 5, 1


def measure(options: Options) -> dict[str, Any]:
    rows = ROWS_QUICK if options.quick else ROWS
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": []}
    if options.quick:
        document["left_out"].append(f"quick: {rows:,} vectors instead of {ROWS:,}, {MILLION_QUICK:,} for a million")
    count = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    if "generator" in options.parts:
        points, classes = generated(rows, DIM)
        _compare(document, "generator", points, classes, CLUSTERS, count, options)
    if "cifar10" in options.parts:
        labelled = vectors.cifar10(benchmark_data.folder(options.data))
        chosen = np.random.default_rng(0).permutation(len(labelled))[:rows]
        axes = np.random.default_rng(1).standard_normal((labelled.vectors.shape[1], DIM)).astype(np.float32)
        points = labelled.vectors[chosen] @ axes
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        _compare(document, "cifar10", points, labelled.classes[chosen], 10, count, options)
    if "open" in options.parts:
        _open(document, rows, options)
    if "million" in options.parts:
        size = MILLION_QUICK if options.quick else MILLION
        process = run(Contender("million", f"{CONTENDERS}:million", {"rows": size, "dim": DIM}), options.work)
        document["figures"]["million"] = {
            "vectors": size,
            "seconds": process.result["seconds"],
            "ami": process.result["ami"],
            "clusters": process.result["clusters"],
            "peak_rss_gb": process.peak_rss / 1e9,
        }
    return document


def _compare(
    document: dict[str, Any],
    part: str,
    points: np.ndarray,
    classes: np.ndarray,
    k: int,
    count: int,
    options: Options,
) -> None:
    """Runs rounds of all contenders on one set of vectors and adds their figures to the document."""
    path = options.work / f"{part}.npy"
    np.save(path, points)
    names = ["lakeloop", "evoc", "kmeans_sklearn", "kmeans_faiss"]
    if machine.installed("umap-learn"):
        names.append("umap_hdbscan")
    else:
        document["left_out"].append(f"{part}: umap_hdbscan: umap-learn is not installed (pip install umap-learn)")
    contenders = [
        Contender(
            name,
            f"{CONTENDERS}:{name}",
            {"vectors": str(path), "out": str(options.work / f"{part}-{name}.npy"), "k": k},
        )
        for name in names
    ]
    scores: dict[str, list[float]] = {name: [] for name in names}
    layers: list[float] = []
    all_rounds: Rounds = []
    for number in range(count):
        all_rounds.append(_round(contenders, number, options))
        # The seed is the number of the round: score the labels before the next round overwrites them.
        for name in names:
            scores[name].append(ami(classes, np.load(options.work / f"{part}-{name}.npy")))
        layers.append(max(ami(classes, layer) for layer in np.load(options.work / f"{part}-evoc.layers.npy")))
    path.unlink()
    used_rounds = undisturbed(all_rounds)
    for name in names:
        figures = {
            "seconds": estimate(r[name].result["seconds"] for r in used_rounds),
            "cpu_seconds": estimate(r[name].result["cpu_seconds"] for r in used_rounds),
            "ami": estimate(scores[name]),
            "startup_seconds": estimate(r[name].result["startup_seconds"] for r in used_rounds),
            "first_use_seconds": estimate(r[name].result["first_use_seconds"] for r in used_rounds),
            "peak_rss_gb": max(r[name].peak_rss for r in used_rounds) / 1e9,
        }
        if name == "lakeloop":
            figures["used"] = used_rounds[0][name].result["remark"]
            document["ours"][part] = figures
            continue
        if name == "evoc":
            figures["ami_best_layer"] = estimate(layers)
        document["peers"].setdefault(name, {})[part] = figures
        document["ratios"][f"seconds {part}: lakeloop / {name}"] = estimate(
            r["lakeloop"].result["seconds"] / r[name].result["seconds"] for r in used_rounds
        )
        document["ratios"][f"ami {part}: lakeloop - {name}"] = estimate(
            a - b for a, b in zip(scores["lakeloop"], scores[name], strict=True)
        )
    document["figures"][part] = {"vectors": len(points), "dim": points.shape[1], "noise": noise(all_rounds)}


def _round(contenders: list[Contender], number: int, options: Options) -> dict[str, Run]:
    runs = {}
    for contender in contenders if number % 2 == 0 else reversed(contenders):
        runs[contender.name] = run(contender, options.work, number)
        say(f"round {number + 1} {contender.name}: {runs[contender.name].seconds:.1f} s")
    return runs


def _open(document: dict[str, Any], rows: int, options: Options) -> None:
    size, times = (NODE_QUICK, OPENINGS_QUICK) if options.quick else (NODE, OPENINGS)
    arguments = {"work": str(options.work), "rows": rows, "node": size, "dim": DIM, "times": times}
    taken = np.array(run(Contender("open", f"{CONTENDERS}:opening", arguments), options.work).result["seconds"]) * 1e3
    document["figures"]["open"] = {
        "images": size,
        "lake": rows,
        "times": times,
        "ms_first": float(taken[0]),
        "ms_median": float(np.median(taken)),
        "ms_p95": float(np.quantile(taken, 0.95)),
    }
