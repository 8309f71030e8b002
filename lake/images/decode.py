"""Decodes an image file to upright 8-bit RGB pixels and a thumbnail, or raises with the reason.

Runs in worker processes (`lake/images/workers.py`), because a hostile file may exhaust memory or crash a decoder. It
uses Pillow only. Every other part of lakeloop gets pixels from `pixels`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import cast

from PIL import Image, ImageOps, UnidentifiedImageError

from lake.errors import UnreadableImage

# Formats whose decoder is trusted with untrusted bytes; no other is tried.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

MAX_MEGAPIXELS_BULK = 100
MAX_MEGAPIXELS_HTTP = 40
# Each scan of a progressive JPEG costs a pass over the whole image, however few bytes it has. Cameras write ten.
MOST_SCANS = 100
THUMBNAIL_SIDE = 256
# A photograph of 500 pixels decodes to 250 by DCT scaling alone: half the work of decoding it whole and resizing.
THUMBNAIL_LEAST_SIDE = 200
THUMBNAIL_BYTES = 16 << 10

# lakeloop checks its own limit from the header, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Decoded:
    """A decoded image: format, width and height in pixels of the upright image, and a thumbnail (JPEG)."""

    format: str
    width: int
    height: int
    thumbnail: bytes
    thumbnail_width: int
    thumbnail_height: int


def open_image(data: bytes, max_megapixels: float = MAX_MEGAPIXELS_BULK) -> Image.Image:
    """Reads the header only. Raises UnreadableImage with the reason."""
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's header parsers raise many kinds for broken files
        raise UnreadableImage(f"broken header: {_reason(error)}") from error
    if image.format == "MPO":  # a phone's JPEG with a second image behind the first
        image.format = "JPEG"
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(f"no pixels ({width} x {height})")
    if width * height > max_megapixels * 1e6:
        raise UnreadableImage(f"too large: {width} x {height} is over {max_megapixels:g} megapixels")
    if image.format == "JPEG" and (scans := data.count(b"\xff\xda")) > MOST_SCANS:
        raise UnreadableImage(f"a JPEG with {scans:,} scans; the limit is {MOST_SCANS}")
    return image


def pixels(image: Image.Image, shortest_side: int | None = None) -> Image.Image:
    """The image upright, 8-bit RGB, transparency laid on white; GIF and TIFF: the first frame.

    With `shortest_side`, a JPEG may come back smaller, but no side shorter than that: the decoder then skips
    the fine frequencies (DCT scaling), which is several times faster for large photographs.
    Raises UnreadableImage with the reason.
    """
    try:
        if shortest_side is not None and image.format == "JPEG":
            # draft() picks the smallest of 1, 1/2, 1/4, 1/8 that covers the size asked for.
            scale = shortest_side / min(image.size)
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        image.load()
        upright = _rgb(ImageOps.exif_transpose(image))
        upright.info = {}  # comments and other metadata would be written into files made from it
        return upright
    except MemoryError as error:
        raise UnreadableImage("decoding it takes more memory than a worker may use") from error
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def decode(data: bytes, max_megapixels: float = MAX_MEGAPIXELS_BULK) -> Decoded:
    """Everything ingest needs from a file. Reads all pixel data, so that a truncated file is detected.

    Raises UnreadableImage with the reason.
    """
    image = open_image(data, max_megapixels)
    format, size = str(image.format), image.size
    upright = pixels(image, shortest_side=_short_side_for_thumbnail(size))
    width, height = reversed(size) if _lies_on_its_side(image) else size
    small, jpeg = _thumbnail(upright)
    return Decoded(format, width, height, jpeg, small.width, small.height)


def decode_many(files: list[bytes], max_megapixels: float) -> list[Decoded | str]:
    """`decode` for a worker: for each file the decoded image, or the reason why it cannot be decoded."""
    results: list[Decoded | str] = []
    for data in files:
        try:
            results.append(decode(data, max_megapixels))
        except UnreadableImage as error:
            results.append(str(error))
    return results


def normalise(data: bytes, max_megapixels: float, longest_side: int) -> bytes:
    """An uploaded query image as a JPEG of bounded size. Raises UnreadableImage."""
    image = open_image(data, max_megapixels)
    shrink = min(1.0, longest_side / max(image.size))
    upright = pixels(image, shortest_side=max(1, round(min(image.size) * shrink)))
    upright.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    upright.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def _lies_on_its_side(image: Image.Image) -> bool:
    # EXIF orientations 5 to 8 swap the axes.
    return image.getexif().get(0x0112) in (5, 6, 7, 8)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        return image.convert("I").point([v // 257 for v in range(65536)], "L").convert("RGB")
    if image.mode in ("I", "F"):
        return _stretch(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image.convert("RGB")


def _stretch(image: Image.Image) -> Image.Image:
    """Scales 32-bit and float pixels, which have no agreed white: 16-bit values as such, others by their range."""
    low, high = cast(tuple[float, float], image.getextrema())
    if image.mode == "I" and low >= 0 and high <= 65535:
        low, high = 0, 65535
    scale = 255.0 / (high - low) if high > low else 0.0
    return image.convert("F").point(lambda v: v * scale + (-low * scale)).convert("L")


def _short_side_for_thumbnail(size: tuple[int, int]) -> int:
    return max(1, round(THUMBNAIL_LEAST_SIDE * min(size) / max(size)))


def _thumbnail(upright: Image.Image) -> tuple[Image.Image, bytes]:
    side = THUMBNAIL_SIDE
    while True:
        small = upright
        if max(upright.size) > side:
            small = upright.copy()
            small.thumbnail((side, side), Image.Resampling.BICUBIC)
        for quality in (82, 70, 55, 40):
            out = io.BytesIO()
            small.save(out, "JPEG", quality=quality)
            if out.tell() <= THUMBNAIL_BYTES:
                return small, out.getvalue()
        side = side * 3 // 4


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
