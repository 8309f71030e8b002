"""`gate`: false alarms and power of the gate on simulated pairs of models with a known fall.

For each image it draws whether only the old model, only the new model, or both or neither are correct. The outcome is
that of `training/metrics/paired_tests.py` and Holm's rule, as in `training/evaluation/gate.py`. Parts: `alarms` (share
of candidates without a fall that fail), `power` (share of true falls that fail), `passes` (share of falls of exactly
the margin that pass, beside the intervals of Tango, Newcombe, and Bonett and Price, for every n), `resampled` (the same
for resampled metrics). Draws the curves into docs/images/gate-power.png if matplotlib is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import machine
from benchmarks.harness.rounds import ROOT, Options, say
from lake.analytics import statistics
from training.evaluation import gate
from training.metrics import metric_registry, paired_tests
from training.metrics.metric import EvaluatedPredictions

PARTS = ("alarms", "power", "passes", "resampled")
LEVEL = 0.05
TRIALS, TRIALS_QUICK = 5_000, 500
SIZES = (10, 20, 30, 52, 60, 100, 200, 400, 1_000, 2_000, 5_000)
RATES = (0.05, 0.1, 0.2)
Z = 1.6448536
PICTURE = ROOT / "docs" / "images" / "gate-power.png"


def measure(options: Options) -> dict[str, Any]:
    trials = TRIALS_QUICK if options.quick else TRIALS
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {"trials": trials}, "left_out": []}
    ours, peers = document["ours"], document["peers"]
    if "alarms" in options.parts:
        for n in (40, 400, 2_000):
            ours[f"false alarms, 10 slices of {n}"] = false_alarms(10, n, 0.1, trials, 0)
    if "power" in options.parts:
        ours["failed: fall 5 points, n 400, disagreement 10 %"] = failed(400, 0.1, 0.05, trials, 0)
        curves = {rate: [failed(n, rate, min(0.05, rate), trials, 1) for n in SIZES] for rate in RATES}
        none = {rate: [passed(n, rate, 0.0, 0.02, trials, 2) for n in SIZES] for rate in RATES}
        document["figures"]["failed by n, fall of 5 points"] = _by(curves)
        document["figures"]["passed by n, no fall, margin 2 points"] = _by(none)
        if machine.installed("matplotlib"):
            draw(curves, none, PICTURE)
            document["figures"]["picture"] = PICTURE.relative_to(ROOT).as_posix()
        else:
            document["left_out"].append("the picture: matplotlib is not installed (extra bench)")
    if "passes" in options.parts:
        for margin, rate in ((0.02, 0.021), (0.02, 0.1), (0.05, 0.051), (0.05, 0.1), (0.1, 0.3)):
            for n in SIZES:
                key = f"passed, fall = margin = {margin:g}, disagreement {rate:g}, n {n}"
                say(key)
                ours[key] = passed(n, rate, margin, margin, trials, 3)
                for name, bound in PEERS.items():
                    peers.setdefault(name, {})[key] = passed(n, rate, margin, margin, trials, 3, bound)
        for name, rates in {"lakeloop": ours, **peers}.items():
            worst = max((value, key) for key, value in rates.items() if key.startswith("passed"))
            document["figures"][f"worst of {name}"] = {"share": worst[0], "where": worst[1]}
    if "resampled" in options.parts:
        for name in ("f1_macro", "auroc", "balanced_accuracy"):
            for n in (20, 60, 200):
                say(f"{name}, n {n}")
                key = f"{name}, n {n}: passed though the fall is the margin"
                ours[key] = passed_by_resampling(name, n, min(trials, 400), 4)
    return document


def draw_pairs(n: int, rate: float, fall: float, trials: int, seed: int) -> np.ndarray:
    """int64 (trials, 3): broken, repaired and other images of n; the models disagree on a share `rate`."""
    shares = [(rate + fall) / 2, max(0.0, (rate - fall) / 2), 1 - rate]
    return np.random.default_rng(seed).multinomial(n, shares, size=trials)


def false_alarms(slices: int, n: int, rate: float, trials: int, seed: int) -> float:
    """The share of candidates without a fall that fail on at least one slice."""
    drawn = [draw_pairs(n, rate, 0.0, trials, seed + 1_000 * k) for k in range(slices)]
    known: dict[tuple[int, int], float] = {}
    failed = 0
    for trial in range(trials):
        ps = [_fall_p(known, int(slice_[trial, 0]), int(slice_[trial, 1])) for slice_ in drawn]
        failed += min(statistics.holm(ps)) <= LEVEL
    return failed / trials


def failed(n: int, rate: float, fall: float, trials: int, seed: int) -> float:
    """The share of candidates that fail on one slice."""
    known: dict[tuple[int, int], float] = {}
    pairs = draw_pairs(n, rate, fall, trials, seed)[:, :2].tolist()
    return sum(_fall_p(known, b, c) <= LEVEL for b, c in pairs) / trials


Excludes = Callable[[int, int, int, float], bool]


def excluded(broken: int, repaired: int, n: int, margin: float) -> bool:
    """Whether the gate excludes a fall beyond the margin."""
    return paired_tests.beyond_p(broken, repaired, n, margin) <= LEVEL


def passed(
    n: int, rate: float, fall: float, margin: float, trials: int, seed: int, excludes: Excludes = excluded
) -> float:
    """The share of candidates that pass on one slice: they do not fail, and a fall beyond the margin is excluded."""
    kinds, counts = np.unique(draw_pairs(n, rate, fall, trials, seed)[:, :2], axis=0, return_counts=True)
    shares = [
        int(count) * (paired_tests.fall_p(b, c) > LEVEL and (b - c) / n < margin and excludes(b, c, n, margin))
        for (b, c), count in zip(kinds.tolist(), counts, strict=True)
    ]
    return sum(shares) / trials


def tango(broken: int, repaired: int, n: int, margin: float) -> bool:
    """Tango's score interval (Statistics in Medicine 1998)."""
    a, b = 2 * n, (2 * n - broken + repaired) * margin - broken - repaired
    share = (math.sqrt(b**2 + 4 * a * repaired * margin * (1 - margin)) - b) / (2 * a)
    return (broken - repaired - n * margin) / math.sqrt(n * (2 * share + margin * (1 - margin))) < -Z


def bonett_price(broken: int, repaired: int, n: int, margin: float) -> bool:
    """Wald's interval with one more broken and one more repaired image (Bonett and Price 2012)."""
    p, q = (broken + 1) / (n + 2), (repaired + 1) / (n + 2)
    return p - q + Z * math.sqrt((p + q - (p - q) ** 2) / (n + 2)) < margin


def newcombe(broken: int, repaired: int, n: int, margin: float) -> bool:
    """Newcombe's interval of paired proportions (1998, method 10); both are correct on 0.8 of the other images."""
    both_right = round(0.8 * (n - broken - repaired))
    neither = n - broken - repaired - both_right
    first, second = both_right + broken, both_right + repaired
    old_share, _, high1 = _wilson(first, n)
    new_share, low2, _ = _wilson(second, n)
    sizes = first * (n - first) * second * (n - second)
    apart = both_right * neither - broken * repaired
    phi = 0.0 if not sizes else (max(apart - n / 2, 0) if apart > 0 else apart) / math.sqrt(sizes)
    above, below = high1 - old_share, new_share - low2
    return old_share - new_share + math.sqrt(max(0.0, above**2 - 2 * phi * above * below + below**2)) < margin


PEERS: dict[str, Excludes] = {"tango": tango, "newcombe": newcombe, "bonett_price": bonett_price}


def passed_by_resampling(name: str, n: int, trials: int, seed: int) -> float:
    """The share of candidates that pass when the margin is their true fall, for a metric that is not a plain mean.

    Two classes, a quarter of the images of the first; the true fall is measured on 200,000 images.
    """
    metric = metric_registry.get(name)
    rng = np.random.default_rng(seed)
    many = _models(200_000, rng)
    margin = metric.value(many[0]) - metric.value(many[1])
    hits = 0
    for _ in range(trials):
        old, new = _models(n, rng)
        seen = gate.estimate_fall(metric, old, new, margin)
        hits += seen.excluded and seen.p > LEVEL
    return hits / trials


def draw(curves: dict[float, list[float]], none: dict[float, list[float]], path: Path) -> None:
    """Draws the shares of failed and passed candidates against n, one line for each rate of disagreement."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, lines, title in (
        (left, curves, "failed: true fall of 5 points"),
        (right, none, "passed: no fall, margin of 2 points"),
    ):
        for rate, values in lines.items():
            axis.plot(SIZES, values, marker="o", label=f"disagreeing on {rate:.0%}")
        axis.set(xscale="log", ylim=(0, 1.02), xlabel="images of the slice", title=title)
        axis.grid(alpha=0.3)
    left.set_ylabel("share of candidates")
    right.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _models(n: int, rng: np.random.Generator) -> tuple[EvaluatedPredictions, EvaluatedPredictions]:
    """Predictions of an old and a slightly worse new model for the same n images, at least one of each class."""
    truths = (rng.random(n) >= 0.25).astype(np.int64)
    truths[:2] = 0, 1
    common = rng.normal(size=n)
    models = []
    for strength in (1.4, 1.1):
        score = 1 / (1 + np.exp(-(strength * (2 * truths - 1) + common + 0.5 * rng.normal(size=n))))
        rows = [{"scores": [{"label": "a", "score": 1 - s}, {"label": "b", "score": s}]} for s in score.tolist()]
        models.append(
            EvaluatedPredictions(
                ("a", "b"), truths, (score > 0.5).astype(np.int64), np.maximum(score, 1 - score), [{}] * n, rows
            )
        )
    return models[0], models[1]


def _fall_p(known: dict[tuple[int, int], float], broken: int, repaired: int) -> float:
    if (broken, repaired) not in known:
        known[broken, repaired] = paired_tests.fall_p(broken, repaired)
    return known[broken, repaired]


def _wilson(hits: int, n: int) -> tuple[float, float, float]:
    share = hits / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return share, centre - half, centre + half


def _by(curves: dict[float, list[float]]) -> dict[str, dict[str, float]]:
    return {
        f"disagreement {rate:g}": dict(zip(map(str, SIZES), values, strict=True)) for rate, values in curves.items()
    }
