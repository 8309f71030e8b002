"""Outliers and novelty: which images are far from everything known.

Distances are cosine distances, 0 (the same) to 2 (opposite), between distinct images. Every score is a mean over the k
nearest, so a copy beside an odd image hides nothing as long as k is larger than the number of copies: of a pair of odd
images each has one near neighbour and k - 1 far ones.
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

# The newest answer of each image; rows that only make an image findable say nothing.
_ANSWERS = """SELECT image_id, label FROM answers WHERE {where} AND label IS NOT NULL
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

    Columns: image_id, score (double), distance (double) to the nearest other image it was compared with, nearest (its
    image_id), label (string: the newest answer; null: none).
    Score, always higher for the stranger:
      knn: mean distance to the k nearest others;
      density: that, by the same mean of those k neighbours (a ratio, about 1 inside a crowd of any density; the local
        outlier factor of Breunig et al. 2000, simplified as by Schubert et al. 2014);
      `against` a slice (NAME or NAME@VERSION): mean distance to the k nearest of the slice, itself left out; with
        `density` by the same mean of those k within the slice;
      `per="class"`: compared only with images answered alike, and by that class's median score: 1 is usual for the
        class, so that loose and tight classes are ranked together. Images without an answer, or the only ones of
        their class, are left out.
    With fewer than k others to compare with, all of them are taken.
    Raises BadInput for bad arguments, an unknown slice, or fewer than two images to compare.
    """
    if method not in METHODS:
        raise BadInput(f"method {method!r} is none of {', '.join(METHODS)}")
    if per not in (None, "class"):
        raise BadInput(f"per {per!r}: outliers can be ranked per class")
    if per is not None and against is not None:
        raise BadInput("rank per class or against a slice, not both")
    if k < 1 or limit < 1:
        raise BadInput(f"k is {k} and limit {limit}; both must be at least 1")
    record = embedders.record_of(lake, embedder)
    chosen = None if where is None else filters.images(lake, where)
    known = None if against is None else set(slices.members(lake, slices.get(lake, against)).to_pylist())
    names, vectors = image_vectors(lake, record, None if chosen is None else [*chosen, *(known or ())])
    ours = np.arange(len(names)) if chosen is None else np.flatnonzero(np.isin(names, chosen))
    answers = _answers(lake, where)
    if known is not None:
        theirs = np.flatnonzero(np.isin(names, [*known]))
        if not len(theirs):
            raise BadInput(f"no image of slice {against} has a {record.name} vector")
        groups = [(ours, theirs)]
    elif per == "class":
        classes: dict[str, list[int]] = {}
        for i in ours.tolist():
            if names[i] in answers:
                classes.setdefault(answers[names[i]], []).append(i)
        groups = [(np.array(members), np.array(members)) for members in classes.values() if len(members) > 1]
    else:
        groups = [(ours, ours)]
    rows: list[tuple[float, float, int, int]] = []
    for asked, others in groups if len(ours) else ():
        scores, distances, closest = _score(vectors, asked, others, k, method)
        if per == "class":
            # A class of copies has no usual distance: what differs from it at all is strange without bound.
            scores = scores / max(float(np.median(scores)), 1e-6)
        rows += zip(scores.tolist(), distances.tolist(), asked.tolist(), closest.tolist(), strict=True)
    rows = [row for row in rows if row[3] >= 0]
    if not rows:
        raise BadInput(
            f"{len(ours):,} images with a {record.name} vector leave nothing to compare; an outlier needs others"
        )
    best = sorted(rows, key=lambda row: (-row[0], names[row[2]]))[:limit]
    return pa.table(
        {
            "image_id": [names[i] for _, _, i, _ in best],
            "score": pa.array([score for score, *_ in best], pa.float64()),
            "distance": pa.array([distance for _, distance, *_ in best], pa.float64()),
            "nearest": [names[i] for *_, i in best],
            "label": pa.array([answers.get(names[i]) for _, _, i, _ in best], pa.string()),
        }
    )


def _score(
    vectors: np.ndarray, asked: np.ndarray, others: np.ndarray, k: int, method: Method
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `asked` (numbers of vectors) among `others`: score, distance to the nearest, and which it is.

    -1 where nothing is left to compare with.
    """
    found, distances = _neighbours(vectors, asked, others, k)
    means = _mean(found, distances)
    if method == "density":
        again, apart = (found, distances) if asked is others else _neighbours(vectors, others, others, k)
        usual = np.full(len(vectors), np.nan)
        usual[others] = _mean(again, apart)
        around = _mean(found, np.where(found >= 0, usual[np.maximum(found, 0)], np.inf))
        # Beside copies of each other anything is sparse.
        means = means / np.maximum(np.nan_to_num(around, nan=0.0), 1e-6)
    return means, distances[:, 0], found[:, 0]


def _neighbours(vectors: np.ndarray, asked: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of `others` but itself, numbers of vectors (m, k), -1 where there is none, and cosine distances."""
    many = min(k + 1, len(others))
    found, apart = nearest(vectors[asked], vectors[others], many, metric="cosine")
    found, distances = others[found], apart.astype(np.float64)
    own = found == asked[:, None]
    distances[own] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    found, distances = np.take_along_axis(found, order, 1), np.take_along_axis(distances, order, 1)
    return np.where(np.isinf(distances), -1, found), distances


def _mean(found: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of each row where there is a neighbour; NaN where there is none."""
    there = found >= 0
    count = there.sum(axis=1)
    total = np.where(there, values, 0.0).sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _answers(lake: Lake, where: str | None) -> dict[str, str]:
    found = connections.query(lake, _ANSWERS.format(where=f"({where}\n)" if where else "true"))
    return dict(zip(found["image_id"].to_pylist(), found["label"].to_pylist(), strict=True))
