"""`duplicates`: recall and precision of near-duplicate detection on planted copies.

Each image gets five copies: re-encoded, resized, lightly cropped, brightened and shifted. A pair counts as found if
both images are in one group; a family has 15 pairs.

- `photographs`: the 600 photographs and 3,000 copies. The goal: recall 0.98 at precision 0.99.
- `solar`: every second solar cell, and copies of every sixth of those; these images all look alike.
- `scale`: 100,000 vectors, a tenth of them copies of others: seconds until the groups exist, without thumbnails.

Peer: the best single cosine threshold, chosen with the true families, with groups made in the same way.
"""

from __future__ import annotations

import io
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import data as benchmark_data
from benchmarks.harness.rounds import Options, say
from benchmarks.search import vectors
from embeddings.duplicates import alignment, altered_copies, duplicates
from embeddings.duplicates.grouping import grouped
from embeddings.embedders import specs
from lake.images import decode

PARTS = ("photographs", "solar", "scale")
QUICK_PHOTOGRAPHS = 120
SCALE, SCALE_QUICK = 100_000, 20_000
DIM = 1_280
COSINES = np.arange(0.5, 0.99, 0.01)


def measure(options: Options) -> dict[str, Any]:
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": []}
    for part in options.parts:
        if part == "scale":
            document["figures"][part] = _scale(SCALE_QUICK if options.quick else SCALE)
            continue
        files, planted_of = _photographs(options) if part == "photographs" else _solar()
        document["figures"][part] = _found(files, planted_of)
        say(f"{part}: {document['figures'][part]}")
    if options.quick:
        document["left_out"].append(f"quick: {QUICK_PHOTOGRAPHS} photographs, {SCALE_QUICK:,} vectors")
    return document


def _photographs(options: Options) -> tuple[list[bytes], range]:
    _, files = vectors.photographs(benchmark_data.folder(options.data))
    files = files[:QUICK_PHOTOGRAPHS] if options.quick else files
    return files, range(len(files))


def _solar() -> tuple[list[bytes], range]:
    from search_app.demo.cells import cells, folder

    files = [(folder() / cell.path).read_bytes() for cell in cells()][::2]
    return files, range(0, len(files), 6)


def _found(originals: list[bytes], chosen: range) -> dict[str, Any]:
    files = [(n, "original", original) for n, original in enumerate(originals)]
    files += [(n, kind, original) for n in chosen for kind, original in altered_copies.copies(originals[n], n).items()]
    family = np.array([n for n, _, _ in files])
    kinds = np.array([kind for _, kind, _ in files])
    embedded = vectors.embed((Image.open(io.BytesIO(original)) for _, _, original in files), 224, len(files))
    prints = alignment.fingerprints([decode.decode(original).thumbnail for _, _, original in files])
    least = specs.duplicates_from(specs.DEFAULT)
    started = perf_counter()
    left, right, _ = duplicates.proposed(embedded, least)
    agreed = alignment.agreement(prints, left, right)
    aligned = agreed >= duplicates.ALIGNED

    def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        near = np.einsum("ij,ij->i", embedded[a], embedded[b]) >= least
        verdict: np.ndarray = near & (alignment.agreement(prints, a, b) >= duplicates.ALIGNED)
        return verdict

    groups = grouped(len(files), left[aligned], right[aligned], same)
    seconds = perf_counter() - started
    wrong = agreed[family[left] != family[right]]
    score = _score(groups, family) | {
        "images": len(files),
        "seconds": seconds,
        "milliseconds_a_pair": 1e3 * seconds / max(1, len(left)),
        "greatest_agreement_of_different": float(wrong.max(initial=-1)),
    }
    group_of = np.full(len(files), -1)
    for number, group in enumerate(groups):
        group_of[group] = number
    for kind in altered_copies.CHANGES:
        at = np.flatnonzero(kinds == kind)
        score[f"with_original.{kind}"] = float(np.mean((group_of[at] >= 0) & (group_of[at] == group_of[family[at]])))
    best: dict[str, Any] = {"recall": 0.0}
    every = duplicates.proposed(embedded, float(COSINES[0]))
    for threshold in COSINES:
        passing = every[2] >= threshold
        scored = _score(grouped(len(files), every[0][passing], every[1][passing]), family)
        if scored["precision"] >= 0.99 and scored["recall"] > best["recall"]:
            best = scored | {"cosine": float(threshold)}
    return score | {"best_cosine_alone": best}


def _score(groups: list[list[int]], family: np.ndarray) -> dict[str, float]:
    """Recall and precision over pairs, 0 to 1."""
    wanted = sum(n * (n - 1) // 2 for n in np.bincount(family).tolist())
    proposed = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    right = sum(n * (n - 1) // 2 for group in groups for n in np.bincount(family[group]).tolist())
    return {"recall": right / max(1, wanted), "precision": right / proposed if proposed else 1.0}


def _scale(count: int) -> dict[str, Any]:
    """Vectors in 500 clusters; a tenth of them has a copy at a cosine of 0.9."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(500, DIM)).astype(np.float32)
    points = centres[rng.integers(0, 500, count)] + rng.normal(size=(count, DIM)).astype(np.float32)
    copies = count // 11
    noise = rng.normal(size=(copies, DIM)).astype(np.float32) * np.linalg.norm(points[:copies], axis=1)[:, None]
    points[-copies:] = points[:copies] + noise * (0.48 / DIM**0.5)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    started = perf_counter()
    left, right, _ = duplicates.proposed(points, 0.75)
    groups = grouped(count, left, right)
    seconds = perf_counter() - started
    pairs = {(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)}
    hits = sum((n, count - copies + n) in pairs for n in range(copies))
    return {"vectors": count, "seconds": seconds, "groups": len(groups), "copies_proposed": hits / copies}
