"""The EXIF orientation of an image file: how its stored pixels are turned to be upright."""

from __future__ import annotations

from pathlib import Path

from lake.errors import UnreadableImage
from lake.images import decode

_ORIENTATION = 0x0112


def orientation(image: Path | bytes) -> int:
    """1 to 8 as in EXIF; 1 if the file does not say, or cannot be read. Reads the header only."""
    try:
        data = image if isinstance(image, bytes) else image.read_bytes()
        value: object = decode.open_image(data).getexif().get(_ORIENTATION)
    except (UnreadableImage, OSError, ValueError, SyntaxError):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
