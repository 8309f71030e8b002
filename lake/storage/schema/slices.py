"""Tables of slices, their members and tags, and of saved queries."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.types import UTC, Column, Table

SLICES = Table(
    "slices",
    "A version of a named set of images: its definition, and the version of samples it was resolved at.",
    [
        Column("id", pa.string(), "NAME@VERSION", nullable=False),
        Column("name", pa.string(), "the slice's name", nullable=False),
        Column("version", pa.int32(), "1, 2, ...", nullable=False),
        Column("kind", pa.string(), "where, ids, cluster, search, like, union or intersection", nullable=False),
        Column("definition", pa.string(), "the SQL filter, the nodes TREE/NODE, or the name of the id list"),
        Column("predictions_version", pa.int64(), "version of samples it was resolved at", nullable=False),
        Column("size", pa.int64(), "number of images", nullable=False),
        Column("created_at", UTC, "when it was created", nullable=False),
        Column("spec", pa.string(), "the whole definition, JSON: resolves the slice at another version of the lake"),
        Column("role", pa.string(), "train, evaluation or regression; null: none"),
        Column("live", pa.bool_(), "whether its members are resolved again at every use; null: they are frozen"),
        Column("deleted_at", UTC, "when it was deleted; its name and version are not used again; null: not deleted"),
    ],
    key="id",
)

SLICE_MEMBERS = Table(
    "slice_members",
    "The images of a slice's version.",
    [
        Column("id", pa.string(), "NAME@VERSION", nullable=False),
        Column("name", pa.string(), "the slice", nullable=False),
        Column("version", pa.int32(), "its version", nullable=False),
        Column("image_id", pa.string(), "a member", nullable=False),
        Column(
            "label_events",
            pa.list_(pa.string()),
            "event_ids of its labels when it was frozen, the latest of each task; null: created before step 4",
        ),
    ],
    key="",
    indexed=["id"],
)

SLICE_TAGS = Table(
    "slice_tags",
    "A name for one version of a slice, which can move to another version.",
    [
        Column("id", pa.string(), "NAME@TAG", nullable=False),
        Column("name", pa.string(), "the slice", nullable=False),
        Column("tag", pa.string(), "the tag", nullable=False),
        Column("version", pa.int32(), "the version it names; null: the tag was removed"),
        Column("tagged_at", UTC, "when it was set", nullable=False),
    ],
    key="id",
)

SAVED_QUERIES = Table(
    "saved_queries",
    "A saved SELECT.",
    [
        Column("name", pa.string(), "its name", nullable=False),
        Column("sql", pa.string(), "the SELECT, with $name for each parameter", nullable=False),
        Column("parameters", pa.string(), "default values of the parameters, a JSON object"),
        Column("description", pa.string(), "what it is for, in its author's words"),
        Column("saved_at", UTC, "when it was saved", nullable=False),
        Column("deleted_at", UTC, "when it was deleted; null: not deleted"),
    ],
    key="name",
)
