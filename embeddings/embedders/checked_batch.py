"""Embeds a batch with any embedder, and keeps only vectors that are ones: of its length, finite, not zero.

An embedder may be a user's own class. What it returns is checked here, image by image, before anything is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lake.errors import LakeloopError

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder

# Rounding of float32 changes a length by less.
_LENGTH_ERROR = 1e-3


@dataclass(frozen=True)
class CheckedBatch:
    """`vectors`: float32 (m, dim), each of length 1; `vectors[i]` is of the image with index `kept[i]` in the batch.

    `reasons`: index -> why there is no vector of an image. Every image is in one of the two. `raised`: the images for
    which the embedder raised an exception.
    """

    vectors: np.ndarray
    kept: list[int]
    reasons: dict[int, str]
    raised: int = 0


def embed_checked(embedder: Embedder, images: Sequence[np.ndarray]) -> CheckedBatch:
    """Embeds images as `Embedder.embed_batch` takes them. A vector of another length than 1 is scaled to it.

    If the embedder raises for a batch, each image is tried alone. Raises what lakeloop itself raises, and MemoryError.
    """
    try:
        batch = embedder.embed_batch(images)
        vectors, kept = np.asarray(batch.vectors), np.asarray(batch.kept)
    except (LakeloopError, MemoryError):
        raise
    except Exception as error:  # a user's class may raise anything
        if len(images) > 1:
            return _one_by_one(embedder, images)
        return _nothing(embedder, images, f"the embedder failed: {type(error).__name__}: {error}"[:300], raised=1)
    dim = embedder.spec.dim
    if vectors.ndim != 2 or (len(vectors) and vectors.shape[1] != dim):
        shape = " x ".join(map(str, vectors.shape))
        return _nothing(embedder, images, f"the embedder returned vectors of {shape}, its spec says n x {dim}")
    if not _are_indices(kept, len(vectors), len(images)):
        count = f"{len(vectors)} vectors for {len(images)} images"
        return _nothing(embedder, images, f"the embedder returned {count}; `kept` must name the image of each, once")
    vectors = vectors.reshape(-1, dim).astype(np.float32, copy=False)
    finite = np.isfinite(vectors).all(axis=1)
    length = np.linalg.norm(np.where(finite[:, None], vectors, 0).astype(np.float64), axis=1)
    whole = finite & (length > 0)
    indices = [int(index) for index in kept]
    reasons = {i: "the network gave no finite vector" for i in set(range(len(images))) - set(indices)}
    for index, is_finite, is_whole in zip(indices, finite, whole, strict=True):
        if not is_whole:
            reasons[index] = f"its vector {'is zero: it has no direction' if is_finite else 'is not finite'}"
    vectors, length = vectors[whole], length[whole, None]
    if (np.abs(length - 1) > _LENGTH_ERROR).any():
        vectors = (vectors / length).astype(np.float32)
    return CheckedBatch(vectors, [index for index, keep in zip(indices, whole, strict=True) if keep], reasons)


def _are_indices(kept: np.ndarray, vectors: int, images: int) -> bool:
    if kept.shape != (vectors,) or (vectors and kept.dtype.kind not in "iu"):
        return False
    return len(np.unique(kept)) == vectors and (not vectors or (kept.min() >= 0 and kept.max() < images))


def _nothing(embedder: Embedder, images: Sequence[np.ndarray], reason: str, raised: int = 0) -> CheckedBatch:
    none = np.empty((0, embedder.spec.dim), np.float32)
    return CheckedBatch(none, [], dict.fromkeys(range(len(images)), reason), raised)


def _one_by_one(embedder: Embedder, images: Sequence[np.ndarray]) -> CheckedBatch:
    alone = [embed_checked(embedder, images[i : i + 1]) for i in range(len(images))]
    kept = [i for i, batch in enumerate(alone) if batch.kept]
    reasons = {i: batch.reasons[0] for i, batch in enumerate(alone) if batch.reasons}
    raised = sum(batch.raised for batch in alone)
    return CheckedBatch(np.concatenate([batch.vectors for batch in alone]), kept, reasons, raised)
