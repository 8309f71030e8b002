"""Tables of images, predictions, labels and reviews."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.columns import BOXES, MASKS, SCORES_TYPE, UTC, Column, Table

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
