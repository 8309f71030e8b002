"""Reads files of a data set by the paths it names, which must not lead out of its folder."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lake.errors import BadInput

MANIFEST = "lakeloop-export.json"
# A JSON document is read whole and takes about eight times its size in memory.
MOST_JSON_BYTES = 1 << 30
MOST_TEXT_BYTES = 64 << 20


def inside(root: Path, written: Any) -> Path:
    """The file for a relative path in a data set in `root`. Raises BadInput if it leads out of `root`."""
    if not isinstance(written, str) or not written or "\0" in written:
        raise BadInput(f"{written!r} is not a path")
    if "://" in written:
        raise BadInput(f"{written!r} is a URL; lakeloop fetches nothing: download it and give the path")
    path = Path(written.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise BadInput(f"{written!r} leads out of the data set's folder")
    file = root / path
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(root)):
        raise BadInput(f"{written!r} is a link that leads out of the data set's folder")
    return file


class NamedFiles:
    """Finds the files that one document names. `root`: the folder of its data set; `written`: all paths it names.

    Tools write paths of the machine they ran on, `..\\media\\x.png`. Such a path stands for the file of that name in
    `root`, if there is one only and the document names no other file so.
    """

    def __init__(self, root: Path, written: Iterable[Any]) -> None:
        self._root = root
        self._written = Counter(_base_name(name) for name in written if isinstance(name, str))
        self._files: dict[str, list[Path]] | None = None

    def find(self, folder: Path, written: Any) -> tuple[Path, bool]:
        """The file for a path relative to `folder`, and whether it was found by its name only. Raises BadInput."""
        try:
            return inside(folder, written), False
        except BadInput as error:
            name = _base_name(written) if isinstance(written, str) else ""
            if not name or "\0" in name or "://" in written:
                raise
            files = self._named(name)
            if len(files) != 1 or self._written[name] > 1:
                raise BadInput(f"{error}, and {len(files)} files in {self._root} are named {name!r}") from error
            return inside(self._root, str(files[0].relative_to(self._root))), True

    def _named(self, name: str) -> list[Path]:
        if self._files is None:
            self._files = {}
            for folder, folders, files in os.walk(self._root):
                folders[:] = [f for f in folders if not f.startswith(".")]
                for file in files:
                    self._files.setdefault(file, []).append(Path(folder, file))
        return self._files.get(name, [])


def _base_name(written: str) -> str:
    return written.replace("\\", "/").rpartition("/")[2]


def text(path: Path, most: int = MOST_TEXT_BYTES) -> str:
    """The text of a file of at most `most` bytes. Raises BadInput if it is larger or unreadable."""
    try:
        if not path.is_file():
            raise BadInput(f"{path} is not a file")
        size = path.stat().st_size
        if size > most:
            raise BadInput(f"{path} has {size >> 20:,} MiB; the limit is {most >> 20:,} MiB")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error


def document(path: Path) -> Any:
    """The value in a JSON file. Raises BadInput if it is not JSON or larger than 1 GiB."""
    try:
        return json.loads(text(path, MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is broken JSON: {error}") from error


def manifest(path: Path) -> dict[str, Any]:
    """The manifest of an export in this folder; empty if there is none."""
    file = path / MANIFEST
    if not path.is_dir() or not file.is_file():
        return {}
    content = document(file)
    return content if isinstance(content, dict) else {}
