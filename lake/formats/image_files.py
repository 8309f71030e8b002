"""The image files below a folder, told by their names or first bytes, and what else lies there, with its reason."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Container, Iterator
from pathlib import Path

from lake.formats.item import FOREIGN_SUFFIXES, IMAGE_SUFFIXES, Item, printable

HIDDEN = "hidden"
# The files in which an export of lakeloop describes itself.
EXPORT = "lakeloop-export."
_HEAD_BYTES = 32
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FOREIGN = (b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"8BPS")
_FOREIGN_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def below(root: Path, others: Container[str] = ()) -> Iterator[Item]:
    """An item for each file below `root`, in the order of their names: images with `path`, images of formats that
    lakeloop cannot decode with `error`, and the others with `passed_over`.

    Links to folders are followed, each folder once. Hidden folders and lakes are passed over as one. `others`:
    suffixes, such as ".xml", of files that the reader reads by itself: there are no items for them.
    """
    seen: set[tuple[int, int]] = set()
    unreadable: list[OSError] = []
    for folder, subfolders, files in os.walk(root, onerror=unreadable.append, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        reasons = {name: _passed_over(Path(folder, name)) for name in sorted(subfolders)}
        for name, reason in reasons.items():
            if reason is not None:
                yield Item(printable(Path(folder, name)), passed_over=reason)
        subfolders[:] = [name for name, reason in reasons.items() if reason is None]
        for name in sorted(files):
            if name.startswith(EXPORT):
                continue
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in others:
                yield of_file(Path(folder, name))
    for error in unreadable:
        yield Item(printable(error.filename), error=error.strerror or str(error))


def _passed_over(folder: Path) -> str | None:
    """Why a folder is not looked into; None if it is."""
    if folder.name.startswith("."):
        return HIDDEN
    if (folder / "samples.lance").is_dir():
        return "a lake"
    return "a Lance table" if folder.suffix == ".lance" and (folder / "_versions").is_dir() else None


def of_file(path: Path) -> Item:
    """The item for one file, as in `below`."""
    name = printable(path)
    if path.name.startswith("."):
        return Item(name, passed_over=HIDDEN)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return Item(name, path=path)
    if suffix in FOREIGN_SUFFIXES:
        return Item(name, error=f"{suffix} images are not supported; convert them to JPEG or PNG")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe may never end
            return Item(name, passed_over="not a regular file")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return Item(name, error=error.strerror or str(error))
    if begins_as_image(head):
        return Item(name, path=path)
    if head.startswith(_FOREIGN) or (head[4:8] == b"ftyp" and head[8:12] in _FOREIGN_BRANDS):
        return Item(name, error="an image of a format that is not supported; convert it to JPEG or PNG")
    return Item(name, passed_over=not_an_image(suffix))


def begins_as_image(head: bytes) -> bool:
    """Whether a file that begins so is of a format that lakeloop decodes. `head`: its first 32 bytes."""
    if head.startswith(b"BM"):  # so do texts: a bitmap has the size of its second header, too
        return int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    return head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def not_an_image(suffix: str) -> str:
    """The reason for which a file with this suffix is passed over; odd suffixes share one, since reports count them."""
    if not suffix:
        return "not an image (without an extension)"
    return f"not an image ({suffix if re.fullmatch(r'[.][a-z][a-z0-9]{0,5}', suffix) else 'of another extension'})"
