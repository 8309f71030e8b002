"""Exports that lie with the lake, for the app to hand out: `exports/NAME@VERSION.FORMAT`, made by `lake.export`.

They are copies: no backup has them, and those with an image of a kind that is erased go with it. On object storage
there are none.
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
    """A finished export: `name` to ask for it by, images in it, and the sum of its files' bytes."""

    name: str
    images: int
    bytes: int


def place(lake: Lake, made: Slice, format: str) -> Path:
    """Where an export of the slice in the format lies, or will. Raises BadInput for a lake on object storage."""
    if lake.folder is None:
        raise BadInput("a lake on object storage keeps no exports; run lakeloop slice export where they are wanted")
    return lake.folder.absolute() / FOLDER / f"{made.id}.{format}"


def of(lake: Lake, made: Slice) -> dict[str, KeptExport]:
    """The slice's finished exports, by format."""
    if lake.folder is None:
        return {}
    found = {}
    for path in sorted((lake.folder / FOLDER).glob(f"{made.id}.*")):
        said = _manifest(path)
        if said is not None:
            size = sum(one.stat().st_size for one in _files(path))
            found[path.name[len(made.id) + 1 :]] = KeptExport(path.name, int(said["images"]), size)
    return found


def archive(lake: Lake, name: str) -> Iterator[bytes] | None:
    """The export as a ZIP file, made while it is read; None when there is none of that name, or it is not finished."""
    if lake.folder is None or name in ("", ".", "..") or "/" in name:
        return None
    path = lake.folder / FOLDER / name
    return None if _manifest(path) is None else _zipped(path)


def forget(lake: Lake, image_ids: Sequence[str]) -> int:
    """Deletes every export of a slice that has or had one of the images, and those of slices that are no more.

    Returns how many went.
    """
    if lake.folder is None or not (lake.folder / FOLDER).is_dir():
        return 0
    gone, erased = 0, set(image_ids)
    for path in sorted((lake.folder / FOLDER).iterdir()):
        members = lake.look_up("slice_members", ["image_id"], "id", [_slice_of(path)])["image_id"].to_pylist()
        if not members or erased & set(members):
            shutil.rmtree(path)
            gone += 1
    return gone


def _slice_of(path: Path) -> str:
    name, _, rest = path.name.partition("@")
    return f"{name}@{rest.partition('.')[0]}"


def _manifest(path: Path) -> dict[str, Any] | None:
    if (path / STATE).exists():
        return None
    try:
        said: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return said


def _files(path: Path) -> list[Path]:
    return sorted(one for one in path.rglob("*") if one.is_file() and not one.is_symlink())


def _zipped(path: Path) -> Iterator[bytes]:
    written = _Pieces()
    # Images do not get smaller by it.
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for one in _files(path):
            with one.open("rb") as source, archive.open(str(one.relative_to(path)), "w", force_zip64=True) as target:
                while part := source.read(_CHUNK):
                    target.write(part)
                    yield from written.taken()
    yield from written.taken()


class _Pieces(io.RawIOBase):
    """What a ZIP file is written to when nobody waits for the whole: it cannot be gone back in."""

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
