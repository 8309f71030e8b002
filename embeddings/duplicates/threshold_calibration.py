"""Calibrates the threshold of near-duplicates with altered copies of the lake's own images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embeddings.duplicates import altered_copies, duplicates
from embeddings.duplicates.threshold import save_threshold
from embeddings.embedders import embedder as embedders
from embeddings.embedders.checked_batch import embed_checked
from embeddings.embedders.preprocess import prepare
from embeddings.vectors.neighbours import nearest
from lake.errors import BadInput, UnreadableImage
from lake.storage import blobs
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import Lake

# The share of copies that the calibrated cosine must propose, and the cosine's limits.
RECALL, LOWEST, HIGHEST = 0.99, 0.5, 0.95
MIN_IMAGES = 10
_BATCH = 64


@dataclass(frozen=True)
class ThresholdCalibration:
    """A calibrated cosine. `recall`: the share of `copies` altered copies that it proposes.

    `kin`: the share of the sample's nearest other images that are near-duplicates. If it is high, the lake has many
    near-duplicates, or all its images look alike.
    """

    embedder: str
    threshold: float
    recall: float
    copies: int
    kin: float


def calibrate(
    lake: Lake, *, embedder: str | None = None, model: Embedder | None = None, images: int = 100, seed: int = 0
) -> ThresholdCalibration:
    """Finds the cosine that proposes RECALL of altered copies of the lake's own images, and saves it in the lake.

    Makes and embeds five copies each of a sample: about a minute on two cores. Raises BadInput if fewer than
    MIN_IMAGES images have bytes and a vector.
    """
    record = embedders.record_of(lake, embedder)
    names, vectors = image_vectors(lake, record)
    order = np.random.default_rng(seed).permutation(len(names))[: 2 * images].tolist()
    stored = {image.image_id: image for image in blobs.images(lake, [names[row] for row in order])}
    sample = [row for row in order if names[row] in stored][:images]
    if len(sample) < MIN_IMAGES:
        raise BadInput(
            f"{len(sample)} images have bytes and a {record.name} vector; calibration needs {MIN_IMAGES} or more"
        )
    model = model or embedders.for_lake(lake, record, images=5 * len(sample))
    copies: list[tuple[int, bytes]] = []
    for row in sample:
        try:
            image = stored[names[row]]
            copies += [(row, data) for data in altered_copies.copies(image.data, row, image.levels).values()]
        except UnreadableImage:
            continue
    cosines: list[float] = []
    for start in range(0, len(copies), _BATCH):
        batch = copies[start : start + _BATCH]
        embedded = embed_checked(model, [prepare(data, model.spec.preprocessing) for _, data in batch])
        originals = np.array([row for row, _ in batch])[embedded.kept]
        cosines += np.einsum("ij,ij->i", embedded.vectors, vectors[originals]).tolist()
    if not cosines:
        raise BadInput("none of the sampled images can be decoded, so no copies could be made")
    threshold = float(np.clip(np.floor(np.quantile(cosines, 1 - RECALL) * 100) / 100, LOWEST, HIGHEST))
    recall = float(np.mean(np.asarray(cosines) >= threshold))
    index, distance = nearest(vectors[sample], vectors, min(2, len(vectors)), metric="cosine")
    own = np.repeat(np.array(sample), index.shape[1])
    near = (own != index.ravel()) & (1 - distance.ravel() >= threshold)
    agreement, has_thumbnails = duplicates.thumbnail_agreement(lake, names, own[near], index.ravel()[near])
    kin = float(((agreement >= duplicates.ALIGNED) & has_thumbnails).sum() / len(sample))
    save_threshold(lake, threshold, embedder=record.name)
    return ThresholdCalibration(record.name, threshold, recall, len(cosines), kin)
