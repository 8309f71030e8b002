"""Declares the tables of images and thumbnails."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.types import UTC, Column, Table

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
        Column("pixel_type", pa.string(), "uint16, int32, uint32 or float; null: 8 bits, or stored before step 10"),
        Column("black", pa.float64(), "the value that is shown as black; null with `pixel_type`"),
        Column("white", pa.float64(), "the value that is shown as white; null with `pixel_type`"),
        Column("white_from", pa.string(), "what said so: file, image (its own values), source PATH or declared PATH"),
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
