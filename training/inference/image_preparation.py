"""Prepares untrusted image files for a model, in a worker process that a hostile file may kill.

A fine-tuned network and the embedder of a probe need different squares. The module knows nothing else of the model.
Decoding workers import it: Pillow and numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embeddings.embedders import preprocess
from embeddings.embedders.specs import Preprocessing
from lake.errors import UnreadableImage
from lake.images import decode
from lake.images.levels import Levels
from training.data.augmentation import Preparation, StoredSample, prepare
from training.tasks.task import Sample

WORKER = f"{__name__}:prepare_many"

# How a model needs its images: the square of a network, the square of an embedder, or (None) the whole image.
ImagePreparation = Preparation | Preprocessing | None
# A sample for a network, or pixels for an embedder, uint8 (height, width, 3).
PreparedImage = Sample | np.ndarray


def prepare_many(
    files: Sequence[tuple[str, bytes, Levels | None]],
    preparation: ImagePreparation,
    max_megapixels: float,
) -> list[PreparedImage | str]:
    """For each (image_id, file, recorded black and white) the prepared image, or the reason why it cannot be read."""
    results: list[PreparedImage | str] = []
    for image_id, data, levels in files:
        try:
            decode.open_image(data, max_megapixels)
            if isinstance(preparation, Preparation):
                results.append(prepare(StoredSample(image_id, data, levels=levels), preparation))
            else:
                results.append(preprocess.prepare(data, preparation, max_megapixels, levels))
        except UnreadableImage as error:
            results.append(str(error))
    return results
