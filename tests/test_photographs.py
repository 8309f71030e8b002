"""Real photographs: an image is found by itself and by its altered copies. Skipped where the data is absent.

By `make soak` alone: embedding 600 photographs takes a while. Copies in short:
`tests/embeddings/duplicates/test_duplicates.py`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from embeddings.backfill.backfill import backfill
from embeddings.embedders import embedder as embedders
from embeddings.embedders.embedder import Embedder
from embeddings.embedders.preprocess import prepare
from embeddings.search.search import search
from lake import ids, open_lake
from lake.images.decode import open_image, pixels
from lake.ingest.ingest import ingest
from lake.open_lake import OpenLake

DATA = Path(__file__).parent.parent.parent / "shared/data/imagenet-samples-600.tar"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name} is not here: no photographs to try")


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.soak)], ids=["all"])
def photographs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(DATA) as tar:
        files = sorted((member for member in tar if member.name.endswith(".JPEG")), key=lambda member: member.name)
        tar.extractall(folder, files[:: request.param], filter="data")
    return sorted(folder.rglob("*.JPEG"))


@pytest.fixture(scope="module")
def embedded(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenLake, Embedder]:
    lake = open_lake.create(str(tmp_path_factory.mktemp("lake") / "l"), embedders=["efficientnet-lite0"])
    assert ingest(lake, photographs[0].parent, "folder").images_new == len(photographs)
    record = embedders.record_of(lake, None)
    model = embedders.for_lake(lake, record)
    assert backfill(lake, record, model).embedded == len(photographs)
    return lake, model


def _same(image: Image.Image) -> Image.Image:
    return image


def _half(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("change", "quality", "least"),
    [(None, 0, 0.99), (_same, 60, 0.98), (_half, 90, 0.95), (ImageOps.mirror, 90, 0.97)],
    ids=["itself", "quality 60", "half size", "mirrored"],
)
def test_a_search_by_a_copy_finds_the_photograph(
    embedded: tuple[OpenLake, Embedder],
    photographs: list[Path],
    change: Callable[[Image.Image], Image.Image] | None,
    quality: int,
    least: float,
) -> None:
    lake, model = embedded
    hits = 0
    for path in photographs:
        data = original = path.read_bytes()
        if change is not None:
            out = io.BytesIO()
            change(pixels(open_image(original))).save(out, "JPEG", quality=quality)
            data = out.getvalue()
        first = search(lake, image=data, model=model, k=1)["image_id"][0].as_py()
        hits += first == ids.image_id(original)
    share = hits / len(photographs)
    assert share >= least, f"{hits} of {len(photographs)} first"


def test_scaled_decoding_keeps_the_embedding(embedded: tuple[OpenLake, Embedder], photographs: list[Path]) -> None:
    """Photographs large enough to be decoded scaled: cosine to the full decode at least 0.995."""
    import numpy as np

    from embeddings.embedders.preprocess import square

    _, model = embedded
    preprocessing = model.spec.preprocessing
    assert preprocessing is not None
    tried = 0
    for path in photographs:
        data = path.read_bytes()
        scaled = prepare(data, preprocessing)
        whole = square(pixels(open_image(data)), preprocessing)
        if min(open_image(data).size) < 2 * 1.5 * preprocessing.resize or (scaled == whole).all():
            continue
        tried += 1
        a, b = model.embed_batch([scaled, whole]).vectors
        assert float(np.dot(a, b)) >= 0.995, path.name
    assert tried >= 5
