"""Paths that a data set's files name: they never leave the data set's folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lake.errors import BadInput

MANIFEST = "lakeloop-export.json"
# A JSON document is read whole and takes about eight times its size in memory.
MOST_JSON_BYTES = 1 << 30
MOST_TEXT_BYTES = 64 << 20


def inside(root: Path, written: Any) -> Path:
    """The file that a data set in `root` means by a relative path. Raises BadInput when it leads out of `root`."""
    if not isinstance(written, str) or not written or "\0" in written:
        raise BadInput(f"{written!r} is no path")
    if "://" in written:
        raise BadInput(f"{written!r} is a URL; lakeloop fetches nothing: download it and give the path")
    path = Path(written.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise BadInput(f"{written!r} leads out of the data set's folder")
    found = root / path
    if not Path(os.path.realpath(found)).is_relative_to(os.path.realpath(root)):
        raise BadInput(f"{written!r} is a link that leads out of the data set's folder")
    return found


def text(path: Path, most: int = MOST_TEXT_BYTES) -> str:
    """A small text file. Raises BadInput when it is too large or unreadable."""
    try:
        if not path.is_file():
            raise BadInput(f"{path} is no file")
        size = path.stat().st_size
        if size > most:
            raise BadInput(f"{path} has {size >> 20:,} MiB; {most >> 20:,} MiB are read")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error


def document(path: Path) -> Any:
    """A JSON file, whole. Raises BadInput when it is broken or larger than 1 GiB."""
    try:
        return json.loads(text(path, MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is broken JSON: {error}") from error


def manifest(path: Path) -> dict[str, Any]:
    """What an export in a folder says of itself; empty when there is none."""
    file = path / MANIFEST
    if not path.is_dir() or not file.is_file():
        return {}
    found = document(file)
    return found if isinstance(found, dict) else {}
