"""The tables: what a row is, and what every column means.

Columns are declared only here. A test checks `docs/storage.md` against it, the Lance schemas are made from it, and
`lakeloop sql` sees the same names.

Image bytes never lie in a table that is searched, labelled or compacted, because these operations rewrite rows.
Events are appended, never edited: the current state is a view (`lake/storage/views.py`).
"""

from __future__ import annotations

from lake.storage.schema.administration import AUDIT, FORGOTTEN, KEYS, MIGRATIONS
from lake.storage.schema.exploration import (
    CLUSTER_MEMBERS,
    CLUSTERS,
    EMBEDDERS,
    EMBEDDING_FAILURES,
    MAP_POINTS,
    MAPS,
    MARKS,
    SEARCHES,
)
from lake.storage.schema.images import IMAGES, THUMBNAILS
from lake.storage.schema.jobs import JOBS
from lake.storage.schema.labels import LABELS, REVIEWS
from lake.storage.schema.samples import SAMPLES
from lake.storage.schema.slices import SAVED_QUERIES, SLICE_MEMBERS, SLICE_TAGS, SLICES
from lake.storage.schema.training import GATES, METRICS, RELEASES, RUNS, SCORES
from lake.storage.schema.types import (
    BOXES,
    MASKS,
    PROMOTABLE,
    SCORES_TYPE,
    UTC,
    VECTOR_PREFIX,
    Column,
    Table,
    vector_column,
    vector_type,
)

TABLES = {
    table.name: table
    for table in (
        IMAGES, THUMBNAILS, SAMPLES, LABELS, REVIEWS, EMBEDDERS, EMBEDDING_FAILURES, CLUSTERS, CLUSTER_MEMBERS,
        SEARCHES, MARKS, MAPS, MAP_POINTS, SLICES, SLICE_MEMBERS, SLICE_TAGS, SAVED_QUERIES, RUNS,
        METRICS, SCORES, GATES, RELEASES, JOBS, KEYS, AUDIT, FORGOTTEN, MIGRATIONS,
    )
}  # fmt: skip

__all__ = [
    "AUDIT", "BOXES", "CLUSTERS", "CLUSTER_MEMBERS", "Column", "EMBEDDERS", "EMBEDDING_FAILURES", "FORGOTTEN",
    "GATES", "IMAGES", "JOBS", "KEYS", "LABELS", "MAPS", "MAP_POINTS", "MARKS", "MASKS", "METRICS",
    "MIGRATIONS", "PROMOTABLE", "RELEASES", "REVIEWS", "RUNS", "SAMPLES", "SAVED_QUERIES", "SCORES",
    "SCORES_TYPE", "SEARCHES", "SLICES", "SLICE_MEMBERS", "SLICE_TAGS", "TABLES", "THUMBNAILS", "Table", "UTC",
    "VECTOR_PREFIX", "vector_column", "vector_type",
]  # fmt: skip
