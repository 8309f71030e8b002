"""Declares table samples."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.types import BOXES, MASKS, SCORES_TYPE, UTC, Column, Table

SAMPLES = Table(
    "samples",
    "An image as it was seen once, with the prediction that a model made of it; with a null model, without one.",
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
