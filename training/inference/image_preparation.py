"""Strangers' image files made ready for a model, in a worker process: what a hostile file can hurt is that worker.

A fine-tuned network and a probe's embedder want their squares cut differently; here either says how, and nothing of
the model itself is known. Imported by decoding workers: Pillow and numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embeddings.embedders import preprocess
from embeddings.embedders.specs import Preprocessing
from lake.errors import UnreadableImage
from lake.images import decode
from training.data.augmentation import Preparation, StoredSample, prepare
from training.tasks.task import Sample

WORKER = f"{__name__}:prepare_many"

# How a model wants its images: a network's square, an embedder's square, or (None) an embedder's whole image.
How = Preparation | Preprocessing | None
# A sample of a network, or pixels of an embedder, uint8 (height, width, 3).
Prepared = Sample | np.ndarray


def prepare_many(
    files: Sequence[tuple[str, bytes]], how: How, max_megapixels: float = decode.MAX_MEGAPIXELS_BULK
) -> list[Prepared | str]:
    """For each (image_id, file) what the model gets, or the reason why it gets nothing. No file harms the others."""
    found: list[Prepared | str] = []
    for name, data in files:
        try:
            decode.open_image(data, max_megapixels)
            if isinstance(how, Preparation):
                found.append(prepare(StoredSample(name, data), how))
            else:
                found.append(preprocess.prepare(data, how, max_megapixels))
        except UnreadableImage as error:
            found.append(str(error))
    return found
