"""`probe`: a logistic head on 100,000 vectors of 512 dimensions and 50 classes, compared with scikit-learn.

Unit vectors about 50 centres, the noise stronger along some directions than along others as embeddings have it, one
label in twenty wrong; seeded. Both minimise the same objective (scikit-learn's C is 1 / regularisation) from zero:
`lakeloop` is `training.probe.fit`; `sklearn` its LogisticRegression with lbfgs, in double precision and in single
(`sklearn_float32`), its tolerance tightened to 1e-6, since at its own 1e-4 it stops at another loss (`default`, not
compared). The loss of every result is computed again in double precision; accuracy is on 20,000 other vectors.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import machine
from benchmarks.harness.rounds import Contender, Options, estimate, noise, rounds, undisturbed

PARTS = ("1.0", "0.1")  # regularisation: scikit-learn's default, and the one of `lakeloop train` with a probe
HERE = "benchmarks.training.probe_contenders"
ROWS, ROWS_QUICK = 100_000, 20_000
DIM, CLASSES = 512, 50
ROUNDS, ROUNDS_QUICK = 7, 3


def measure(options: Options) -> dict[str, Any]:
    rows = ROWS_QUICK if options.quick else ROWS
    left_out = [f"quick: {rows} vectors instead of {ROWS}"] if options.quick else []
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": left_out}
    document["figures"] |= {"vectors": rows, "dim": DIM, "classes": CLASSES}
    peers = ["sklearn", "sklearn_float32", "sklearn_default"] if machine.installed("scikit-learn") else []
    if not peers:
        left_out.append("sklearn: not installed (extra train)")
    count = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    for part in options.what:
        arguments = {"rows": rows, "dim": DIM, "classes": CLASSES, "regularisation": float(part)}
        parts = [Contender(name, f"{HERE}:{name}", arguments) for name in ("lakeloop", *peers)]
        everything = rounds(parts, count, options.work)
        done = undisturbed(everything)
        best = min(process.result["loss"] for r in done for process in r.values())
        for name in ("lakeloop", *peers):
            results = [r[name].result for r in done]
            figures = {
                "seconds": estimate(process["seconds"] for process in results),
                "cpu_seconds": estimate(process["cpu_seconds"] for process in results),
                "loss above the best, relative": max(process["loss"] for process in results) / best - 1,
                "accuracy": results[0]["accuracy"],
                "peak_rss_gb": max(r[name].peak_rss for r in done) / 1e9,
            }
            key = f"regularisation {part}"
            group = document["ours"] if name == "lakeloop" else document["peers"].setdefault(name, {})
            group[key] = figures
            if name != "lakeloop":
                document["ratios"][f"{key}: {name} / lakeloop, seconds"] = estimate(
                    r[name].result["seconds"] / r["lakeloop"].result["seconds"] for r in done
                )
        document["figures"][f"noise, regularisation {part}"] = noise(everything)
    return document
