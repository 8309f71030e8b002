"""`probe`: seconds to fit a logistic head on 100,000 vectors, beside scikit-learn.

Unit vectors of 512 dimensions around 50 centres, a class each, with stronger noise along some directions as in
embeddings; one label in twenty is wrong; seeded. Both minimise the same objective (scikit-learn's C is 1 /
regularisation), starting from zero. `lakeloop` is `training.models.probe.fit`; `sklearn` is LogisticRegression with
lbfgs in double precision, `sklearn_float32` in single precision, both with a tolerance of 1e-6; `sklearn_default` keeps
its tolerance of 1e-4 and stops at another loss. The loss of every result is computed again in double precision;
accuracy is on 20,000 other vectors.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import machine
from benchmarks.harness.rounds import Contender, Options, estimate, noise, rounds, undisturbed

PARTS = ("1.0", "0.1")  # regularisation: the default of scikit-learn, and that of `lakeloop train` with a probe
CONTENDERS = "benchmarks.training.probe_contenders"
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
    for part in options.parts:
        arguments = {"rows": rows, "dim": DIM, "classes": CLASSES, "regularisation": float(part)}
        parts = [Contender(name, f"{CONTENDERS}:{name}", arguments) for name in ("lakeloop", *peers)]
        all_rounds = rounds(parts, count, options.work)
        used_rounds = undisturbed(all_rounds)
        best = min(process.result["loss"] for r in used_rounds for process in r.values())
        for name in ("lakeloop", *peers):
            results = [r[name].result for r in used_rounds]
            figures = {
                "seconds": estimate(process["seconds"] for process in results),
                "cpu_seconds": estimate(process["cpu_seconds"] for process in results),
                "loss above the best, relative": max(process["loss"] for process in results) / best - 1,
                "accuracy": results[0]["accuracy"],
                "peak_rss_gb": max(r[name].peak_rss for r in used_rounds) / 1e9,
            }
            key = f"regularisation {part}"
            group = document["ours"] if name == "lakeloop" else document["peers"].setdefault(name, {})
            group[key] = figures
            if name != "lakeloop":
                document["ratios"][f"{key}: {name} / lakeloop, seconds"] = estimate(
                    r[name].result["seconds"] / r["lakeloop"].result["seconds"] for r in used_rounds
                )
        document["figures"][f"noise, regularisation {part}"] = noise(all_rounds)
    return document
