"""Embeds images with known classes once and caches the vectors, for several benchmarks.

Embedding takes minutes and is not what these benchmarks measure. The name of a cached file says how it was made.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness.data import PHOTOGRAPHS, SMALL_FILES, DataAbsent
from benchmarks.harness.rounds import say

BATCH = 64
CACHE = "LAKELOOP_BENCH_CACHE"


class Labelled:
    """`vectors`: float32 (n, dim), unit length; `classes`: (n,) class names; in the order of the archive."""

    def __init__(self, vectors: np.ndarray, classes: np.ndarray) -> None:
        self.vectors = vectors
        self.classes = classes

    def __len__(self) -> int:
        return len(self.vectors)


def cifar10(data: Path, part: str = "train", side: int = 96) -> Labelled:
    """CIFAR-10 by efficientnet-lite0 at `side` pixels: 50,000 images of train or 10,000 of test. Raises DataAbsent."""
    archive = data / SMALL_FILES
    if not archive.is_file():
        raise DataAbsent(f"{data} has no {SMALL_FILES}")

    def images() -> Iterator[tuple[str, bytes]]:
        with tarfile.open(archive) as tar:
            for member in tar:
                _, split, *rest = member.name.split("/")
                file = tar.extractfile(member) if split == part and len(rest) == 2 else None
                if file is not None:
                    yield rest[0], file.read()

    return _kept(f"cifar10-{part}-{side}", images, side)


def photographs(data: Path, side: int = 224) -> tuple[Labelled, list[bytes]]:
    """The 600 photographs, each its own class, and their bytes. Raises DataAbsent."""
    archive = data / PHOTOGRAPHS
    if not archive.is_file():
        raise DataAbsent(f"{data} has no {PHOTOGRAPHS}")
    files: list[tuple[str, bytes]] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                files.append((Path(member.name).stem, file.read()))
    return _kept(f"photographs-{side}", lambda: iter(files), side), [data for _, data in files]


def embed(images: Iterable[Image.Image], side: int, count: int = 1_000) -> np.ndarray:
    """Unit vectors of images, float32 (n, 1280), by efficientnet-lite0 at `side` pixels."""
    from embeddings.embedders import engine, specs
    from embeddings.embedders.networks import build
    from embeddings.embedders.preprocess import square

    network = build("efficientnet-lite0", None, None)
    preprocessing = specs.SPECS["efficientnet-lite0"].preprocessing
    assert preprocessing is not None
    preprocessing = replace(
        preprocessing,
        resize=side if side < preprocessing.crop else round(side * preprocessing.resize / preprocessing.crop),
        crop=side,
    )
    run = engine.make(network.features, preprocessing, "auto", count)
    batches: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(square(image.convert("RGB"), preprocessing))
        if len(batch) == run.batch:
            batches.append(run(np.stack(batch)))
            batch = []
    if batch:
        batches += [run(np.stack([pixels]))[:1] for pixels in batch]
    return engine.unit(np.concatenate(batches))


def _kept(name: str, images: Callable[[], Iterator[tuple[str, bytes]]], side: int) -> Labelled:
    folder = Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / "lakeloop-bench")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    if not path.exists():
        say(f"embedding {name} once; the vectors are cached in {folder}")
        classes: list[str] = []

        def opened() -> Iterator[Image.Image]:
            for kind, data in images():
                classes.append(kind)
                yield Image.open(io.BytesIO(data))

        vectors = embed(opened(), side)
        part = path.with_suffix(".part.npz")
        np.savez(part, vectors=vectors.astype(np.float16), classes=np.array(classes))
        os.replace(part, path)
    arrays = np.load(path)
    vectors = arrays["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Labelled(vectors, arrays["classes"])


def solar_cells(side: int = 224) -> Labelled:
    """The 2,624 solar cells; classes "mono functional", "mono defect", "poly functional" and "poly defect"."""
    from search_app.demo.cells import cells, folder

    def images() -> Iterator[tuple[str, bytes]]:
        for cell in cells():
            yield f"{cell.kind[:4]} {cell.truth}", (folder() / cell.path).read_bytes()

    return _kept(f"solar-{side}", images, side)
