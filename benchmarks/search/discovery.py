"""`discovery`: whether slice discovery finds planted failures first, and nothing where none is planted.

Real vectors (CIFAR-10), generated metadata, and a model that is asked something the classes do not tell. `pair`: where
camera is 7 and site is b it is wrong far more often. `kind`: about one class of photograph, which no column names.
`nothing`: nowhere. `both`: a pair and a kind in one lake. `choice` compares the ways to tell failures from chance on
the metadata of the same lakes: permuting the errors, or finding on one half and confirming on the other.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import data
from benchmarks.harness.rounds import Options, say
from benchmarks.search import vectors

if TYPE_CHECKING:
    from lake.storage.store import Lake

PARTS = ("pair", "kind", "both", "nothing", "choice")
SEEDS, ANSWERS, QUICK_ANSWERS = 10, 10_000, 3_000
USUAL, PLANTED = 0.08, 0.4
OF_ITS_KIND = 0.5  # share of the first finding's images that must be of the planted kind
_CHOICE_SEEDS = 60


@dataclass(frozen=True)
class Planted:
    """A lake, and who was planted in it: bool (n,) each, in the order of `image_ids`."""

    lake: Lake
    image_ids: list[str]
    pair: np.ndarray
    kind: np.ndarray


def measure(options: Options) -> dict[str, Any]:
    """Counts over the seeds, and how long a discovery takes."""
    data_folder = data.folder(options.data)
    known = vectors.cifar10(data_folder)
    n = QUICK_ANSWERS if options.quick else ANSWERS
    seeds = options.rounds or SEEDS
    figures: dict[str, Any] = {"answers": n, "seeds": seeds, "wrong_elsewhere": USUAL, "wrong_where_planted": PLANTED}
    for part in options.what:
        if part == "choice":
            figures[part] = _choice(n, _CHOICE_SEEDS if not options.quick else SEEDS)
        else:
            figures[part] = _part(part, known, n, seeds, options.work)
    return {"figures": figures, "left_out": []}


def _part(part: str, known: vectors.Labelled, n: int, seeds: int, work: Path) -> dict[str, Any]:
    from embeddings.discovery.discovery import discover
    from embeddings.discovery.findings import FailingSlice

    first, found_both, silent, times, pure = 0, 0, 0, [], []
    extra = 0
    for seed in range(seeds):
        made = make(work / f"{part}-{seed}", known, n, seed, part)
        found = discover(made.lake, seed=seed)
        times.append(found.seconds)
        is_pair = [_is_pair(one) for one in found.findings]
        place = {name: at for at, name in enumerate(made.image_ids)}

        def of_kind(one: FailingSlice, made: Planted = made, place: dict[str, int] = place) -> float:
            return float(made.kind[[place[name] for name in one.image_ids]].mean()) if one.image_ids else 0.0

        shares = [of_kind(one) for one in found.findings]
        if part == "pair":
            first += bool(is_pair[:1] and is_pair[0])
        elif part == "kind":
            first += bool(shares[:1] and shares[0] >= OF_ITS_KIND)
            pure.append(shares[0] if shares else 0.0)
        elif part == "both":
            found_both += any(is_pair) and any(share >= OF_ITS_KIND for share in shares)
        silent += not found.findings
        extra += max(0, len(found.findings) - (2 if part == "both" else 1))
        say(f"{part} seed {seed}: {'; '.join(one.sentence() for one in found.findings) or 'nothing'}")
    facts: dict[str, Any] = {"seconds": float(np.median(times))}
    if part == "nothing":
        return {"nothing_told": silent, **facts}
    if part == "both":
        return {"both_found": found_both, "more_told": extra, **facts}
    return {
        "ranked_first": first,
        "more_told": extra,
        **({"of_its_kind": float(np.mean(pure))} if pure else {}),
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
    wrong = rng.random(n) < np.where(planted, PLANTED, USUAL)
    truth = rng.random(n) < 0.5  # otherwise predictions of one class would rightly have more errors
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
            "label": names[int(truth[index] ^ wrong[index])],
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
            "label": names[int(truth[index])],
            "origin": "human",
        }
        for index in range(n)
    ]
    lk = lake.create(str(folder), embedders=["efficientnet-lite0"])
    lk.insert("predictions", pa.Table.from_pylist(rows, schema=schema.PREDICTIONS.arrow()))
    lk.insert("labels", pa.Table.from_pylist(labels, schema=schema.LABELS.arrow()))
    record = lk.embedders()[0]
    from dataclasses import replace

    lk.bind_embedder(replace(record, dim=known.vectors.shape[1], weights_sha256="0" * 64))
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
        hits, alarms, times = {"dealt": 0, "split": 0}, {"dealt": 0, "split": 0}, {"dealt": 0.0, "split": 0.0}
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            columns = metadata(rng, size)
            codes = np.column_stack([_coded(values) for values in columns.values()])
            pair = (columns["camera"] == 7) & (columns["site"] == "b")
            names = [*columns]
            wanted = {(names.index("camera"), 7), (names.index("site"), 1)}
            planted = rng.random(size) < np.where(pair, PLANTED, USUAL)
            chance = rng.random(size) < USUAL
            for method, find in (("dealt", _dealt), ("split", _split)):
                start = time.perf_counter()
                conditions = find(codes, planted.astype(float), seed)
                times[method] += time.perf_counter() - start
                hits[method] += bool(conditions) and set(conditions[0]) == wanted
                alarms[method] += bool(find(codes, chance.astype(float), seed))
        figures = {f"{method} {name}": count for name, counts in (("first", hits), ("false_alarms", alarms)) for method, count in counts.items()}  # fmt: skip  # noqa: E501
        out[f"{size} answers"] = figures | {f"{method} seconds": spent / seeds for method, spent in times.items()}
    return out


def _coded(values: np.ndarray) -> np.ndarray:
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) <= 12:
        return codes
    return np.searchsorted(np.quantile(values, [0.2, 0.4, 0.6, 0.8]), values)


def _dealt(codes: np.ndarray, errors: np.ndarray, seed: int) -> list[tuple[tuple[int, int], ...]]:
    from embeddings.discovery import subgroups

    return [failure.group.conditions for failure in subgroups.search(codes, errors, seed=seed).failures]


def _split(codes: np.ndarray, errors: np.ndarray, seed: int, candidates: int = 10) -> list[tuple[tuple[int, int], ...]]:
    """The ten best of one half, those that the other half confirms (Fisher's exact test, Holm)."""
    from embeddings.discovery import subgroups
    from lake.analytics.statistics import holm, more_errors

    half = np.random.default_rng(seed).random(len(errors)) < 0.5
    best = [group for group in subgroups.all_subgroups(codes[half], errors[half])[:candidates] if group.score > 0]
    other, wrong = codes[~half], errors[~half]
    tests = []
    for group in best:
        inside = np.logical_and.reduce([other[:, dimension] == value for dimension, value in group.conditions])
        outside = ~inside
        counts = (wrong[inside].sum(), inside.sum(), wrong[outside].sum(), outside.sum())
        tests.append(more_errors(*(int(count) for count in counts)))
    return [group.conditions for group, p in zip(best, holm(tests), strict=True) if p <= subgroups.LEVEL]
