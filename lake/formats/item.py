"""The item that every reader yields: one image or one log row on its way into the lake."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lake.formats.annotation import AnnotationReader, ModelName
from lake.formats.turned_images import Orientation
from lake.prediction_logs.log import LogOptions, PredictionLog

MAX_FILE_BYTES = 512 << 20
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
# Images that lakeloop cannot decode: reported, not skipped like text files.
FOREIGN_SUFFIXES = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".eps", ".psd", ".dng", ".cr2", ".nef", ".arw"}


@dataclass(frozen=True)
class Item:
    """One image or log row to ingest. `source`: its name in reports.

    An image has `path`, or its file's bytes as `data`; `read_annotations`, called with the upright image's width and
    height, returns the data set's annotations of it. A log's row has `row` and the `log`, and its paths are relative to
    `folder`. An item that could not be read has `error` only, a file that is passed over has `passed_over`: one fixed
    reason, which reports count. `note` is a sentence on the data set as a whole.
    """

    source: str
    path: Path | None = None
    data: bytes | None = None
    read_annotations: AnnotationReader | None = None
    row: Mapping[str, Any] | None = None
    log: PredictionLog | None = None
    folder: Path | None = None
    error: str | None = None
    passed_over: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class ReadOptions:
    """How to read a data set. `model`: its annotations are this model's predictions, not labels. `orientation`: what
    its coordinates mean for images that EXIF turns, as in `lake/formats/turned_images.py`. `log`: what the caller says
    about a prediction log. `typed`: the lake's typed metadata columns.
    """

    model: ModelName = field(default_factory=ModelName)
    orientation: Orientation | None = None
    log: LogOptions = field(default_factory=LogOptions)
    typed: tuple[str, ...] = ()


def printable(path: str | Path) -> str:
    """The path as text that can be stored and printed: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")
