"""`ingest`: images per second from a folder to embedded rows, beside the machine's limit and peers.

**photographs.** Each round ingests and embeds 600 photographs into a new lake, once per engine. The clock runs from the
first file read to the last row committed, thumbnails included. The limit of a round is

    cores / (CPU seconds per image of the network alone on prepared tensors
             + CPU seconds per image of the scaled decode and resize alone)

Both parts are measured in the same round, the network with the same engine. Loading code and network is reported apart
as start-up. Starting worker processes counts in `fraction_of_limit`; `fraction_of_limit_workers_apart` subtracts the
measured time of two such starts. The peers run the same weights.

**small-files.** 60,000 CIFAR-10 files without embedding: files per second, memory over time, and the same folder again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import data, machine, peers
from benchmarks.harness.rounds import (
    CORES,
    Contender,
    ContenderFailed,
    Options,
    Rounds,
    estimate,
    noise,
    rounds,
    run,
    say,
)
from benchmarks.harness.rounds import undisturbed as quiet_ones
from benchmarks.ingest.ingest_contenders import BATCH, CLIP, EMBEDDER

PARTS = ("photographs", "small-files")
CONTENDERS = "benchmarks.ingest.ingest_contenders"
PHOTOGRAPHS, PHOTOGRAPHS_QUICK = 600, 200
SMALL_FILES, SMALL_FILES_QUICK = 60_000, 6_000
SAME = 0.9999


def measure(options: Options) -> dict[str, Any]:
    data_folder = data.folder(options.data)
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": []}
    if "photographs" in options.parts:
        _photographs(options, data_folder, document)
    if "small-files" in options.parts:
        _small_files(options, data_folder, document)
    return document


def _photographs(options: Options, data_folder: Path, document: dict[str, Any]) -> None:
    work, left_out = str(options.work), document["left_out"]
    most = PHOTOGRAPHS_QUICK if options.quick else PHOTOGRAPHS
    folder = str(data.photographs(data_folder, options.work, most))
    if options.quick:
        left_out.append(
            f"quick: {most} of {PHOTOGRAPHS} photographs; fixed costs weigh {PHOTOGRAPHS // most} times as much"
        )
    engines = ["torch"]
    if machine.installed("openvino"):
        engines.append("openvino")
    else:
        left_out.append("engine openvino: not installed (extra cpu)")
    squares = str(options.work / "squares.npy")
    ready = run(Contender("squares", f"{CONTENDERS}:stages", {"folder": folder, "squares": squares}), options.work)

    parts, closing = [Contender("stages", f"{CONTENDERS}:stages", {"folder": folder})], []
    for engine in engines:
        parts.append(
            Contender(f"forward {engine}", f"{CONTENDERS}:forward_only", {"squares": squares, "engine": engine})
        )
        closing.append(_ours(engine, engine, folder, work))
    parts += [
        *closing,
        Contender("plain_dataloader", f"{CONTENDERS}:plain_dataloader", {"folder": folder, "work": work}),
    ]
    rivals = {"plain_dataloader": EMBEDDER}
    for contender in _installed_peers(options, folder, left_out):
        parts.append(contender)
        rivals[contender.name] = EMBEDDER
        if contender.name == "clip-retrieval":
            rivals[contender.name] = CLIP
            parts += [
                _ours(f"clip {e}", e, folder, work, CLIP, str(options.work / f"{CLIP}.safetensors")) for e in engines
            ]
    all_rounds = rounds(parts, options.rounds or 3, options.work)
    used_rounds = quiet_ones(all_rounds)

    for engine in engines:
        document["ours"][engine] = _against_limit(used_rounds, engine)
        document["peers"][f"forward_only {engine}"] = {
            "images_per_second": estimate(_rate(r[f"forward {engine}"]) for r in used_rounds)
        }
        document["ratios"][f"{engine} / forward_only {engine}"] = _ratio(used_rounds, engine, f"forward {engine}")
    for rival, embedder in rivals.items():
        names = [e if embedder == EMBEDDER else f"clip {e}" for e in engines]
        document["peers"][rival] = _figures(used_rounds, rival)
        for name in names:
            document["ratios"][f"{name} / {rival}"] = _ratio(used_rounds, name, rival)
            if embedder == CLIP:
                document["ours"][name] = _figures(used_rounds, name)
            saved = f"lakeloop-{embedder}-{name.split()[-1]}"
            agreement = _agreement(options.work, saved, rival, ready.result["full_size"])
            document["peers"][rival].setdefault("cosine_to_ours", {})[name] = agreement
    document["figures"]["photographs"] = {
        "images": ready.result["images"],
        "decoded_at_full_size": len(ready.result["full_size"]),
        "cpu_seconds_per_image": _per_image(used_rounds, engines),
        "noise": noise(all_rounds),
    }


def _ours(
    name: str, engine: str, folder: str, work: str, embedder: str = EMBEDDER, weights: str | None = None
) -> Contender:
    arguments = {"folder": folder, "work": work, "engine": engine, "embedder": embedder, "weights": weights}
    return Contender(name, f"{CONTENDERS}:lakeloop", arguments)


def _installed_peers(options: Options, folder: str, left_out: list[str]) -> list[Contender]:
    """The requested peers that install and pass a first run; the document lists the others with the reason."""
    contenders = []
    for name in peers.PEERS:
        if name not in options.with_peers:
            left_out.append(f"{name}: not requested (--with-peer {name} installs and runs it)")
            continue
        try:
            python = peers.python(name)
            exported = run(
                Contender("weights", f"{CONTENDERS}:export", {"work": str(options.work)}), options.work
            ).result
            arguments = {"folder": folder, "work": str(options.work), "batch": BATCH, "cores": CORES}
            if name == "fiftyone":
                arguments |= {k: exported[k] for k in ("resize", "crop", "mean", "std")} | {
                    "weights": exported[EMBEDDER]
                }
            else:
                arguments |= {"arch": "ViT-B-32", "weights": exported[CLIP]}
            contender = Contender(name, f"benchmarks.ingest.peer_{name.replace('-', '_')}:run", arguments, python)
            say(f"{name}: first run, not measured")
            run(contender, options.work, turn=-1)
        except (peers.PeerUnavailable, ContenderFailed) as error:
            left_out.append(f"{name}: {str(error).splitlines()[-1]}")
            continue
        contenders.append(contender)
        if name == "clip-retrieval":
            left_out.append(
                "published CLIP weights: no package contains them; clip-retrieval and lakeloop ran random weights"
            )
    return contenders


def _against_limit(used_rounds: Rounds, engine: str) -> dict[str, Any]:
    limits = [CORES / (_cpu(r[f"forward {engine}"]) + _stage(r, "prepare")) for r in used_rounds]
    rates = [_rate(r[engine]) for r in used_rounds]
    apart = [_rate(r[engine], less=r[engine].result["pools"]["seconds"]) for r in used_rounds]
    return {
        **_figures(used_rounds, engine),
        "images_per_second_workers_apart": estimate(apart),
        "limit_images_per_second": estimate(limits),
        "fraction_of_limit": estimate(a / b for a, b in zip(rates, limits, strict=True)),
        "fraction_of_limit_workers_apart": estimate(a / b for a, b in zip(apart, limits, strict=True)),
        "goal_fraction_of_limit": 0.85,
        "seconds": {
            part: estimate(r[engine].result[part]["seconds"] for r in used_rounds)
            for part in ("startup", "pools", "ingest", "backfill", "whole")
        },
    }


def _figures(used_rounds: Rounds, name: str) -> dict[str, Any]:
    out = {
        "images_per_second": estimate(_rate(r[name]) for r in used_rounds),
        "cpu_seconds_per_image": estimate(_cpu(r[name]) for r in used_rounds),
        "startup_seconds": estimate(r[name].result["startup"]["seconds"] for r in used_rounds),
        "peak_rss_gb": estimate(r[name].peak_rss / 1e9 for r in used_rounds),
    }
    versions = used_rounds[0][name].result.get("versions")
    return out | ({"versions": versions} if versions else {})


def _per_image(used_rounds: Rounds, engines: list[str]) -> dict[str, Any]:
    """CPU seconds per image of each step alone; scaled_decode is part of prepare.

    `<engine> rest` is what lakeloop used besides these steps: starting workers, pipes, commits.
    """
    steps = ("read_and_hash", "thumbnail", "prepare")
    out = {step: estimate(_stage(r, step) for r in used_rounds) for step in (*steps, "scaled_decode")}
    for engine in engines:
        out[f"forward {engine}"] = estimate(_cpu(r[f"forward {engine}"]) for r in used_rounds)
        out[f"{engine} whole"] = estimate(_cpu(r[engine]) for r in used_rounds)
        alone = [_cpu(r[f"forward {engine}"]) + sum(_stage(r, step) for step in steps) for r in used_rounds]
        out[f"{engine} rest"] = estimate(_cpu(r[engine]) - a for r, a in zip(used_rounds, alone, strict=True))
    return out


def _agreement(work: Path, ours: str, theirs: str, full_size: list[str]) -> dict[str, Any]:
    """Cosines of our vectors to a peer's vectors of the same files. Peers decode every file at full size."""
    a, b = np.load(work / f"vectors-{ours}.npz"), np.load(work / f"vectors-{theirs}.npz")
    if a["files"].tolist() != b["files"].tolist():
        raise ContenderFailed(f"{theirs} did not embed the same files")
    cosines = (a["vectors"].astype(np.float64) * b["vectors"]).sum(1)
    full = np.isin(a["files"], full_size)
    return {
        f"share_at_least_{SAME}_of_full_size": float((cosines[full] >= SAME).mean()) if full.any() else None,
        "lowest_of_full_size": float(cosines[full].min()) if full.any() else None,
        "lowest_of_scaled": float(cosines[~full].min()) if (~full).any() else None,
    }


def _small_files(options: Options, data_folder: Path, document: dict[str, Any]) -> None:
    most = SMALL_FILES_QUICK if options.quick else SMALL_FILES
    folder = data.small_files(data_folder, options.work, most)
    if folder is None:
        document["left_out"].append(f"small-files: no {data.SMALL_FILES} in {data_folder}")
        return
    if options.quick:
        document["left_out"].append(f"quick: {most} small files instead of {SMALL_FILES}, in one round")
    count = len(data.files_under(folder))
    arguments = {"folder": str(folder), "work": str(options.work), "images": count}
    contender = Contender("small-files", f"{CONTENDERS}:many_small", arguments)
    all_rounds = rounds([contender], options.rounds or (1 if options.quick else 3), options.work)
    used_rounds = quiet_ones(all_rounds)
    results = [r["small-files"].result for r in used_rounds]
    document["ours"]["small-files"] = {
        "files_per_second": estimate(count / r["whole"]["seconds"] for r in results),
        "goal_files_per_second_on_two_cores": 500,
        "again_files_per_second": estimate(count / r["again"]["seconds"] for r in results),
        "again_rows_added": max(r["again_rows_added"] for r in results),
        "cpu_seconds_per_file": estimate(r["whole"]["cpu_seconds"] / count for r in results),
        "peak_rss_all_gb": max(r["small-files"].peak_rss for r in used_rounds) / 1e9,
        "peak_rss_parent_gb": max(r["peak_rss_parent"] for r in results) / 1e9,
        "goal_peak_rss_gb": 1.5,
    }
    counts = {k: results[-1][k] for k in ("files", "images_new", "images_known", "rejected")}
    memory = {at: {process: n / 1e9 for process, n in m.items()} for at, m in results[-1]["rss"].items()}
    document["figures"]["small-files"] = {**counts, "rss_gb_when_done": memory, "noise": noise(all_rounds)}


def _rate(process: Any, less: float = 0.0) -> float:
    """Images per second."""
    return float(process.result["images"] / (process.result["whole"]["seconds"] - less))


def _cpu(process: Any) -> float:
    """CPU seconds per image."""
    return float(process.result["whole"]["cpu_seconds"] / process.result["images"])


def _stage(process: Any, step: str) -> float:
    stages = process["stages"].result
    return float(stages[step]["cpu_seconds"] / stages["images"])


def _ratio(used_rounds: Rounds, ours: str, theirs: str) -> dict[str, Any]:
    """Images per second, ours / theirs: above 1, ours is faster."""
    return estimate(_rate(r[ours]) / _rate(r[theirs]) for r in used_rounds)
