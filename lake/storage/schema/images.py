"""Tables of images, predictions, labels and reviews."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.columns import BOXES, MASKS, SCORES_TYPE, UTC, Column, Table

IMAGES = Table(
    "images",
    "A distinct image. Append only: a row is never rewritten.",
    [
        Column("image_id", pa.string(), "SHA-256 of `data`, 64 hex digits", nullable=False),
        Column("width", pa.int32(), "pixels, after the EXIF orientation is applied"),
        Column("height", pa.int32(), "pixels, after the EXIF orientation is applied"),
        Column("format", pa.string(), "JPEG, PNG, WEBP, BMP, TIFF or GIF (its first frame counts)"),
        Column("size_bytes", pa.int64(), "length of `data`"),
        Column("source", pa.string(), "where it was first read from: a path or URI"),
        Column("ingested_at", UTC, "when it was committed to the lake", nullable=False),
        Column("data", "blob", "the file's own bytes, unchanged (not selectable in SQL)"),
    ],
    key="image_id",
    indexed=["image_id"],
)

THUMBNAILS = Table(
    "thumbnails",
    "A small picture of an image, as every grid shows it.",
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
    "A model's prediction for one image; or, with a null model, an image without a prediction.",
    [
        Column("prediction_id", pa.string(), "the caller's UUID, else derived from the row", nullable=False),
        Column("image_id", pa.string(), "the predicted image", nullable=False),
        Column("timestamp", UTC, "when the model made it; null: unknown"),
        Column("model", pa.string(), "the model's name; null: there is no prediction"),
        Column("model_version", pa.string(), "its version"),
        Column("task", pa.string(), "classification, detection or segmentation; null with a null model"),
        Column("label", pa.string(), "the predicted class"),
        Column("confidence", pa.float64(), "the model's own confidence in `label`, 0 to 1, higher is more confident"),
        Column("scores", SCORES_TYPE, "class scores, each 0 to 1, as the model returned them"),
        Column("boxes", BOXES, "detections; x, y (top left), width, height in pixels of the upright image"),
        Column(
            "masks",
            MASKS,
            "instances as compressed COCO RLE; score = mean probability over the mask's pixels, 0 to 1",
        ),
        Column("source", pa.string(), "where the row came from: the image's path, or the log's own value"),
        Column("latency_ms", pa.float64(), "the model's response time, milliseconds"),
        Column("metadata", pa.string(), "all other values of the row, a JSON object"),
        Column("ingested_at", UTC, "when it was committed to the lake", nullable=False),
        Column("image_status", pa.string(), "why the image has no thumbnail or vector; null: no problem is known"),
        Column("image_share", pa.float64(), "the share of traffic whose bytes were stored when it arrived; null: all"),
    ],
    key="prediction_id",
    indexed=["prediction_id", "image_id"],
)

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
