"""Exports in the lake's folder, which the app offers as downloads: `exports/NAME@VERSION.FORMAT`.

They are copies: backups leave them out, and erasing an image deletes the exports that have it. A lake on object storage
has none.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.formats.paths import MANIFEST
from lake.slices.export import STATE

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import Lake

FOLDER = "exports"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class KeptExport:
    """A finished export: its name, number of images, and the sum of its files' bytes."""

    name: str
    images: int
    bytes: int


def folder_of(lake: Lake, slice_: Slice, format: str) -> Path:
    """The folder of the slice's export in this format. Raises BadInput for a lake on object storage."""
    if lake.folder is None:
        raise BadInput("a lake on object storage has no exports; run: lakeloop slice export")
    return lake.folder.absolute() / FOLDER / f"{slice_.id}.{format}"


def of_slice(lake: Lake, slice_: Slice) -> dict[str, KeptExport]:
    """The slice's finished exports, by format."""
    if lake.folder is None:
        return {}
    exports = {}
    for path in sorted((lake.folder / FOLDER).glob(f"{slice_.id}.*")):
        manifest = _manifest(path)
        if manifest is not None:
            size = sum(file.stat().st_size for file in _files(path))
            exports[path.name[len(slice_.id) + 1 :]] = KeptExport(path.name, int(manifest["images"]), size)
    return exports


def archive(lake: Lake, name: str) -> Iterator[bytes] | None:
    """The export as a ZIP file, created while it is read; None if no finished export has this name."""
    if lake.folder is None or name in ("", ".", "..") or "/" in name:
        return None
    path = lake.folder / FOLDER / name
    return None if _manifest(path) is None else _zipped(path)


def forget(lake: Lake, image_ids: Sequence[str]) -> int:
    """Deletes the exports of slices that have or had one of the images, and of deleted slices. Returns how many."""
    if lake.folder is None or not (lake.folder / FOLDER).is_dir():
        return 0
    count, erased = 0, set(image_ids)
    for path in sorted((lake.folder / FOLDER).iterdir()):
        members = lake.look_up("slice_members", ["image_id"], "id", [_slice_of(path)])["image_id"].to_pylist()
        if not members or erased & set(members):
            shutil.rmtree(path)
            count += 1
    return count


def _slice_of(path: Path) -> str:
    name, _, rest = path.name.partition("@")
    return f"{name}@{rest.partition('.')[0]}"


def _manifest(path: Path) -> dict[str, Any] | None:
    if (path / STATE).exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _zipped(path: Path) -> Iterator[bytes]:
    stream = _Pieces()
    # Images do not compress.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for file in _files(path):
            with (
                file.open("rb") as source,
                archive.open(str(file.relative_to(path)), "w", force_zip64=True) as target,
            ):
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    yield from stream.taken()
    yield from stream.taken()


class _Pieces(io.RawIOBase):
    """A stream for a ZIP file that is sent while it is written; it cannot seek."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def taken(self) -> Iterator[bytes]:
        pieces, self._pieces = self._pieces, []
        yield from pieces
