"""Ranks images by how far they are from all others, from a slice, or from images of their class.

Distances are cosine distances, 0 (the same) to 2 (opposite), between distinct images. Every score is a mean over the k
nearest, so copies of an odd image do not hide it as long as there are fewer than k: each of a pair of odd images has
one near neighbour and k - 1 far ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from embeddings.embedders import embedder as embedders
from embeddings.vectors.neighbours import nearest
from lake import slices
from lake.errors import BadInput
from lake.sql import connections
from lake.sql import where as filters
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from lake.storage.store import Lake

Method = Literal["knn", "density"]
METHODS: tuple[Method, ...] = ("knn", "density")
K = 10

# The newest prediction of each image; rows without a model have no label.
_NEWEST_LABELS = """SELECT image_id, label FROM predictions WHERE {where} AND label IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY timestamp DESC NULLS LAST, ingested_at DESC) = 1"""


def outliers(
    lake: Lake,
    *,
    embedder: str | None = None,
    where: str | None = None,
    against: str | None = None,
    per: Literal["class"] | None = None,
    method: Method = "knn",
    k: int = K,
    limit: int = 100,
) -> pa.Table:
    """The `limit` strangest of the distinct images that pass `where`, the strangest first; ties by image_id.

    Columns: image_id, score (double), distance (double) to the nearest image it was compared with, nearest (that
    image's id), label (string: the newest prediction; null: none).
    The score is higher for stranger images:
      knn: mean distance to the k nearest others;
      density: that mean divided by the mean of the k neighbours' own means (about 1 inside a crowd of any density; the
        local outlier factor of Breunig et al. 2000, simplified as by Schubert et al. 2014);
      `against` a slice (NAME or NAME@VERSION): mean distance to the k nearest of the slice, except the image itself;
        with `density`, divided by the same mean of those k within the slice;
      `per="class"`: compared only with images of the same predicted class, and divided by that class's median score,
        so that loose and tight classes are ranked together. Images without a prediction, or alone in their class, are
        left out.
    If there are fewer than k others, all of them count.
    Raises BadInput for bad arguments, an unknown slice, or fewer than two images to compare.
    """
    if method not in METHODS:
        raise BadInput(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if per not in (None, "class"):
        raise BadInput(f"per is {per!r}; it must be class")
    if per is not None and against is not None:
        raise BadInput("give per class or against a slice, not both")
    if k < 1 or limit < 1:
        raise BadInput(f"k is {k} and limit {limit}; both must be at least 1")
    record = embedders.record_of(lake, embedder)
    image_ids = None if where is None else filters.images(lake, where)
    slice_ids = None if against is None else set(slices.members(lake, slices.get(lake, against)).to_pylist())
    names, vectors = image_vectors(lake, record, None if image_ids is None else [*image_ids, *(slice_ids or ())])
    ranked_rows = np.arange(len(names)) if image_ids is None else np.flatnonzero(np.isin(names, image_ids))
    label_of = _predicted_labels(lake, where)
    if slice_ids is not None:
        slice_rows = np.flatnonzero(np.isin(names, [*slice_ids]))
        if not len(slice_rows):
            raise BadInput(f"no image of slice {against} has a {record.name} vector")
        groups = [(ranked_rows, slice_rows)]
    elif per == "class":
        classes: dict[str, list[int]] = {}
        for i in ranked_rows.tolist():
            if names[i] in label_of:
                classes.setdefault(label_of[names[i]], []).append(i)
        groups = [(np.array(members), np.array(members)) for members in classes.values() if len(members) > 1]
    else:
        groups = [(ranked_rows, ranked_rows)]
    rows: list[tuple[float, float, int, int]] = []
    for queries, others in groups if len(ranked_rows) else ():
        scores, distances, closest = _score(vectors, queries, others, k, method)
        if per == "class":
            # The median of a class of copies is 0: any image that differs gets a huge score.
            scores = scores / max(float(np.median(scores)), 1e-6)
        rows += zip(scores.tolist(), distances.tolist(), queries.tolist(), closest.tolist(), strict=True)
    rows = [row for row in rows if row[3] >= 0]
    if not rows:
        raise BadInput(
            f"{len(ranked_rows):,} images with a {record.name} vector are too few to compare; outliers need others"
        )
    best = sorted(rows, key=lambda row: (-row[0], names[row[2]]))[:limit]
    return pa.table(
        {
            "image_id": [names[i] for _, _, i, _ in best],
            "score": pa.array([score for score, *_ in best], pa.float64()),
            "distance": pa.array([distance for _, distance, *_ in best], pa.float64()),
            "nearest": [names[i] for *_, i in best],
            "label": pa.array([label_of.get(names[i]) for _, _, i, _ in best], pa.string()),
        }
    )


def _score(
    vectors: np.ndarray, queries: np.ndarray, others: np.ndarray, k: int, method: Method
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `queries` (rows of vectors) among `others`: score, distance to the nearest, and its row.

    The row is -1 if there is nothing to compare with.
    """
    index, distances = _neighbours(vectors, queries, others, k)
    means = _mean(index, distances)
    if method == "density":
        other_index, other_distances = (
            (index, distances) if queries is others else _neighbours(vectors, others, others, k)
        )
        own_means = np.full(len(vectors), np.nan)
        own_means[others] = _mean(other_index, other_distances)
        neighbour_means = _mean(index, np.where(index >= 0, own_means[np.maximum(index, 0)], np.inf))
        # Neighbours that are copies of each other have a mean of 0.
        means = means / np.maximum(np.nan_to_num(neighbour_means, nan=0.0), 1e-6)
    return means, distances[:, 0], index[:, 0]


def _neighbours(vectors: np.ndarray, queries: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of `others`, except itself: rows (m, k), -1 for none, and cosine distances."""
    count = min(k + 1, len(others))
    index, cosine_distances = nearest(vectors[queries], vectors[others], count, metric="cosine")
    index, distances = others[index], cosine_distances.astype(np.float64)
    own = index == queries[:, None]
    distances[own] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    index, distances = np.take_along_axis(index, order, 1), np.take_along_axis(distances, order, 1)
    return np.where(np.isinf(distances), -1, index), distances


def _mean(index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of each row over existing neighbours; NaN without any."""
    exists = index >= 0
    count = exists.sum(axis=1)
    total = np.where(exists, values, 0.0).sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _predicted_labels(lake: Lake, where: str | None) -> dict[str, str]:
    rows = connections.query(lake, _NEWEST_LABELS.format(where=filters.predicate(where)))
    return dict(zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
