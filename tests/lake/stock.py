"""Lakes filled without decoding: rows of images, thumbnails and predictions from a number, for tests of upkeep."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lake import ids
from lake.open_lake import OpenLake
from lake.storage import blobs, image_rows, schema, store

DIM = 32
COLUMN = "emb_x"


def data(number: int, size: int = 2_000) -> bytes:
    """The bytes of image `number`: nothing compresses them."""
    return np.random.default_rng(number).bytes(size)


def image_id(number: int, size: int = 2_000) -> str:
    return ids.image_id(data(number, size))


def jpeg(number: int) -> bytes:
    """The thumbnail of image `number`, as bytes."""
    return np.random.default_rng(10**6 + number).bytes(900)


def prediction_id(number: int) -> str:
    return str(uuid.UUID(int=number))


def vector(number: int) -> np.ndarray:
    """The unit vector of image `number`, float32."""
    drawn = np.random.default_rng(2 * 10**6 + number).normal(size=DIM)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def add(
    lake: OpenLake,
    numbers: Sequence[int],
    *,
    size: int = 2_000,
    at: dt.datetime | None = None,
    source: str = "stock",
) -> list[str]:
    """Adds images with their thumbnails and one answer each, a commit a table, as the drainer does; their image_ids."""
    moment = at or store.now()
    files = [data(n, size) for n in numbers]
    names = [ids.image_id(f) for f in files]
    thumbnails = [
        {"image_id": i, "width": 8, "height": 8, "jpeg": jpeg(n)} for i, n in zip(names, numbers, strict=True)
    ]
    images = [image_rows.image_row(i, f, "PNG", 24, 16, source, moment) for i, f in zip(names, files, strict=True)]
    answers = [
        {"prediction_id": prediction_id(n), "image_id": i, "model": "m", "label": f"label {n % 3}", "source": source}
        | {"confidence": n % 10 / 10, "timestamp": moment, "ingested_at": moment}
        for i, n in zip(names, numbers, strict=True)
    ]
    lake.insert("thumbnails", pa.Table.from_pylist(thumbnails, schema=schema.THUMBNAILS.arrow()))
    lake.insert("images", image_rows.images_table(images))
    lake.insert("samples", pa.Table.from_pylist(answers, schema=schema.SAMPLES.arrow()))
    return names


def bind(lake: OpenLake) -> str:
    """Gives the lake's embedder x its vector column; returns the column."""
    from dataclasses import replace

    record = next(e for e in lake.embedders() if e.name == "x")
    lake.bind_embedder(replace(record, dim=DIM, weights_sha256="0" * 64))
    return record.column


def embed(lake: OpenLake, numbers: Sequence[int], size: int = 2_000) -> None:
    """Fills in the vectors of these images."""
    from embeddings.backfill.vector_columns import store_vectors

    store_vectors(lake, COLUMN, {image_id(n, size): vector(n) for n in numbers})


def contents(lake: OpenLake, *without: str) -> dict[str, list[Any]]:
    """Every row of every table but `without`, images with the hash of their bytes, in an order of its own."""
    rows_by_table: dict[str, list[Any]] = {}
    for name in schema.TABLES:
        if name in without:
            continue
        columns = [c for c in lake.dataset(name).schema.names if c != "data"]
        rows = lake.scan(name, columns).to_pylist()
        rows_by_table[name] = sorted((repr(sorted(r.items())) for r in rows), key=str)
    stored = lake.scan("images", ["image_id"])["image_id"].to_pylist()
    rows_by_table["bytes"] = sorted((i.image_id, ids.image_id(i.data)) for i in blobs.images(lake, stored))
    return rows_by_table


def files(root: Path) -> dict[str, tuple[int, int]]:
    """path -> (inode, time of change) of every file under `root`."""
    return {
        p.relative_to(root).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()
    }


def size(root: Path) -> int:
    """Bytes of every file under `root`."""
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
