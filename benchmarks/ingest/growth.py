"""Compares a maintained lake of many tiny commits with a lake that got the same rows in one commit.

    python -m benchmarks growth [--batches N] [--quick] [--json]

`tiny` gets N batches of one to three rows, each a commit to thumbnails, images and predictions, as the drainer of a
quiet service makes them. Vectors are filled in every 64 batches, as by `embed --watch`, and the lake is maintained
whenever `maintenance.due` is true. `at_once` gets the same rows in one step. Both are then maintained as by `lakeloop
maintain --older-than 0`. Measured alternately in one process: a scan of four columns, a scan of vectors, an SQL
aggregate, a look-up of 100 ids, reading 32 images, and a search for the 20 nearest. Images are 2 KB of noise: the
number of commits matters, not bytes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness import machine
from benchmarks.harness.rounds import estimate, say

BATCHES, BATCHES_QUICK = 10_000, 500
DIM = 64
EMBED_EVERY, MAINTAIN_EVERY = 64, 100
IMAGE_BYTES, THUMBNAIL_BYTES = 2_000, 500
TURNS = 15
GOAL = 1.3


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks growth", description="Compare a lake of tiny commits with a lake of one commit."
    )
    parser.add_argument("--batches", type=int, metavar="N", help=f"number of tiny batches (default {BATCHES:,})")
    parser.add_argument("--quick", action="store_true", help=f"{BATCHES_QUICK} batches")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    options = parser.parse_args(arguments)
    batches = options.batches or (BATCHES_QUICK if options.quick else BATCHES)
    if batches < 1:
        parser.error(f"--batches is {batches}; it must be at least 1")
    with tempfile.TemporaryDirectory(prefix="lakeloop-growth-") as work:
        document = measure(Path(work), batches)
    document = {"name": "growth", "machine": machine.facts(), **document}
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        for section in ("ratios", "figures"):
            for name, value in document[section].items():
                print(f"{name:<44} {json.dumps(value)}")
    slow = [n for n, r in document["ratios"].items() if n.startswith("seconds") and r["median"] > GOAL]
    for name in slow:
        say(f"{name} is above {GOAL}")
    return 1 if slow else 0


def measure(work: Path, batches: int) -> dict[str, Any]:
    """Builds both lakes, maintains them and compares them. Ratios are tiny / at_once; the goal is 1.3."""
    from lake.upkeep import maintenance

    sizes = [1 + i % 3 for i in range(batches)]
    figures: dict[str, Any] = {"batches": batches, "rows": sum(sizes), "goal": GOAL}
    lakes = {}
    for name, steps in (("tiny", sizes), ("at_once", [sum(sizes)])):
        started = perf_counter()
        lake, in_passing = _built(work / name, steps)
        figures[f"{name}: build seconds"] = perf_counter() - started
        figures[f"{name}: maintained in passing"] = in_passing
        figures[f"{name}: bytes before maintenance"] = _disk(work / name)
        report = maintenance.maintain(lake, older_than=dt.timedelta(0))
        figures[f"{name}: maintenance seconds"] = report.seconds
        figures[f"{name}: fragments of samples"] = report.tables["samples"].fragments_after
        figures[f"{name}: fragments of images"] = report.tables["images"].fragments_after
        figures[f"{name}: bytes"] = _disk(work / name)
        lakes[name] = lake
        say(f"{name}: {figures[f'{name}: build seconds']:.1f} s, then maintained in {report.seconds:.1f} s")
    ratios = {"bytes: tiny / at_once": estimate([figures["tiny: bytes"] / figures["at_once: bytes"]])}
    for action, act in _acts(figures["rows"]).items():
        taken: dict[str, list[float]] = {name: [] for name in lakes}
        for turn in range(TURNS + 2):
            for name in list(lakes) if turn % 2 else list(lakes)[::-1]:
                started = perf_counter()
                act(lakes[name])
                taken[name].append(perf_counter() - started)
        # The first two turns fill the caches.
        pairs = list(zip(taken["tiny"][2:], taken["at_once"][2:], strict=True))
        ratios[f"seconds, {action}: tiny / at_once"] = estimate(a / b for a, b in pairs)
        for name in lakes:
            figures[f"{name}: ms, {action}"] = float(np.median(taken[name][2:]) * 1e3)
    return {"ours": {}, "peers": {}, "ratios": ratios, "figures": figures, "left_out": []}


def _acts(rows: int) -> dict[str, Callable[[Any], Any]]:
    """The timed operations by name; each takes the lake."""
    from embeddings.search.search import nearest_images
    from lake.storage.store import literals

    rng = np.random.default_rng(7)
    image_ids = [_image_id(int(n)) for n in rng.integers(0, rows, 100)]
    query = _vectors([rows])[0]
    columns = ["image_id", "label", "confidence", "timestamp"]
    grouped = "SELECT label, count(*), avg(confidence) FROM predictions GROUP BY label ORDER BY label"
    return {
        "scan of 4 columns": lambda lake: lake.scan("samples", columns),
        "scan of vectors": lambda lake: lake.scan("samples", ["emb_x"]),
        "SQL aggregate": lambda lake: lake.sql(grouped),
        "look-up of 100 ids": lambda lake: lake.scan("samples", columns, f"image_id in ({literals(image_ids)})"),
        "32 images": lambda lake: list(lake.images(image_ids[:32])),
        "20 nearest": lambda lake: nearest_images(lake, lake.embedders()[0], query, 20, None, ()),
    }


def _built(folder: Path, steps: Sequence[int]) -> tuple[Any, int]:
    """A lake that got `steps` rows commit by commit, and how often it was maintained meanwhile."""
    from embeddings.backfill.vector_columns import store_vectors
    from lake import open_lake
    from lake.storage import indexes
    from lake.storage.missing_vectors import MissingVectors
    from lake.upkeep import maintenance

    lake = open_lake.create(str(folder), embedders=["x"])
    lake.bind_embedder(replace(lake.embedders()[0], dim=DIM, weights_sha256="0" * 64))
    missing = MissingVectors(lake, "emb_x")
    done = maintained = 0
    waiting: list[int] = []
    for turn, size in enumerate(steps, 1):
        numbers = range(done, done + size)
        for name, table in _tables(numbers).items():
            lake.insert(name, table)
        done += size
        waiting += numbers
        if turn % EMBED_EVERY == 0 or turn == len(steps):
            names = [_image_id(n) for n in waiting]
            store_vectors(lake, "emb_x", dict(zip(names, _vectors(waiting), strict=True)), missing)
            waiting = []
        if turn % MAINTAIN_EVERY == 0:
            for name in ("thumbnails", "images", "samples"):
                indexes.complete(lake, name, thorough=False)
            if maintenance.due(lake):
                # This run is shorter than a real week: drop old versions at once, not after an hour.
                maintenance.maintain(lake, thorough=False, older_than=dt.timedelta(0))
                maintained += 1
        if turn % 1_000 == 0:
            say(f"{turn:,} of {len(steps):,} batches")
    return lake, maintained


def _tables(numbers: Sequence[int]) -> dict[str, Any]:
    """Rows of thumbnails, images and predictions, in the order in which a drainer commits them."""
    import pyarrow as pa

    from lake.storage import image_rows, schema, store

    moment = store.now()
    names = [_image_id(n) for n in numbers]
    thumbnails = [
        {"image_id": i, "width": 16, "height": 16, "jpeg": np.random.default_rng(n).bytes(THUMBNAIL_BYTES)}
        for i, n in zip(names, numbers, strict=True)
    ]
    images = [
        image_rows.image_row(i, np.random.default_rng(n + 1).bytes(IMAGE_BYTES), "PNG", 16, 16, "growth", moment)
        for i, n in zip(names, numbers, strict=True)
    ]
    predictions = [
        {"prediction_id": str(uuid.UUID(int=n)), "image_id": i, "model": "m", "label": f"class {n % 7}"}
        | {"confidence": n % 100 / 100, "timestamp": moment, "ingested_at": moment, "source": "growth"}
        for i, n in zip(names, numbers, strict=True)
    ]
    return {
        "thumbnails": pa.Table.from_pylist(thumbnails, schema=schema.THUMBNAILS.arrow()),
        "images": image_rows.images_table(images),
        "samples": pa.Table.from_pylist(predictions, schema=schema.SAMPLES.arrow()),
    }


def _image_id(number: int) -> str:
    """An id that looks like a hash, but is computed from the number, not from the bytes."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4


def _vectors(numbers: Sequence[int]) -> np.ndarray:
    """Unit vectors, (rows, DIM) float32."""
    drawn = np.stack([np.random.default_rng(n).normal(size=DIM) for n in numbers]).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def _disk(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
