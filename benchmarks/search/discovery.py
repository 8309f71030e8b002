"""`discovery`: how often slice discovery finds planted errors, and how often it raises a false alarm.

Each seed makes a lake: vectors of CIFAR-10, generated metadata, and a model for a task that is independent of the
CIFAR-10 classes. Errors are planted by part. `pair`: images with camera 7 and site b. `kind`: images of one CIFAR-10
class, which no column names. `both`: both in one lake. `nothing`: no planted errors. `choice` compares two tests on the
metadata of such lakes: permuting the errors, or searching one half and confirming on the other half.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import data
from benchmarks.harness.rounds import Options, say
from benchmarks.search import vectors

if TYPE_CHECKING:
    from lake.storage.store import Lake

PARTS = ("pair", "kind", "both", "nothing", "choice")
SEEDS, PREDICTIONS, PREDICTIONS_QUICK = 10, 10_000, 3_000
ERROR_RATE, PLANTED_ERROR_RATE = 0.08, 0.4
MINIMUM_PURITY = 0.5  # share of the first finding's images that must be of the planted kind
CHOICE_SEEDS = 60


@dataclasses.dataclass(frozen=True)
class Planted:
    """A lake and its images with planted errors: bool (n,) each, in the order of `image_ids`."""

    lake: Lake
    image_ids: list[str]
    pair: np.ndarray
    kind: np.ndarray


def measure(options: Options) -> dict[str, Any]:
    """Counts over the seeds, and the seconds of one discovery."""
    data_folder = data.folder(options.data)
    known = vectors.cifar10(data_folder)
    n = PREDICTIONS_QUICK if options.quick else PREDICTIONS
    seeds = options.rounds or SEEDS
    figures: dict[str, Any] = {
        "predictions": n,
        "seeds": seeds,
        "wrong_elsewhere": ERROR_RATE,
        "wrong_where_planted": PLANTED_ERROR_RATE,
    }
    for part in options.parts:
        if part == "choice":
            figures[part] = _choice(n, CHOICE_SEEDS if not options.quick else SEEDS)
        else:
            figures[part] = _part(part, known, n, seeds, options.work)
    return {"figures": figures, "left_out": []}


def _part(part: str, known: vectors.Labelled, n: int, seeds: int, work: Path) -> dict[str, Any]:
    from embeddings.discovery.discovery import discover

    ranked_first, found_both, without_findings, times, purities = 0, 0, 0, [], []
    extra_findings = 0
    for seed in range(seeds):
        planted = make(work / f"{part}-{seed}", known, n, seed, part)
        result = discover(planted.lake, seed=seed)
        times.append(result.seconds)
        pairs = [_is_pair(finding) for finding in result.findings]
        is_kind = dict(zip(planted.image_ids, planted.kind.tolist(), strict=True))
        shares = [float(np.mean([is_kind[i] for i in f.image_ids])) if f.image_ids else 0.0 for f in result.findings]
        if part == "pair":
            ranked_first += bool(pairs[:1] and pairs[0])
        elif part == "kind":
            ranked_first += bool(shares[:1] and shares[0] >= MINIMUM_PURITY)
            purities.append(shares[0] if shares else 0.0)
        elif part == "both":
            found_both += any(pairs) and any(share >= MINIMUM_PURITY for share in shares)
        without_findings += not result.findings
        extra_findings += max(0, len(result.findings) - (2 if part == "both" else 1))
        say(f"{part} seed {seed}: {'; '.join(finding.sentence() for finding in result.findings) or 'nothing'}")
    facts: dict[str, Any] = {"seconds": float(np.median(times))}
    if part == "nothing":
        return {"nothing_told": without_findings, **facts}
    if part == "both":
        return {"both_found": found_both, "more_told": extra_findings, **facts}
    return {
        "ranked_first": ranked_first,
        "more_told": extra_findings,
        **({"of_its_kind": float(np.mean(purities))} if purities else {}),
        **facts,
    }


def _is_pair(finding: Any) -> bool:
    return {(c.dimension, c.value) for c in finding.conditions} == {("metadata.camera", "7"), ("metadata.site", "b")}


def make(folder: Path, known: vectors.Labelled, n: int, seed: int, part: str) -> Planted:
    """Makes a lake of n predictions with vectors, metadata and labels."""
    import pyarrow as pa

    import lake
    from embeddings.backfill.vector_columns import store_vectors
    from lake.storage import schema

    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(known), n, replace=False)
    classes = sorted(set(known.classes.tolist()))
    kind = known.classes[chosen] == classes[seed % len(classes)]
    columns = metadata(rng, n)
    pair = (columns["camera"] == 7) & (columns["site"] == "b")
    planted = {"pair": pair, "kind": kind, "both": pair | kind, "nothing": np.zeros(n, bool)}[part]
    incorrect = rng.random(n) < np.where(planted, PLANTED_ERROR_RATE, ERROR_RATE)
    truths = rng.random(n) < 0.5  # otherwise predictions of one class would rightly have more errors
    image_ids = [hashlib.sha256(f"{seed} {index}".encode()).hexdigest() for index in range(n)]
    moment = dt.datetime(2026, 9, 1, tzinfo=dt.UTC)
    seconds = rng.integers(0, 28 * 86_400, n).tolist()
    sure = np.round(rng.uniform(0.5, 1, n), 4).tolist()
    names = ("fine", "scratch")
    rows = [
        {
            "prediction_id": str(uuid.UUID(int=seed * n + index)),
            "image_id": image_ids[index],
            "timestamp": moment + dt.timedelta(seconds=seconds[index]),
            "model": "m",
            "model_version": "1",
            "task": "classification",
            "label": names[int(truths[index] ^ incorrect[index])],
            "confidence": sure[index],
            "metadata": json.dumps({key: values[index].item() for key, values in columns.items()}),
            "ingested_at": moment,
        }
        for index in range(n)
    ]
    labels = [
        {
            "event_id": str(uuid.UUID(int=seed * n + index)),
            "image_id": image_ids[index],
            "timestamp": moment,
            "task": "classification",
            "label": names[int(truths[index])],
            "origin": "human",
        }
        for index in range(n)
    ]
    lk = lake.create(str(folder), embedders=["efficientnet-lite0"])
    lk.insert("samples", pa.Table.from_pylist(rows, schema=schema.SAMPLES.arrow()))
    lk.insert("labels", pa.Table.from_pylist(labels, schema=schema.LABELS.arrow()))
    record = lk.embedders()[0]
    lk.bind_embedder(dataclasses.replace(record, dim=known.vectors.shape[1], weights_sha256="0" * 64))
    store_vectors(lk, record.column, dict(zip(image_ids, known.vectors[chosen], strict=True)))
    return Planted(lk, image_ids, pair, kind)


def metadata(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Seven metadata keys of n predictions: cameras have firmware, operators work in shifts, two are numbers."""
    camera = rng.integers(0, 10, n)
    shift = rng.integers(0, 3, n)
    return {
        "camera": camera,
        "site": rng.choice(list("abcd"), n),
        "lens": rng.choice(["wide", "tele", "macro"], n, p=[0.6, 0.3, 0.1]),
        "firmware": np.array(["1.0", "1.1", "2.0"])[(camera + (rng.random(n) < 0.2)) % 3],
        "operator": np.char.add("op", (shift * 4 + rng.integers(0, 4, n)).astype(str)),
        "exposure_ms": np.round(rng.lognormal(2, 0.5, n), 2),
        "brightness": rng.integers(0, 256, n),
    }


def _choice(n: int, seeds: int) -> dict[str, Any]:
    """Power and false alarms of permuted errors compared with a held-out split, by planted predictions."""
    out: dict[str, Any] = {"seeds": seeds}
    for size in (n // 10, n // 3, n):
        hits, alarms, seconds = {"dealt": 0, "split": 0}, {"dealt": 0, "split": 0}, {"dealt": 0.0, "split": 0.0}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            columns = metadata(rng, size)
            codes = np.column_stack([_coded(values) for values in columns.values()])
            pair = (columns["camera"] == 7) & (columns["site"] == "b")
            names = [*columns]
            pair_conditions = {(names.index("camera"), 7), (names.index("site"), 1)}
            planted_errors = rng.random(size) < np.where(pair, PLANTED_ERROR_RATE, ERROR_RATE)
            random_errors = rng.random(size) < ERROR_RATE
            for method, search in (("dealt", _permuted), ("split", _split)):
                start = time.perf_counter()
                conditions = search(codes, planted_errors.astype(float), seed)
                seconds[method] += time.perf_counter() - start
                hits[method] += bool(conditions) and set(conditions[0]) == pair_conditions
                alarms[method] += bool(search(codes, random_errors.astype(float), seed))
        out[f"{size} predictions"] = {
            **{f"{method} first": count for method, count in hits.items()},
            **{f"{method} false_alarms": count for method, count in alarms.items()},
            **{f"{method} seconds": total / seeds for method, total in seconds.items()},
        }
    return out


def _coded(values: np.ndarray) -> np.ndarray:
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) <= 12:
        return codes
    return np.searchsorted(np.quantile(values, [0.2, 0.4, 0.6, 0.8]), values)


def _permuted(codes: np.ndarray, errors: np.ndarray, seed: int) -> list[tuple[tuple[int, int], ...]]:
    from embeddings.discovery import subgroups

    return [failure.group.conditions for failure in subgroups.search(codes, errors, seed=seed).failures]


def _split(codes: np.ndarray, errors: np.ndarray, seed: int, candidates: int = 10) -> list[tuple[tuple[int, int], ...]]:
    """The best subgroups of one half that the other half confirms (Fisher's exact test, Holm)."""
    from embeddings.discovery import subgroups
    from lake.analytics.statistics import holm, more_errors

    half = np.random.default_rng(seed).random(len(errors)) < 0.5
    best = [group for group in subgroups.all_subgroups(codes[half], errors[half])[:candidates] if group.score > 0]
    other, other_errors = codes[~half], errors[~half]
    tests = []
    for group in best:
        inside = np.logical_and.reduce([other[:, dimension] == value for dimension, value in group.conditions])
        outside = ~inside
        counts = (other_errors[inside].sum(), inside.sum(), other_errors[outside].sum(), outside.sum())
        tests.append(more_errors(*(int(count) for count in counts)))
    return [group.conditions for group, p in zip(best, holm(tests), strict=True) if p <= subgroups.LEVEL]
