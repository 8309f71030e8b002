"""`sql`: milliseconds of twelve queries over a million and ten million predictions.

The lake is laid out as large commits leave it, with its columnar copy. Every round first commits new predictions, which
all contenders must count. `lakeloop` is `lake.sql`; `sandbox` is the locked child process behind `lakeloop sql` and
POST /v1/sql. Peers: DuckDB on its own file (`native`, the reference), on Parquet files (zstd), and on the Lance tables
through Arrow's scanner. All have the same rows and columns and must return the same results.

Cold: a new process, and none of its files in the page cache before each query; the first query of lakeloop includes
copying the new rows. Warm: the median of three more. Ratios are geometric means over the queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness.rounds import Contender, Options, Rounds, estimate, noise, rounds, run, say, undisturbed

PARTS = ("1m", "10m")
ROWS = {"1m": 1_000_000, "10m": 10_000_000}
ROWS_QUICK = {"1m": 100_000, "10m": 300_000}
CONTENDERS = "benchmarks.search.sql_contenders"
NAMES = ("lakeloop", "sandbox", "native", "parquet", "lance_by_arrow")
FRESH_ROWS = 2_000
ROUNDS, ROUNDS_QUICK = {"1m": 7, "10m": 3}, {"1m": 2, "10m": 1}


def measure(options: Options) -> dict[str, Any]:
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": []}
    if options.quick:
        document["left_out"].append(f"quick: {ROWS_QUICK} rows")
    for part in options.parts:
        _part(options, part, document)
    return document


def _part(options: Options, part: str, document: dict[str, Any]) -> None:
    total = (ROWS_QUICK if options.quick else ROWS)[part]
    folder = options.work / part
    folder.mkdir()
    work = str(folder)
    built = run(Contender("build", f"{CONTENDERS}:build", {"work": work, "rows": total}), options.work)
    say(f"{part}: built in {built.seconds:.0f} s")
    contenders = [Contender(name, f"{CONTENDERS}:{name}", {"work": work}) for name in NAMES]
    count = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)[part]
    all_rounds: Rounds = []
    for number in range(count + (count > 1)):
        arguments = {"work": work, "first": total + number * FRESH_ROWS, "rows": FRESH_ROWS, "total": total}
        run(Contender("append", f"{CONTENDERS}:append", arguments), options.work)
        all_rounds += rounds(contenders if number % 2 == 0 else contenders[::-1], 1, options.work)
    used_rounds = undisturbed(all_rounds[count > 1 :])
    for round_ in used_rounds:
        digests = {name: round_[name].result["digests"] for name in NAMES}
        different = [query for query in digests["native"] if len({digests[name][query] for name in NAMES}) > 1]
        if different:
            raise AssertionError(f"the results of {different} differ between contenders")
    for name in NAMES:
        group = document["ours"] if name in ("lakeloop", "sandbox") else document["peers"]
        group[f"{name} {part}"] = {
            "open_ms": estimate(round_[name].result["open_ms"] for round_ in used_rounds),
            "peak_rss_mb": max(round_[name].peak_rss for round_ in used_rounds) / 1e6,
            **{
                f"{kind}_ms {query}": estimate(round_[name].result[kind][query] for round_ in used_rounds)["median"]
                for kind in ("cold", "warm")
                for query in used_rounds[0][name].result[kind]
            },
        }
        for kind in ("cold", "warm"):
            if name != "native":
                label = f"{kind} {part}: {name} / native"
                document["ratios"][label] = estimate(
                    _mean(round_, name, kind) / _mean(round_, "native", kind) for round_ in used_rounds
                )
    document["figures"][part] = {"rows": total, **built.result, "noise": noise(all_rounds)}


def _mean(round_: dict[str, Any], name: str, kind: str) -> float:
    """Geometric mean over the queries, in milliseconds."""
    return float(np.exp(np.mean(np.log([*round_[name].result[kind].values()]))))
