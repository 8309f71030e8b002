"""The tables: what a row is, and what every column means.

This is the only place where columns are declared. `docs/storage.md` is checked against it by a test, the
Lance schemas are made from it, and `lakeloop sql` sees the same names. It knows nothing of files or queries.

Two rules shape it. Image bytes never live in a table that is searched, labelled or compacted, because such
operations rewrite rows. Events are appended, never edited: the current state is a view (`lake/storage/views.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

UTC = pa.timestamp("us", tz="UTC")

SCORES_TYPE = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())]))
BOXES = pa.list_(
    pa.struct(
        [
            ("label", pa.string()),
            ("score", pa.float64()),
            ("x", pa.float64()),
            ("y", pa.float64()),
            ("width", pa.float64()),
            ("height", pa.float64()),
        ]
    )
)
MASKS = pa.list_(
    pa.struct(
        [
            ("label", pa.string()),
            ("score", pa.float64()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("counts", pa.string()),
        ]
    )
)


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType | str
    doc: str
    nullable: bool = True


@dataclass(frozen=True)
class Table:
    """One Lance table. `key` names the column that identifies a row: inserting a known key adds nothing."""

    name: str
    doc: str
    columns: Sequence[Column]
    key: str
    indexed: Sequence[str] = ()

    def arrow(self) -> pa.Schema:
        """The Arrow schema; the key column carries Lance's unenforced-primary-key mark."""
        fields = []
        for c in self.columns:
            if c.type == "blob":
                import lance

                fields.append(lance.blob_field(c.name))
                continue
            assert isinstance(c.type, pa.DataType)
            # Without this mark two processes that insert the same key at once would both succeed.
            mark = {b"lance-schema:unenforced-primary-key": b"true"} if c.name == self.key else None
            fields.append(pa.field(c.name, c.type, c.nullable, metadata=mark))
        return pa.schema(fields)


IMAGES = Table(
    "images",
    "One distinct image. Append only: a row is never rewritten.",
    [
        Column("image_id", pa.string(), "SHA-256 of `data`, 64 hex digits", nullable=False),
        Column("width", pa.int32(), "pixels, after the EXIF orientation is applied"),
        Column("height", pa.int32(), "pixels, after the EXIF orientation is applied"),
        Column("format", pa.string(), "JPEG, PNG, WEBP, BMP, TIFF or GIF (its first frame counts)"),
        Column("size_bytes", pa.int64(), "length of `data`"),
        Column("source", pa.string(), "where it was first seen: a path or URI"),
        Column("ingested_at", UTC, "when it was committed to the lake", nullable=False),
        Column("data", "blob", "the file's own bytes, unchanged (not selectable in SQL)"),
    ],
    key="image_id",
    indexed=["image_id"],
)

THUMBNAILS = Table(
    "thumbnails",
    "Its small picture, what every grid shows.",
    [
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("width", pa.int32(), "pixels, at most 256"),
        Column("height", pa.int32(), "pixels, at most 256"),
        Column("jpeg", pa.binary(), "JPEG, at most 16 KiB, upright, RGB (not selectable in SQL)"),
    ],
    key="image_id",
    indexed=["image_id"],
)

PREDICTIONS = Table(
    "predictions",
    "One answer of a model to one query image; or, with a null model, an image that has no answer yet.",
    [
        Column("prediction_id", pa.string(), "the caller's UUID, else derived from the row", nullable=False),
        Column("image_id", pa.string(), "the image asked about", nullable=False),
        Column("timestamp", UTC, "when the model answered; null when unknown"),
        Column("model", pa.string(), "the model's name; null: no model answered"),
        Column("model_version", pa.string(), "its version"),
        Column("task", pa.string(), "classification, detection or segmentation; null with a null model"),
        Column("label", pa.string(), "the predicted class"),
        Column("confidence", pa.float64(), "the model's own belief in `label`, 0 to 1, higher is surer"),
        Column("scores", SCORES_TYPE, "class scores, each 0 to 1, as the model gave them"),
        Column("boxes", BOXES, "detections; x, y (top left), width, height in pixels of the upright image"),
        Column(
            "masks",
            MASKS,
            "instances as compressed COCO RLE; score = mean probability over the mask's pixels, 0 to 1",
        ),
        Column("source", pa.string(), "where the row came from: the image's path, or what the log says"),
        Column("latency_ms", pa.float64(), "the model's answering time, milliseconds"),
        Column("metadata", pa.string(), "everything else the row said, a JSON object"),
        Column("ingested_at", UTC, "when it was committed to the lake", nullable=False),
        Column(
            "image_status", pa.string(), "why the image has no thumbnail or vector; null: nothing is known to be wrong"
        ),
        Column("image_share", pa.float64(), "the share of traffic whose bytes were kept when it came; null: all"),
    ],
    key="prediction_id",
    indexed=["prediction_id", "image_id"],
)

LABELS = Table(
    "labels",
    "One statement about what an image is. Append only: the view `labels_current` has the latest.",
    [
        Column("event_id", pa.string(), "UUID of the statement", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("timestamp", UTC, "when it was said", nullable=False),
        Column("task", pa.string(), "classification, detection or segmentation", nullable=False),
        Column("label", pa.string(), "the class"),
        Column("boxes", BOXES, "as in predictions"),
        Column("masks", MASKS, "as in predictions"),
        Column("origin", pa.string(), "human, import, pseudo or superpixel", nullable=False),
        Column("annotator", pa.string(), "who or what said it"),
        Column("model_version", pa.string(), "for pseudo labels: the model that made it"),
    ],
    key="event_id",
    indexed=["image_id"],
)

REVIEWS = Table(
    "reviews",
    "One verdict on an answer, as somebody gave it. Never a label: `reviews_current` has the latest.",
    [
        Column("event_id", pa.string(), "UUID of the statement", nullable=False),
        Column("prediction_id", pa.string(), "the answer it is about", nullable=False),
        Column("image_id", pa.string(), "the image of that answer", nullable=False),
        Column("timestamp", UTC, "when it was said", nullable=False),
        Column("origin", pa.string(), "who said it: customer (POST /v1/feedback)", nullable=False),
        Column("verdict", pa.string(), "correct, incorrect or unsure", nullable=False),
        Column("comment", pa.string(), "in their own words"),
        Column("ticket", pa.string(), "their reference to it elsewhere"),
        Column("key_id", pa.string(), "the access key it came with; null: none"),
        Column("ingested_at", UTC, "when it was committed to the lake", nullable=False),
    ],
    key="event_id",
    indexed=["event_id", "prediction_id", "image_id"],
)

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

SLICES = Table(
    "slices",
    "One version of a named set of images: how it was defined, and against what.",
    [
        Column("id", pa.string(), "NAME@VERSION", nullable=False),
        Column("name", pa.string(), "the slice's name", nullable=False),
        Column("version", pa.int32(), "1, 2, ...", nullable=False),
        Column("kind", pa.string(), "where, ids, cluster, search, like, union or intersection", nullable=False),
        Column("definition", pa.string(), "the SQL filter, the nodes TREE/NODE, or the name of the id list"),
        Column("predictions_version", pa.int64(), "version of predictions it was resolved at", nullable=False),
        Column("size", pa.int64(), "number of images", nullable=False),
        Column("created_at", UTC, "when it was made", nullable=False),
        Column("spec", pa.string(), "the whole definition, JSON: makes the slice again at another version of the lake"),
        Column("role", pa.string(), "train, evaluation or regression; null: none"),
        Column("live", pa.bool_(), "whether its members are found anew at every use; null: they are frozen"),
        Column(
            "deleted_at", UTC, "when it was deleted: its name and version are not given out again; null: it is there"
        ),
    ],
    key="id",
)

SLICE_MEMBERS = Table(
    "slice_members",
    "The images a slice's version resolved to.",
    [
        Column("id", pa.string(), "NAME@VERSION", nullable=False),
        Column("name", pa.string(), "the slice", nullable=False),
        Column("version", pa.int32(), "its version", nullable=False),
        Column("image_id", pa.string(), "a member", nullable=False),
        Column(
            "label_events",
            pa.list_(pa.string()),
            "event_ids of the labels it was frozen with, the current one of each task; null: made before step 4",
        ),
    ],
    key="",
    indexed=["id"],
)

SLICE_TAGS = Table(
    "slice_tags",
    "A name for one version of a slice, which may be moved to another.",
    [
        Column("id", pa.string(), "NAME@TAG", nullable=False),
        Column("name", pa.string(), "the slice", nullable=False),
        Column("tag", pa.string(), "the tag", nullable=False),
        Column("version", pa.int32(), "the version it stands for; null: it was taken away"),
        Column("tagged_at", UTC, "when it was set", nullable=False),
    ],
    key="id",
)

SAVED_QUERIES = Table(
    "saved_queries",
    "A SELECT that somebody saved.",
    [
        Column("name", pa.string(), "its name", nullable=False),
        Column("sql", pa.string(), "the SELECT, with $name for each parameter", nullable=False),
        Column("parameters", pa.string(), "what the parameters are when nobody says otherwise, a JSON object"),
        Column("description", pa.string(), "what it answers, in its maker's words"),
        Column("saved_at", UTC, "when it was saved", nullable=False),
        Column("deleted_at", UTC, "when it was deleted; null: it is there"),
    ],
    key="name",
)

RUNS = Table(
    "runs",
    "A training run, whole: what it was made from, with what, and what came out.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("model", pa.string(), "name of the model it makes a version of", nullable=False),
        Column("task", pa.string(), "classification, detection or segmentation", nullable=False),
        Column("kind", pa.string(), "probe, finetune, or import (weights from elsewhere)", nullable=False),
        Column("status", pa.string(), "running, done, stopped or failed", nullable=False),
        Column("parent", pa.string(), "the run whose weights it began from; null: none"),
        Column("search", pa.string(), "the hyperparameter search it is a trial of; null: none"),
        Column("recipe", pa.string(), "every setting, JSON", nullable=False),
        Column("data", pa.string(), "slices by NAME@VERSION with their use, image counts and hashes of ids, JSON"),
        Column("classes", pa.list_(pa.string()), "the classes it knows, in the order of its outputs"),
        Column("artifacts", pa.string(), "files by name: path under the lake, SHA-256, bytes; JSON"),
        Column("environment", pa.string(), "versions of Python, packages and lakeloop, machine, commit; JSON"),
        Column("seed", pa.int64(), "seed of everything drawn", nullable=False),
        Column("started_at", UTC, "when it began", nullable=False),
        Column("ended_at", UTC, "when it ended; null: it runs, or was killed"),
        Column("error", pa.string(), "why it failed"),
    ],
    key="id",
)

METRICS = Table(
    "metrics",
    "One number of a run: of an epoch, or of a slice. Append only.",
    [
        Column("run", pa.string(), "the run", nullable=False),
        Column("evaluation", pa.string(), "which evaluation of the run, 8 hexadecimal digits; null: while training"),
        Column("metric", pa.string(), "its name: accuracy, balanced_accuracy, map_50, loss, ...", nullable=False),
        Column("slice", pa.string(), "NAME@VERSION it was measured on; null: not on a slice"),
        Column("split", pa.string(), "train, validation or test, while training; null: a slice as a whole"),
        Column("step", pa.int64(), "optimiser steps taken"),
        Column("epoch", pa.float64(), "epochs done"),
        Column("value", pa.float64(), "the number; null: it cannot be said, e.g. of no images"),
        Column("low", pa.float64(), "lower end of its 95 % interval"),
        Column("high", pa.float64(), "upper end"),
        Column("n", pa.int64(), "images it was measured on"),
        Column("at", UTC, "when", nullable=False),
    ],
    key="",
    indexed=["run"],
)

SCORES = Table(
    "scores",
    "One answer of an evaluated, candidate or shadow model to one image. Never a production answer.",
    [
        Column("id", pa.string(), "RUN/IMAGE_ID, for shadow answers RUN/PREDICTION_ID", nullable=False),
        Column("run", pa.string(), "the run whose model answered", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("prediction_id", pa.string(), "shadow: production's answer to the same query; null otherwise"),
        Column("task", pa.string(), "as in predictions", nullable=False),
        Column("label", pa.string(), "as in predictions"),
        Column("confidence", pa.float64(), "as in predictions"),
        Column("scores", SCORES_TYPE, "as in predictions"),
        Column("boxes", BOXES, "as in predictions"),
        Column("masks", MASKS, "as in predictions"),
        Column("at", UTC, "when", nullable=False),
    ],
    key="id",
    indexed=["id", "run"],
)

GATES = Table(
    "gates",
    "One verdict on a candidate, with everything it rests on.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("candidate", pa.string(), "the run that was judged", nullable=False),
        Column("baseline", pa.string(), "the run it was compared with", nullable=False),
        Column("outcome", pa.string(), "passed, failed or undecided", nullable=False),
        Column("blocks", pa.bool_(), "whether the policy keeps the candidate from being promoted", nullable=False),
        Column("policy", pa.string(), "margins, metrics, protected slices, levels; JSON", nullable=False),
        Column("slices", pa.string(), "the figures and the outcome of every slice, JSON", nullable=False),
        Column("at", UTC, "when", nullable=False),
    ],
    key="id",
)

RELEASES = Table(
    "releases",
    "What happened to a model's versions. Append only; the view `models` has the present state.",
    [
        Column("event_id", pa.string(), "UUID of the entry", nullable=False),
        Column("model", pa.string(), "the model", nullable=False),
        Column("version", pa.int32(), "1, 2, ... in the order of registration", nullable=False),
        Column("run", pa.string(), "the run that made it", nullable=False),
        Column("action", pa.string(), "registered, promoted, rolled_back, shadowed or retired", nullable=False),
        Column("gate", pa.string(), "the gate it passed; null: none was asked"),
        Column("reason", pa.string(), "why, in the words of whoever did it"),
        Column("timestamp", UTC, "when", nullable=False),
    ],
    key="event_id",
)

KEYS = Table(
    "keys",
    "An access key to the HTTP API. The secret itself is stored nowhere.",
    [
        Column("key_id", pa.string(), "the public part of the key", nullable=False),
        Column("name", pa.string(), "what it is for, in its maker's words"),
        Column("scopes", pa.list_(pa.string()), "of ingest, feedback, read, sql and admin", nullable=False),
        Column("secret_sha256", pa.string(), "SHA-256 of the secret (256 random bits), 64 hex digits", nullable=False),
        Column("created_at", UTC, "when it was made", nullable=False),
        Column("expires_at", UTC, "from when it is refused; null: never"),
        Column("revoked_at", UTC, "when it was revoked; null: it was not"),
    ],
    key="key_id",
)

AUDIT = Table(
    "audit",
    "Who wrote what. Append only.",
    [
        Column("event_id", pa.string(), "UUID of the entry", nullable=False),
        Column("timestamp", UTC, "when it was accepted", nullable=False),
        Column("key_id", pa.string(), "the access key it came with; null: none"),
        Column("user", pa.string(), "the operating system's user who ran a command; null: it came by HTTP"),
        Column(
            "action",
            pa.string(),
            "prediction, image, feedback, or the command (key create, forget, ...)",
            nullable=False,
        ),
        Column("target", pa.string(), "the id or name of what was written"),
        Column("detail", pa.string(), "more about it, a JSON object"),
    ],
    key="event_id",
    indexed=["event_id"],
)

FORGOTTEN = Table(
    "forgotten",
    "An image that was erased. It is not stored again, from wherever it may come.",
    [
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("forgotten_at", UTC, "when it was erased", nullable=False),
        Column("reason", pa.string(), "why, in the words of whoever did it"),
    ],
    key="image_id",
    indexed=["image_id"],
)

MIGRATIONS = Table(
    "migrations",
    "A numbered step that shaped this lake.",
    [
        Column("number", pa.int32(), "1, 2, ... in the order applied", nullable=False),
        Column("name", pa.string(), "what the step did", nullable=False),
        Column("applied_at", UTC, "when", nullable=False),
        Column("lakeloop_version", pa.string(), "the software that applied it", nullable=False),
    ],
    key="number",
)

TABLES = {
    t.name: t
    for t in (
        IMAGES,
        THUMBNAILS,
        PREDICTIONS,
        LABELS,
        REVIEWS,
        EMBEDDERS,
        CLUSTERS,
        CLUSTER_MEMBERS,
        SEARCHES,
        MARKS,
        MAPS,
        MAP_POINTS,
        SLICES,
        SLICE_MEMBERS,
        SLICE_TAGS,
        SAVED_QUERIES,
        RUNS,
        METRICS,
        SCORES,
        GATES,
        RELEASES,
        KEYS,
        AUDIT,
        FORGOTTEN,
        MIGRATIONS,
    )
}

# Types a user may promote a metadata column to (`lakeloop init --column NAME:TYPE`).
PROMOTABLE: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": UTC,
}

VECTOR_PREFIX = "emb_"


def vector_column(embedder: str) -> str:
    """`emb_<name>`, every non-alphanumeric character as `_`."""
    return VECTOR_PREFIX + "".join(c if c.isascii() and c.isalnum() else "_" for c in embedder)


def vector_type(dim: int) -> pa.DataType:
    return pa.list_(pa.float32(), dim)
