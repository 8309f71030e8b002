"""One image or log row on its way into the lake, as every reader yields it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lake.formats.annotation import Saying

MAX_FILE_BYTES = 512 << 20
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
# Images we cannot decode: named in the report, not passed over as if they were text files.
FOREIGN_SUFFIXES = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".eps", ".psd", ".dng", ".cr2", ".nef", ".arw"}


@dataclass(frozen=True)
class Item:
    """One thing to ingest. `source` is what a report calls it.

    An image has `path`, or its file's bytes as `data`; `said`, called with the upright image's width and height, gives
    what the data set says of it. A log's row has `row`, and its paths are relative to `folder`. An item that failed
    while being read has `error` alone.
    """

    source: str
    path: Path | None = None
    data: bytes | None = None
    said: Saying | None = None
    row: Mapping[str, Any] | None = None
    folder: Path | None = None
    error: str | None = None


def printable(path: str | Path) -> str:
    """The path as text that can be stored and printed: of a name that is no UTF-8, what can be read."""
    return os.fsencode(path).decode("utf-8", "replace")
