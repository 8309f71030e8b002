"""Predictions as numbers for the subgroup search: values of each dimension, clusters, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.discovery.findings import Condition, Errors, FailingSlice
from embeddings.discovery.scan_statistic import DIRECTION
from lake.analytics import dimensions
from lake.analytics.dimensions import Dimension
from lake.analytics.statistics import difference, wilson
from lake.errors import MissingExtra
from lake.sql import connections
from lake.sql.where import predicate
from lake.storage.store import literal

if TYPE_CHECKING:
    from embeddings.discovery.scan_statistic import Subgroup
    from embeddings.discovery.subgroups import Failure
    from lake.storage.store import Lake

By = Literal["both", "metadata", "cluster"]

# At most so many predictions are compared, a sample by their ids: more cost time and show hardly more.
MAX_PREDICTIONS = 50_000
MIN_PREDICTIONS = 30
MAX_IMAGES = 12
# Always compared, beside the promoted columns and the keys of the metadata.
_ALWAYS = ("label", "version", "folder", "width", "height", "format", "hour", "weekday")
_MAX_DIMENSIONS = 40
# A tree covers the predictions if it has this share of their images.
_TREE_COVERS = 0.9
_OWN_CLUSTERS, _OWN_CUTS = 64, (4, 8, 16, 32)
_COMPONENTS = 100


class PredictionTable:
    """One row per image. `wrong`: its error (n,), 0 to 1; `clusters`, `unnamed`: dimensions as `subgroups.search` has
    them."""

    def __init__(self, rows: pa.Table, wanted: Sequence[Dimension]) -> None:
        self.image_ids = rows["image_id"].to_pylist()
        self.wrong = rows["wrong"].to_numpy().astype(np.float64)
        self._confidence = rows["confidence"].fill_null(-1.0).to_numpy().astype(np.float64)
        self._dimensions: list[Dimension | None] = []
        self._values: list[list[str | None]] = []
        self._codes: list[np.ndarray] = []
        self.clusters: list[int] = []
        self.unnamed: list[int] = []
        self._tree = ""
        for number, dimension in enumerate(wanted):
            self._add(dimension, rows[f"d{number}"])

    def codes(self) -> np.ndarray:
        """int64 (n, dimensions): the value of each prediction in each dimension, -1 for none."""
        return np.column_stack(self._codes) if self._codes else np.zeros((len(self.wrong), 0), np.int64)

    def add_clusters(self, lake: Lake, seed: int) -> tuple[np.ndarray | None, str | None]:
        """Adds the levels of the newest tree if it covers the predictions, else clusters of their vectors.

        Returns the reduced vectors (None with a tree), and a remark (None if nothing is left out).
        """
        tree = dimensions.newest_tree(lake)
        if tree is not None:
            members = lake.scan("cluster_members", ["image_id", "node"], f"tree = {literal(tree)} AND node <> ''")
            image_ids = dict.fromkeys(self.image_ids)
            members = members.filter(pc.is_in(members["image_id"], value_set=pa.array(image_ids)))
            if len(pc.unique(members["image_id"])) >= _TREE_COVERS * len(image_ids):
                self._add_tree(tree, members)
                return None, None
        return self._add_own_clusters(lake, seed)

    def finding(self, failure: Failure) -> FailingSlice:
        """The failing subgroup with its names, rates and images."""
        inside = failure.members
        reviewed, wrong = int(inside.sum()), float(self.wrong[inside].sum())
        others, other_wrong = len(inside) - reviewed, float(self.wrong[~inside].sum())
        counts = (round(wrong), reviewed, round(other_wrong), others)
        rest = other_wrong / others if others else 0.0
        errors = np.flatnonzero(inside & (self.wrong > 0))
        errors = errors[np.argsort(-self.wrong[errors] - self._confidence[errors] * 1e-3, kind="stable")][:MAX_IMAGES]
        conditions, node, predicate = self._names(failure.group)
        return FailingSlice(
            conditions,
            node,
            predicate,
            [] if predicate else [self.image_ids[row] for row in np.flatnonzero(inside)],
            reviewed,
            wrong,
            wilson(*counts[:2]),
            wilson(*counts[2:]),
            difference(*counts),
            wrong - rest * reviewed,
            failure.p,
            [self.image_ids[row] for row in errors],
            self._same(failure),
        )

    def _add(self, dimension: Dimension | None, column: pa.ChunkedArray) -> int:
        """Adds a dimension; returns its number."""
        encoded = pc.dictionary_encode(column).combine_chunks()
        self._dimensions.append(dimension)
        self._values.append(encoded.dictionary.to_pylist())
        self._codes.append(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))
        return len(self._dimensions) - 1

    def _add_tree(self, tree: str, members: pa.Table) -> None:
        self._tree = tree
        depth = np.asarray(pc.count_substring(members["node"], ".").to_numpy())
        for level in range(int(depth.max(initial=-1)) + 1):
            rows = members.filter(pa.array(depth == level))
            node = dict(zip(rows["image_id"].to_pylist(), rows["node"].to_pylist(), strict=True))
            column = pa.chunked_array([pa.array([node.get(name) for name in self.image_ids], pa.string())])
            self.clusters.append(self._add(None, column))

    def _add_own_clusters(self, lake: Lake, seed: int) -> tuple[np.ndarray | None, str | None]:
        from embeddings.vectors.principal_components import reduce
        from lake.storage.vectors import vector_batches

        record = next((record for record in lake.embedders() if record.dim is not None), None)
        if record is None:
            return None, "the lake has no vectors, so kinds of image were not compared; run: lakeloop embed"
        row_of = {name: row for row, name in enumerate(self.image_ids)}
        batches = [*vector_batches(lake, record, self.image_ids)]
        if sum(len(names) for names, _ in batches) < MIN_PREDICTIONS:
            return None, "too few images have a vector to compare kinds of image; run: lakeloop embed"
        rows = np.array([row_of[name] for names, _ in batches for name in names])
        vectors = np.concatenate([matrix for _, matrix in batches])[np.argsort(rows)]
        rows = np.sort(rows)
        reduced = reduce(vectors, seed, _COMPONENTS)
        points = np.full((len(self.image_ids), reduced.shape[1]), np.nan, np.float32)
        points[rows] = reduced
        try:
            cuts = own_clusters(reduced, seed)
        except MissingExtra as error:
            return points, f"clusters were not compared: {error}"
        for cut in cuts:
            labels = np.full(len(self.image_ids), -1)
            labels[rows] = cut
            text = [None if label < 0 else str(label) for label in labels.tolist()]
            self.unnamed.append(self._add(None, pa.chunked_array([pa.array(text, pa.string())])))
        return points, None

    def _same(self, failure: Failure) -> list[tuple[str, float]]:
        names = []
        for group, jaccard in failure.same:
            conditions, node, predicate = self._names(group)
            if predicate is not None:
                names.append((f"cluster {node.partition('/')[2]}" if node else str(conditions[0]), jaccard))
        return names[:3]

    def _names(self, group: Subgroup) -> tuple[tuple[Condition, ...], str | None, str | None]:
        """Conditions, node and predicate; empty and None for a subgroup without a name."""
        first, value = group.conditions[0]
        if first == DIRECTION or first in self.unnamed:
            return (), None, None
        if first in self.clusters:
            node = f"{self._tree}/{self._values[first][value]}"
            return (), node, f"image_id IN (SELECT image_id FROM cluster_members WHERE id = {literal(node)})"
        conditions, predicates = [], []
        for number, code in group.conditions:
            dimension, text = self._dimensions[number], self._values[number][code]
            assert dimension is not None
            conditions.append(Condition(dimension.name, dimension.title, text))
            predicates.append(f"({dimension.picks(text)})")
        return tuple(conditions), None, " AND ".join(predicates)


def own_clusters(points: np.ndarray, seed: int) -> list[np.ndarray]:
    """Cluster labels of points (n, d), int64 (n,) each, from fine to coarse: k-means, its centres merged by Ward.

    Raises MissingExtra without scikit-learn.
    """
    from embeddings.clusters.clustering import kmeans
    from lake.extras import require

    AgglomerativeClustering = require("sklearn.cluster", "scikit-learn", "cluster").AgglomerativeClustering
    fine = kmeans(points, min(_OWN_CLUSTERS, max(2, len(points) // 16)), seed).labels
    centres = np.stack([points[fine == label].mean(axis=0) for label in range(int(fine.max()) + 1)])
    coarse = []
    for k in reversed(_OWN_CUTS):
        if k < len(centres):
            merged = AgglomerativeClustering(k, linkage="ward").fit(centres).labels_
            coarse.append(np.asarray(merged, np.int64)[fine])
    return [fine, *coarse]


def read(lake: Lake, where: str | None, by: By, errors: Errors) -> tuple[PredictionTable, int]:
    """The predictions to compare, one per image, at most MAX_PREDICTIONS; and how many there are in all."""
    wanted = [] if by == "cluster" else _dimensions(lake, where)
    joins = " ".join(dict.fromkeys(dimension.join for dimension in wanted if dimension.join))
    values = "".join(f", {dimension.sql} AS d{number}" for number, dimension in enumerate(wanted))
    wrong = "CAST(NOT correct AS DOUBLE)" if errors == "judged" else "1 - least(greatest(confidence, 0), 1)"
    reviewed = "correct IS NOT NULL" if errors == "judged" else "confidence IS NOT NULL"
    rows = connections.query(
        lake,
        f"""
        WITH newest AS (SELECT * FROM predictions_reviewed WHERE {predicate(where)} AND {reviewed}
                        QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY timestamp DESC NULLS LAST,
                                                   ingested_at DESC, prediction_id) = 1),
        sampled AS (SELECT *, count(*) OVER () AS total FROM newest
                    ORDER BY hash(image_id), image_id LIMIT {MAX_PREDICTIONS})
        SELECT a.image_id, {wrong} AS wrong, a.confidence, a.total{values}
        FROM sampled a {joins} ORDER BY a.image_id""",
    )
    total = rows["total"][0].as_py() if rows.num_rows else 0
    return PredictionTable(rows, wanted), total


def _dimensions(lake: Lake, where: str | None) -> list[Dimension]:
    """Dimensions that may explain failures; not the ground truth, and not the model's confidence."""
    keys = [f"metadata.{key}" for key in dimensions.metadata_keys(lake)]
    names = [*lake.promoted(), *keys][: _MAX_DIMENSIONS - len(_ALWAYS)]
    days = connections.query(
        lake,
        f"SELECT date_diff('day', min(timestamp), max(timestamp)) AS days FROM predictions WHERE {predicate(where)}",
    )["days"][0].as_py()
    period = "day" if days is None or days < 15 else "week" if days < 100 else "month"
    return dimensions.resolve(lake, [*dict.fromkeys([*names, *_ALWAYS, period])], where)
