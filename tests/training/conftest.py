"""A lake of two kinds of tiny labelled pictures, and a recipe that tells them apart in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from embeddings.duplicates import leak_guard
from embeddings.embedders import torch_import
from lake import ids, open_lake
from lake.open_lake import OpenLake
from lake.storage import image_rows, schema, store
from tests import pictures as drawn
from training.registry.recipe import Recipe


def stripes(number: int, upright: bool, side: int = 40) -> Image.Image:
    """Stripes of two colours with some grain, upright or lying: colours say nothing of which."""
    rng = np.random.default_rng(number)
    wave = np.sin(np.arange(side) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6.28)) > 0
    board = np.tile(wave, (side, 1))[..., None] if upright else np.tile(wave[:, None], (1, side))[..., None]
    colours = rng.integers(40, 216, (2, 3))
    noisy = np.where(board, colours[0], colours[1]) + rng.normal(0, 8, (side, side, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def add(lake: OpenLake, name: str, files: Sequence[bytes], labels: Sequence[str | None], **how: Any) -> list[str]:
    """Images with their labels, and a slice of them; their image_ids."""
    now = store.now()
    names = [ids.image_id(data) for data in files]
    rows = [image_rows.image_row(i, data, "PNG", 40, 40, "test", now) for i, data in zip(names, files, strict=True)]
    lake.insert("images", image_rows.images_table(rows))
    found = [{"prediction_id": str(ids.as_uuid(i[:32])), "image_id": i, "ingested_at": now} for i in names]
    lake.insert("samples", pa.Table.from_pylist(found, schema=schema.SAMPLES.arrow()))
    said = [
        {
            "event_id": ids.label_event_id(i, label, "human"),
            "image_id": i,
            "timestamp": now,
            "task": "classification",
            "label": label,
            "origin": "human",
        }
        for i, label in zip(names, labels, strict=True)
        if label is not None
    ]
    lake.insert("labels", pa.Table.from_pylist(said, schema=schema.LABELS.arrow()))
    leak_guard.create(lake, name, ids=names, identity_only=True, **how)
    return names


def striped(lake: OpenLake, name: str, count: int, first: int = 0, **how: Any) -> list[str]:
    """A slice of `count` striped pictures from number `first` on, every other one upright."""
    numbers = range(first, first + count)
    files = [drawn.encoded(stripes(n, n % 2 == 0)) for n in numbers]
    return add(lake, name, files, ["upright" if n % 2 == 0 else "lying" for n in numbers], **how)


@pytest.fixture(scope="session")
def _stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stocked") / "lake"
    lk = open_lake.create(str(place))
    striped(lk, "first", 48)
    striped(lk, "second", 16, 100)
    striped(lk, "held", 32, 200, role="evaluation")
    return place


@pytest.fixture
def stock(tmp_path: Path, _stocked: Path) -> OpenLake:
    """Slices `first` (48 images), `second` (16 others) and `held` (32, for evaluation)."""
    shutil.copytree(_stocked, tmp_path / "stock")
    return open_lake.open(str(tmp_path / "stock"))


# The smallest of timm's residual networks at 32 pixels: a step takes some 20 ms.
TINY = Recipe(architecture="test_resnet", pretrained=False, size=32, epochs=3, batch=8, rate=5e-3, backbone_rate=1.0)


@pytest.fixture
def tiny() -> Recipe:
    torch_import.torch().set_num_threads(1)
    return TINY


Changed = Callable[..., Recipe]
Folder = Path
