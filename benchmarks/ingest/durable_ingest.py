"""`durable_ingest`: events per second that the server acknowledges once they are safe on disk.

Each event is a prediction with an image of 55 KB. The load generator (`benchmarks/ingest/load.py`) and one server share
the machine. Every contender gets the same generator, images, uvicorn, uvloop and httptools, and a new folder each
round. Embedding and draining run in the background, as in production; part `drain` measures the drainer alone.

Limits, in the same rounds: `echo` is the same server without storing; `disk` writes 8 MB at a time with fdatasync. The
goals are ratios to the lower of the two, to one commit to Lance per request (`lance`, synced as ours is;
`lance_unsynced` does not survive a power loss), and to fdatasync for one client. `files` writes and syncs two files per
request; `sqlite` is our spool with the images inside SQLite.

Parts: `throughput` (32 clients, and one), `overload` (open loop: 0.5 to 10 times an admission rate of 200 events a
second; then without a limit), `beside` (acknowledgements while the app is open and an embedding job runs), `fresh`
(from acknowledgement to SQL and to search), `drain`.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness.rounds import Contender, Options, Rounds, estimate, noise, rounds, run, undisturbed

PARTS = ("throughput", "overload", "beside", "fresh", "drain")
CONTENDERS = "benchmarks.ingest.durable_contenders"
ROUNDS, ROUNDS_QUICK = 7, 3
SECONDS, SECONDS_QUICK = 6.0, 2.0
CLIENTS = 32
PEERS = ("lance", "lance_unsynced", "files", "sqlite", "echo")
RATE = 200
FACTORS = (0.5, 1.0, 2.0, 5.0, 10.0)
UNLIMITED = (500, 1_000, 2_000, 4_000, 8_000)


def measure(options: Options) -> dict[str, Any]:
    seconds = SECONDS_QUICK if options.quick else SECONDS
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": []}
    parts = {
        "throughput": _throughput,
        "overload": _overload,
        "beside": _beside,
        "fresh": _fresh,
        "drain": _drain,
    }
    for part in options.parts:
        parts[part](options, seconds, document)
    return document


def _throughput(options: Options, seconds: float, document: dict[str, Any]) -> None:
    arguments = {"clients": CLIENTS, "seconds": seconds}
    contenders = [Contender("lakeloop", f"{CONTENDERS}:lakeloop", arguments)]
    contenders += [Contender(name, f"{CONTENDERS}:peer", {**arguments, "kind": name}) for name in PEERS]
    contenders.append(Contender("disk", f"{CONTENDERS}:disk", {"seconds": seconds / 2}))
    count = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    all_rounds = rounds(contenders, count + (count > 1), options.work)[count > 1 :]
    used_rounds = undisturbed(all_rounds)
    document["ours"]["throughput"] = _figures(used_rounds, "lakeloop")
    for name in PEERS:
        document["peers"][name] = _figures(used_rounds, name)
    ratios = document["ratios"]
    for name in PEERS:
        ratios[f"events/s, {CLIENTS} clients: lakeloop / {name}"] = estimate(
            _rate(r, "lakeloop") / _rate(r, name) for r in used_rounds
        )
    ratios[f"events/s, {CLIENTS} clients: lakeloop / the lower of echo and disk"] = estimate(
        _rate(r, "lakeloop") / min(_rate(r, "echo"), r["disk"].result["events_per_second"]) for r in used_rounds
    )
    ratios["ms, one client: lakeloop / fdatasync"] = estimate(
        r["lakeloop"].result["one"]["p50_ms"] / r["disk"].result["fdatasync_p50_ms"] for r in used_rounds
    )
    document["figures"] |= {
        "disk_mb_per_second": estimate(r["disk"].result["mb_per_second"] for r in used_rounds),
        "disk_events_per_second": estimate(r["disk"].result["events_per_second"] for r in used_rounds),
        "fdatasync_p50_ms": estimate(r["disk"].result["fdatasync_p50_ms"] for r in used_rounds),
        "fdatasync_p99_ms": estimate(r["disk"].result["fdatasync_p99_ms"] for r in used_rounds),
        "one client, ms allowed (3 fdatasync + 3)": estimate(
            3 * r["disk"].result["fdatasync_p50_ms"] + 3 for r in used_rounds
        ),
        "noise": noise(all_rounds),
    }


def _figures(used_rounds: Rounds, name: str) -> dict[str, Any]:
    figures = {}
    for part in ("many", "one"):
        numbers = [r[name].result[part] for r in used_rounds]
        figures[part] = {
            "events_per_second": estimate(n["accepted_per_second"] for n in numbers),
            "p50_ms": estimate(n["p50_ms"] for n in numbers),
            "p99_ms": estimate(n["p99_ms"] for n in numbers),
            "server_cpu_us_an_event": estimate(n["server_cpu_us"] for n in numbers),
            "generator_cores": estimate(n["generator_cores"] for n in numbers),
        }
    return figures


def _rate(process: dict[str, Any], name: str) -> float:
    return float(process[name].result["many"]["accepted_per_second"])


def _overload(options: Options, seconds: float, document: dict[str, Any]) -> None:
    longer = seconds if options.quick else 2 * seconds
    for name, rate, loads in (
        ("admission at 200/s", RATE, [RATE * f for f in FACTORS]),
        ("no limit", None, list(UNLIMITED)),
    ):
        arguments = {"rate": rate, "loads": loads, "seconds": longer}
        result = run(Contender(name, f"{CONTENDERS}:overload", arguments), options.work).result
        document["figures"][f"overload, {name}"] = result
        points = list(result["loads"].values())
        peak = max(p["accepted_per_second"] for p in points)
        document["ratios"][f"goodput at the highest load / peak, {name}"] = points[-1]["accepted_per_second"] / peak


def _beside(options: Options, seconds: float, document: dict[str, Any]) -> None:
    process = run(Contender("beside", f"{CONTENDERS}:beside", {"seconds": 2 * seconds}), options.work).result
    document["figures"]["acknowledgements beside other work"] = process


def _fresh(options: Options, seconds: float, document: dict[str, Any]) -> None:
    process = run(
        Contender("fresh", f"{CONTENDERS}:fresh", {"events": 10 if options.quick else 40}), options.work
    ).result
    document["figures"]["seconds from acknowledgement"] = process


def _drain(options: Options, seconds: float, document: dict[str, Any]) -> None:
    process = run(
        Contender("drain", f"{CONTENDERS}:drained", {"events": 500 if options.quick else 4_000}), options.work
    )
    document["figures"]["drain"] = process.result
