"""An embedder whose numbers a reader checks in the head: the mean red, green and blue, as a unit vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embeddings.embedders.embedder import Embedded
from embeddings.embedders.specs import Preprocessing, Spec

SQUARE = Preprocessing(8, 8, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "squash")


class MeanColour:
    """Black has no direction: it cannot be embedded. `seen` counts the images that were embedded."""

    spec = Spec("mean-colour", 3, SQUARE, "none", "CC0-1.0")
    weights_sha256 = "c" * 64

    def __init__(self) -> None:
        self.seen = 0

    def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
        means = np.stack([image.reshape(-1, 3).mean(axis=0) for image in images]).astype(np.float32)
        self.seen += len(means)
        kept = np.flatnonzero(means.any(axis=1))
        return Embedded(means[kept] / np.linalg.norm(means[kept], axis=1, keepdims=True), kept)


class Random(MeanColour):
    """Stands for any network of eight dimensions; its vectors are given by the tests."""

    spec = Spec("random", 8, SQUARE, "none", "CC0-1.0")
    weights_sha256 = "d" * 64
