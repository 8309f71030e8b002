"""Declares the tables of labels and reviews."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.types import BOXES, MASKS, UTC, Column, Table

LABELS = Table(
    "labels",
    "A label: what an image shows. Append only; the view `labels_current` has the latest.",
    [
        Column("event_id", pa.string(), "UUID of the event", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("timestamp", UTC, "when it was given", nullable=False),
        Column("task", pa.string(), "classification, detection or segmentation", nullable=False),
        Column("label", pa.string(), "the class"),
        Column("boxes", BOXES, "as in predictions"),
        Column("masks", MASKS, "as in predictions"),
        Column("origin", pa.string(), "human, import, pseudo or superpixel", nullable=False),
        Column("annotator", pa.string(), "who or what gave it"),
        Column("model_version", pa.string(), "for pseudo labels: the version of the model"),
        Column(
            "incomplete",
            pa.bool_(),
            "true: a part of it could not be read, so the image may show more than it says; null: false",
        ),
        Column("crowd_boxes", BOXES, "boxes around instances that nobody told apart: no instances, no background"),
        Column("crowd_masks", MASKS, "masks of such regions"),
        Column("source", pa.string(), "for imports: the document, or the root of the class folders, that says it"),
        Column("comment", pa.string(), "what the annotator wrote beside it"),
    ],
    key="event_id",
    indexed=["image_id"],
)

REVIEWS = Table(
    "reviews",
    "A verdict on a prediction. Never a label; the view `reviews_current` has the latest.",
    [
        Column("event_id", pa.string(), "UUID of the event", nullable=False),
        Column("prediction_id", pa.string(), "the prediction it is about", nullable=False),
        Column("image_id", pa.string(), "the image of that prediction", nullable=False),
        Column("timestamp", UTC, "when it was given", nullable=False),
        Column("origin", pa.string(), "who gave it: customer (POST /v1/feedback)", nullable=False),
        Column("verdict", pa.string(), "correct, incorrect or unsure", nullable=False),
        Column("comment", pa.string(), "a comment in the author's own words"),
        Column("ticket", pa.string(), "the author's reference to it in another system"),
        Column("key_id", pa.string(), "the access key it came with; null: none"),
        Column("ingested_at", UTC, "when it was committed to the lake", nullable=False),
    ],
    key="event_id",
    indexed=["event_id", "prediction_id", "image_id"],
)
