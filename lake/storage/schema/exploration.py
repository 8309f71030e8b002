"""Tables of embedders, cluster trees, active searches and maps."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.columns import UTC, Column, Table

EMBEDDERS = Table(
    "embedders",
    "One embedder the lake uses; its vectors are the column `column` of predictions.",
    [
        Column("name", pa.string(), "the embedder's name, as given to --embedder", nullable=False),
        Column("position", pa.int32(), "order of registration; the lowest is the default", nullable=False),
        Column("column", pa.string(), "its vector column in predictions", nullable=False),
        Column("dim", pa.int32(), "length of a vector; null until the first run of `lakeloop embed`"),
        Column(
            "weights_sha256",
            pa.string(),
            "SHA-256 over the weights' tensors, whatever file they came in; null until the first run",
        ),
        Column("weights", pa.string(), "where they came from: a package, a hub's tag, or a file's name"),
        Column("preprocessing", pa.string(), "size, crop, interpolation, mean and deviation, JSON"),
        Column("licence", pa.string(), "of the weights"),
        Column("embeds_text", pa.bool_(), "whether text can be searched with it"),
        Column("added_at", UTC, "when it was registered", nullable=False),
        Column(
            "duplicates_from",
            pa.float64(),
            "cosine from which two images are near-duplicates, calibrated on this lake; null: the embedder's own",
        ),
    ],
    key="name",
)

CLUSTERS = Table(
    "clusters",
    "A node of a drill-down tree.",
    [
        Column("id", pa.string(), "TREE/NODE, what --cluster and --node take", nullable=False),
        Column("tree", pa.string(), "the tree", nullable=False),
        Column("node", pa.string(), 'path of the node, "0.3.1"; the root is ""', nullable=False),
        Column("parent", pa.string(), "path of its parent; null at the root"),
        Column("method", pa.string(), "what made it: root, kmeans, hdbscan or evoc", nullable=False),
        Column("params", pa.string(), "the method's parameters, JSON"),
        Column("seed", pa.int64(), "seed of the method"),
        Column("embedder", pa.string(), "whose vectors were clustered", nullable=False),
        Column("where", pa.string(), "the SQL filter the root was made with; null: all images"),
        Column("predictions_version", pa.int64(), "version of predictions that was read", nullable=False),
        Column("size", pa.int64(), "number of distinct images", nullable=False),
        Column("noise", pa.bool_(), "whether this is what HDBSCAN put in no cluster", nullable=False),
        Column("noise_share", pa.float64(), "share of its images in its noise child, 0 to 1; null: not opened"),
        Column("compactness", pa.float64(), "mean cosine of its images to their mean, -1 to 1, higher is tighter"),
        Column("medoids", pa.list_(pa.string()), "image_ids nearest to its centre, nearest first"),
        Column("created_at", UTC, "when it was made", nullable=False),
        Column("borderline", pa.list_(pa.string()), "image_ids that fit it least, the least first"),
        Column("errors", pa.list_(pa.string()), "image_ids of its most confident wrong answers, the surest first"),
        Column("persistence", pa.float64(), "how long it held together as density rose, 0 to 1; null: not HDBSCAN's"),
        Column("confidence", pa.float64(), "mean confidence of the answers in it when it was made; null: none"),
        Column("answers", pa.int64(), "answers in it when it was made"),
        Column("known", pa.int64(), "of them, how many a label or a verdict calls right or wrong"),
        Column("wrong", pa.int64(), "of those, how many are wrong"),
        Column("labels", pa.string(), 'its answers by class, JSON: [{"label", "n"}], the commonest first'),
        Column("first_at", UTC, "time of its first answer"),
        Column("last_at", UTC, "time of its last answer"),
        Column("suggested", pa.string(), "a name found in its labels, metadata or, with CLIP, words; null: none fits"),
        Column("name", pa.string(), "what a person calls it; null: nobody named it"),
    ],
    key="id",
    indexed=["tree"],
)

CLUSTER_MEMBERS = Table(
    "cluster_members",
    "Who is in a node.",
    [
        Column("id", pa.string(), "TREE/NODE of the node", nullable=False),
        Column("tree", pa.string(), "the tree", nullable=False),
        Column("node", pa.string(), "path of the node", nullable=False),
        Column("image_id", pa.string(), "a member", nullable=False),
        Column("similarity", pa.float32(), "cosine to the mean of the node's first members, -1 to 1"),
        Column("assigned_at", UTC, "when it was assigned to the node; null: it was there when the node was made"),
    ],
    key="",
    indexed=["id"],
)

SEARCHES = Table(
    "searches",
    "An active search: from examples to all of their kind. Its state is what `marks` say.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("name", pa.string(), "what a person calls it; null: nobody named it"),
        Column("examples", pa.list_(pa.string()), "image_ids it began with", nullable=False),
        Column("node", pa.string(), "TREE/NODE it looks in; null: the lake"),
        Column("where", pa.string(), "SQL filter it looks in; null: all images"),
        Column("embedder", pa.string(), "whose vectors it ranks", nullable=False),
        Column("seed", pa.int64(), "seed of its sample", nullable=False),
        Column("predictions_version", pa.int64(), "version of predictions when it began", nullable=False),
        Column("created_at", UTC, "when it began", nullable=False),
    ],
    key="id",
)

MARKS = Table(
    "marks",
    "A person's word on an image in an active search. Append only; the current state is the view `marks_current`.",
    [
        Column("event_id", pa.string(), "UUID of the mark", nullable=False),
        Column("search", pa.string(), "the search", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("mark", pa.string(), "yes, no, or none (taken back)", nullable=False),
        Column("page", pa.int32(), "which page it was made on, from 1; 0: an example or a cluster", nullable=False),
        Column("node", pa.string(), "TREE/NODE that was accepted or refused whole; null: this image was looked at"),
        Column("timestamp", UTC, "when", nullable=False),
    ],
    key="event_id",
    indexed=["search"],
)

MAPS = Table(
    "maps",
    "A two-dimensional picture of the lake's vectors, for looking only.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("embedder", pa.string(), "whose vectors it shows", nullable=False),
        Column("node", pa.string(), "TREE/NODE it shows; null: all images that pass `where`"),
        Column("where", pa.string(), "SQL filter; null: all images"),
        Column("method", pa.string(), "how it was projected", nullable=False),
        Column("params", pa.string(), "the method's parameters, JSON"),
        Column("seed", pa.int64(), "seed of the method", nullable=False),
        Column("size", pa.int64(), "number of points when it was made", nullable=False),
        Column("fitted", pa.int64(), "of them, how many the projection was fitted on", nullable=False),
        Column("predictions_version", pa.int64(), "version of predictions that was read", nullable=False),
        Column("created_at", UTC, "when it was made", nullable=False),
    ],
    key="id",
)

MAP_POINTS = Table(
    "map_points",
    "Where an image stands on a map.",
    [
        Column("map", pa.string(), "the map", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("x", pa.float32(), "to the right", nullable=False),
        Column("y", pa.float32(), "upwards", nullable=False),
    ],
    key="",
    indexed=["map"],
)
