"""Finds near-duplicates: images of the same view, re-encoded, resized, cropped, brightened, shifted.

It has two steps. Vectors propose: the nearest neighbours of each image, from a cosine on that depends on the embedder.
Thumbnails decide: a pair counts if its thumbnails agree once they are aligned (`alignment.py`), since vectors of the
same kind of thing may be as near as those of a copy. A pair without both thumbnails counts from a higher cosine on.
Every member of a group was compared with the group's centre, or its own centre was (`grouping.py`): similarity does
not chain from neighbour to neighbour through a whole film.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embeddings.duplicates import alignment
from embeddings.duplicates.grouping import grouped
from embeddings.duplicates.threshold import threshold_of
from embeddings.embedders import embedder as embedders
from embeddings.vectors.neighbours import nearest, neighbours
from lake.sql import connections
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from lake.storage.store import Lake

# Of 9,000 pairs of copies of 600 photographs 0.997 agree by more, of other pairs none by more than 0.48:
# `python -m benchmarks duplicates`.
ALIGNED = 0.6
# Cosine from which a pair without thumbnails counts: no two different photographs of 600 have more than 0.74.
CERTAIN = 0.9
# Neighbours proposed for each image. A larger group is assembled from the stars of its members.
NEIGHBOURS = 20
# More vectors are compared approximately; a few neighbours may be missed.
MAX_EXACT = 30_000
# Directions in which neighbours are searched; the cosine that counts is that of the whole vectors.
DIRECTIONS, FIT_SAMPLE = 128, 5_000
_PAIRS_AT_ONCE, _THUMBNAILS_AT_ONCE = 8_192, 2_000


@dataclass(frozen=True)
class DuplicatePair:
    """Two images; the cosine of their vectors; how well their thumbnails agree, None without both."""

    image_id: str
    other: str
    cosine: float
    agreement: float | None


@dataclass(frozen=True)
class Duplicates:
    """Groups of near-duplicates: image_ids, the centre first; the largest group first. No image is in two groups.

    `compared`: images; `without_vector`: images left out; `without_thumbnail`: pairs accepted by their cosine alone.
    """

    groups: list[list[str]]
    pairs: list[DuplicatePair]
    compared: int
    without_vector: int
    without_thumbnail: int
    embedder: str
    threshold: float

    @property
    def redundant(self) -> int:
        """How many images could be removed if each group kept one."""
        return sum(len(group) - 1 for group in self.groups)


@dataclass(frozen=True)
class CrossDuplicates:
    """Near-duplicates between two sets. `pairs`: an image of the first set, and one of the second; never itself.

    `without_vector`: images of either set that could not be compared.
    """

    pairs: list[DuplicatePair]
    without_vector: int
    embedder: str
    threshold: float


def find(
    lake: Lake,
    image_ids: Sequence[str] | None = None,
    *,
    embedder: str | None = None,
    threshold: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Duplicates:
    """The near-duplicates among these images; None: among all of the lake.

    `progress` receives the number of images whose neighbours were just found. Raises BadInput without an embedder or
    vectors, and if the threshold is not a cosine.
    """
    record = embedders.record_of(lake, embedder)
    threshold = threshold_of(lake, record, threshold)
    names, vectors = image_vectors(lake, record, image_ids)
    total = len(set(image_ids)) if image_ids is not None else _count_images(lake)
    left, right, cosine = proposed(vectors, threshold, progress)
    pairs = _verified(lake, names, left, right, cosine, threshold)

    def same(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        cosine = np.einsum("ij,ij->i", vectors[left], vectors[right])
        agreement, has_thumbnails = thumbnail_agreement(lake, names, left, right)
        passes: np.ndarray = _passes(cosine, agreement, has_thumbnails, threshold) & (cosine >= threshold)
        return passes

    groups = [[names[row] for row in group] for group in grouped(len(names), pairs.left, pairs.right, same)]
    without_thumbnail = int((~pairs.has_thumbnails).sum())
    without_vector = total - len(names)
    return Duplicates(groups, pairs.named(names), len(names), without_vector, without_thumbnail, record.name, threshold)


def between(
    lake: Lake,
    image_ids: Sequence[str],
    others: Sequence[str],
    *,
    embedder: str | None = None,
    threshold: float | None = None,
) -> CrossDuplicates:
    """Which of `image_ids` are near-duplicates of which of `others`. Raises as `find` does."""
    record = embedders.record_of(lake, embedder)
    threshold = threshold_of(lake, record, threshold)
    names, vectors = image_vectors(lake, record, sorted({*image_ids, *others}))
    row_of = {name: row for row, name in enumerate(names)}
    queries = np.array([row_of[name] for name in dict.fromkeys(image_ids) if name in row_of], np.int64)
    targets = np.array([row_of[name] for name in dict.fromkeys(others) if name in row_of], np.int64)
    without_vector = len({*image_ids, *others}) - len(names)
    if not len(queries) or not len(targets):
        return CrossDuplicates([], without_vector, record.name, threshold)
    narrow = _narrowed(vectors)
    k = min(NEIGHBOURS, len(targets))
    index, _ = nearest(narrow[queries], narrow[targets], k, metric="cosine", exact=len(targets) <= MAX_EXACT)
    left, right = np.repeat(queries, k), targets[index.ravel()]
    cosine = np.einsum("ij,ij->i", vectors[left], vectors[right])
    near = (left != right) & (cosine >= threshold)
    pairs = _verified(lake, names, left[near], right[near], cosine[near], threshold)
    return CrossDuplicates(pairs.named(names), without_vector, record.name, threshold)


def proposed(
    vectors: np.ndarray, threshold: float, progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (left < right) of neighbours with a cosine of at least `threshold`, each once, and that cosine."""
    n = len(vectors)
    if n < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    k = min(NEIGHBOURS, n - 1)
    index, _ = neighbours(_narrowed(vectors), k, metric="cosine", exact=n <= MAX_EXACT, progress=progress)
    own, other = np.repeat(np.arange(n), k), index.ravel()
    keys = np.unique(np.minimum(own, other) * n + np.maximum(own, other))
    left, right = keys // n, keys % n
    parts = [slice(start, start + _PAIRS_AT_ONCE) for start in range(0, len(left), _PAIRS_AT_ONCE)]
    cosine = np.concatenate([np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]]) for part in parts])
    near = cosine >= threshold
    return left[near], right[near], cosine[near]


def thumbnail_agreement(
    lake: Lake, names: Sequence[str], left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How well the thumbnails of each pair agree, float32, and whether the lake has both, bool; (pairs,) each.

    `left` and `right` are indices in `names`.
    """
    if not len(left):
        return np.empty(0, np.float32), np.empty(0, bool)
    wanted = sorted({names[row] for row in left.tolist()} | {names[row] for row in right.tolist()})
    number_of: dict[str, int] = {}
    prints: list[np.ndarray] = []
    for start in range(0, len(wanted), _THUMBNAILS_AT_ONCE):
        part = wanted[start : start + _THUMBNAILS_AT_ONCE]
        rows = lake.look_up("thumbnails", ["image_id", "jpeg"], "image_id", part)
        for name in rows["image_id"].to_pylist():
            number_of[name] = len(number_of)
        prints.append(alignment.fingerprints(rows["jpeg"].to_pylist()))
    a = np.array([number_of.get(names[row], -1) for row in left.tolist()])
    b = np.array([number_of.get(names[row], -1) for row in right.tolist()])
    has_thumbnails = (a >= 0) & (b >= 0)
    agreement = np.zeros(len(left), np.float32)
    agreement[has_thumbnails] = alignment.agreement(np.concatenate(prints), a[has_thumbnails], b[has_thumbnails])
    return agreement, has_thumbnails


@dataclass(frozen=True)
class _Pairs:
    """Verified pairs; arrays (pairs,)."""

    left: np.ndarray
    right: np.ndarray
    cosine: np.ndarray
    agreement: np.ndarray
    has_thumbnails: np.ndarray

    def named(self, names: Sequence[str]) -> list[DuplicatePair]:
        columns = (self.left, self.right, self.cosine, self.agreement, self.has_thumbnails)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [
            DuplicatePair(names[a], names[b], c, agreed if compared else None) for a, b, c, agreed, compared in rows
        ]


def _verified(
    lake: Lake, names: Sequence[str], left: np.ndarray, right: np.ndarray, cosine: np.ndarray, threshold: float
) -> _Pairs:
    """The proposed pairs that are near-duplicates."""
    agreement, has_thumbnails = thumbnail_agreement(lake, names, left, right)
    passes = _passes(cosine, agreement, has_thumbnails, threshold)
    return _Pairs(left[passes], right[passes], cosine[passes], agreement[passes], has_thumbnails[passes])


def _passes(cosine: np.ndarray, agreement: np.ndarray, has_thumbnails: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(has_thumbnails, agreement >= ALIGNED, cosine >= max(CERTAIN, threshold))


def _narrowed(vectors: np.ndarray) -> np.ndarray:
    """The vectors in the DIRECTIONS they differ in most; lengths and angles are preserved as far as those hold them."""
    if vectors.shape[1] <= DIRECTIONS or len(vectors) <= DIRECTIONS:
        return vectors
    step = max(1, len(vectors) // FIT_SAMPLE)
    sample = vectors[::step].astype(np.float64)
    _, axes = np.linalg.eigh(sample.T @ sample)
    narrow: np.ndarray = vectors @ axes[:, -DIRECTIONS:].astype(np.float32)
    return narrow


def _count_images(lake: Lake) -> int:
    return int(connections.query(lake, "SELECT count(DISTINCT image_id) AS n FROM samples")["n"][0].as_py())
