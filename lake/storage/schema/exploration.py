"""Tables of embedders, cluster trees, active searches and maps."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.types import UTC, Column, Table

EMBEDDERS = Table(
    "embedders",
    "An embedder of the lake; its vectors are the column `column` of samples.",
    [
        Column("name", pa.string(), "the embedder's name, as given to --embedder", nullable=False),
        Column("position", pa.int32(), "order of registration; the lowest is the default", nullable=False),
        Column("column", pa.string(), "its vector column in predictions", nullable=False),
        Column("dim", pa.int32(), "length of a vector; null until the first run of `lakeloop embed`"),
        Column(
            "weights_sha256",
            pa.string(),
            "SHA-256 of the weights' tensors, whatever their file; null until the first run",
        ),
        Column("weights", pa.string(), "where the weights came from: a package, a hub's tag, or a file's name"),
        Column("preprocessing", pa.string(), "size, crop, interpolation, mean and deviation, JSON"),
        Column("licence", pa.string(), "of the weights"),
        Column("embeds_text", pa.bool_(), "whether it can search by text"),
        Column("added_at", UTC, "when it was registered", nullable=False),
        Column(
            "duplicates_from",
            pa.float64(),
            "cosine from which two images are near-duplicates, calibrated on this lake; null: the embedder's default",
        ),
    ],
    key="name",
)

EMBEDDING_FAILURES = Table(
    "embedding_failures",
    "An image that an embedder gave no vector of. `lakeloop embed --retry-failed` tries it again.",
    [
        Column("id", pa.string(), "EMBEDDER/IMAGE_ID", nullable=False),
        Column("embedder", pa.string(), "the embedder's name", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("reason", pa.string(), "why: it cannot be decoded, or what is wrong with its vector", nullable=False),
        Column("at", UTC, "when it was tried", nullable=False),
    ],
    key="id",
    indexed=["image_id"],
)

CLUSTERS = Table(
    "clusters",
    "A node of a drill-down tree.",
    [
        Column("id", pa.string(), "TREE/NODE, what --cluster and --node take", nullable=False),
        Column("tree", pa.string(), "the tree", nullable=False),
        Column("node", pa.string(), 'path of the node, "0.3.1"; the root is ""', nullable=False),
        Column("parent", pa.string(), "path of its parent; null at the root"),
        Column("method", pa.string(), "root, or the method that found it: kmeans, hdbscan or evoc", nullable=False),
        Column("params", pa.string(), "the method's parameters, JSON"),
        Column("seed", pa.int64(), "seed of the method"),
        Column("embedder", pa.string(), "whose vectors were clustered", nullable=False),
        Column("where", pa.string(), "the SQL filter of the root; null: all images"),
        Column("predictions_version", pa.int64(), "version of samples that was read", nullable=False),
        Column("size", pa.int64(), "number of distinct images", nullable=False),
        Column("noise", pa.bool_(), "whether its images are those that HDBSCAN put in no cluster", nullable=False),
        Column("noise_share", pa.float64(), "share of its images in its noise child, 0 to 1; null: not split yet"),
        Column("compactness", pa.float64(), "mean cosine of its images to their mean, -1 to 1, higher is tighter"),
        Column("medoids", pa.list_(pa.string()), "image_ids nearest to its centre, nearest first"),
        Column("created_at", UTC, "when it was created", nullable=False),
        Column("borderline", pa.list_(pa.string()), "image_ids that fit it least, the worst fit first"),
        Column("errors", pa.list_(pa.string()), "image_ids of its most confident errors, most confident first"),
        Column("persistence", pa.float64(), "HDBSCAN's persistence, 0 to 1, higher is more stable; null: not HDBSCAN"),
        Column("confidence", pa.float64(), "mean confidence of its predictions when it was created; null: none"),
        Column("answers", pa.int64(), "number of its predictions when it was created"),
        Column("known", pa.int64(), "of them, how many a label or a verdict calls right or wrong"),
        Column("wrong", pa.int64(), "of these, how many are wrong"),
        Column("labels", pa.string(), 'its predictions by class, JSON: [{"label", "n"}], most frequent first'),
        Column("first_at", UTC, "time of its first prediction"),
        Column("last_at", UTC, "time of its last prediction"),
        Column("suggested", pa.string(), "a name from its labels, metadata or, with CLIP, words; null: none fits"),
        Column("name", pa.string(), "the name a person gave it; null: none"),
    ],
    key="id",
    indexed=["tree"],
)

CLUSTER_MEMBERS = Table(
    "cluster_members",
    "The images of a node.",
    [
        Column("id", pa.string(), "TREE/NODE of the node", nullable=False),
        Column("tree", pa.string(), "the tree", nullable=False),
        Column("node", pa.string(), "path of the node", nullable=False),
        Column("image_id", pa.string(), "a member", nullable=False),
        Column("similarity", pa.float32(), "cosine to the mean of the node's first members, -1 to 1"),
        Column("assigned_at", UTC, "when it was assigned to the node; null: with the node's creation"),
    ],
    key="",
    indexed=["id"],
)

SEARCHES = Table(
    "searches",
    "An active search: from examples to all images of their kind. Its marks are in `marks`.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("name", pa.string(), "the name a person gave it; null: none"),
        Column("examples", pa.list_(pa.string()), "image_ids of its first examples", nullable=False),
        Column("node", pa.string(), "TREE/NODE to search in; null: the lake"),
        Column("where", pa.string(), "SQL filter of the images to search; null: all images"),
        Column("embedder", pa.string(), "whose vectors it ranks", nullable=False),
        Column("seed", pa.int64(), "seed of its sample", nullable=False),
        Column("predictions_version", pa.int64(), "version of samples when it started", nullable=False),
        Column("created_at", UTC, "when it started", nullable=False),
    ],
    key="id",
)

MARKS = Table(
    "marks",
    "A person's mark on an image in an active search. Append only; the view `marks_current` has the latest.",
    [
        Column("event_id", pa.string(), "UUID of the mark", nullable=False),
        Column("search", pa.string(), "the search", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("mark", pa.string(), "yes, no, or none (taken back)", nullable=False),
        Column("page", pa.int32(), "the page it was made on, from 1; 0: an example or a cluster", nullable=False),
        Column("node", pa.string(), "TREE/NODE accepted or rejected as a whole; null: the person saw this image"),
        Column("timestamp", UTC, "when", nullable=False),
    ],
    key="event_id",
    indexed=["search"],
)

MAPS = Table(
    "maps",
    "A two-dimensional map of the lake's vectors, for viewing only.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("embedder", pa.string(), "whose vectors it shows", nullable=False),
        Column("node", pa.string(), "TREE/NODE it shows; null: all images that pass `where`"),
        Column("where", pa.string(), "SQL filter; null: all images"),
        Column("method", pa.string(), "the projection method", nullable=False),
        Column("params", pa.string(), "the method's parameters, JSON"),
        Column("seed", pa.int64(), "seed of the method", nullable=False),
        Column("size", pa.int64(), "number of points when it was created", nullable=False),
        Column("fitted", pa.int64(), "of these, how many the projection was fitted on", nullable=False),
        Column("predictions_version", pa.int64(), "version of samples that was read", nullable=False),
        Column("created_at", UTC, "when it was created", nullable=False),
    ],
    key="id",
)

MAP_POINTS = Table(
    "map_points",
    "The position of an image on a map.",
    [
        Column("map", pa.string(), "the map", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("x", pa.float32(), "to the right", nullable=False),
        Column("y", pa.float32(), "upwards", nullable=False),
    ],
    key="",
    indexed=["map"],
)
