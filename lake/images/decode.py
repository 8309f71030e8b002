"""Decodes an image file to upright 8-bit RGB pixels and a thumbnail, or raises with the reason.

Runs in worker processes (`lake/images/workers.py`), because a hostile file may exhaust memory or crash a decoder. It
uses Pillow only. Every other part of lakeloop gets pixels from `pixels`.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from lake.errors import UnreadableImage
from lake.images import levels as grey_levels
from lake.images.image_header import check_complete
from lake.images.levels import Levels

# Formats whose decoder is trusted with untrusted bytes; no other is tried.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

# The same limit for files on disk and over HTTP: what one way takes, the other takes.
MAX_MEGAPIXELS = 100
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
    """A decoded image: format, width and height in pixels of the upright image, and a thumbnail (JPEG).

    `levels`: what is black and white, and `levels_from` where that is from ("file" or "image", or as the caller said);
    `pixel_type`: uint16, int32, uint32 or float. All three are None for 8 bits.
    """

    format: str
    width: int
    height: int
    thumbnail: bytes
    thumbnail_width: int
    thumbnail_height: int
    pixel_type: str | None = None
    levels: Levels | None = None
    levels_from: str | None = None


@dataclass(frozen=True)
class Declared:
    """The levels of a source, by pixel type, and what is recorded as their origin.

    `overrides`: the pixel types of which they also replace what a file says of itself.
    """

    levels: dict[str, Levels]
    origins: dict[str, str]
    overrides: tuple[str, ...] = ()


def open_image(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
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
    with contextlib.suppress(struct.error, IndexError):  # Pillow read a header that is read as broken here
        check_complete(str(image.format), data)
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage(f"no pixels ({width} x {height})")
    if width * height > max_megapixels * 1e6:
        raise UnreadableImage(f"too large: {width} x {height} is over {max_megapixels:g} megapixels")
    if image.format == "JPEG" and (scans := data.count(b"\xff\xda")) > MOST_SCANS:
        raise UnreadableImage(f"a JPEG with {scans:,} scans; the limit is {MOST_SCANS}")
    return image


def pixels(image: Image.Image, shortest_side: int | None = None, levels: Levels | None = None) -> Image.Image:
    """The image upright, 8-bit RGB, transparency laid on white; GIF and TIFF: the first frame.

    With `shortest_side`, a JPEG may come back smaller, but no side shorter than that: the decoder then skips
    the fine frequencies (DCT scaling), which is several times faster for large photographs. `levels`: black and white
    of an image of more than 8 bits, as recorded in the lake; None: what the file says, else what its own values say.
    Do not use `image` afterwards. Raises UnreadableImage with the reason.
    """
    try:
        if shortest_side is not None and image.format == "JPEG":
            # draft() picks the smallest of 1, 1/2, 1/4, 1/8 that covers the size asked for.
            scale = shortest_side / min(image.size)
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        if (kind := grey_levels.pixel_type(image)) is not None:
            image = _eight_bits(image, levels or levels_of(image, kind)[0])
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # a copy of a large image would take as much memory again
        upright = _rgb(image)
        upright.info = {}  # comments and other metadata would be written into files made from it
        return upright
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage("decoding it takes more memory than a worker may use") from error
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the upright image; `image` is opened and not loaded. Raises UnreadableImage."""
    try:
        # EXIF orientations 5 to 8 swap the axes. For some formats Pillow reads the whole file to find them. It gives
        # the upright size of a TIFF, which it turns itself when it loads it.
        swapped = image.format != "TIFF" and image.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception as error:  # Pillow raises many kinds of errors for broken files
        raise UnreadableImage(_reason(error)) from error
    return (image.height, image.width) if swapped else image.size


def levels_of(image: Image.Image, kind: str, declared: Declared | None = None) -> tuple[Levels, str]:
    """Black and white of an image of this pixel type, and where they are from."""
    stated = declared.levels.get(kind) if declared is not None else None
    if declared is not None and stated is not None and kind in declared.overrides:
        return stated, declared.origins[kind]
    if (own := grey_levels.in_file(image, kind)) is not None:
        return own, "file"
    if declared is not None and stated is not None:
        return stated, declared.origins[kind]
    spread = grey_levels.spread(image)
    return (Levels(0.0, 1.0) if spread is None else grey_levels.found([spread])), "image"


def decode(data: bytes, max_megapixels: float = MAX_MEGAPIXELS, declared: Declared | None = None) -> Decoded:
    """Everything ingest needs from a file. Reads all pixel data, so that a truncated file is detected.

    Raises UnreadableImage with the reason.
    """
    image = open_image(data, max_megapixels)
    format, size = str(image.format), image.size
    kind = grey_levels.pixel_type(image)
    try:
        levels, origin = (None, None) if kind is None else levels_of(image, kind, declared)
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        raise UnreadableImage(_reason(error)) from error
    width, height = upright_size(image)
    upright = pixels(image, _short_side_for_thumbnail(size), levels)
    small, jpeg = _thumbnail(upright)
    return Decoded(format, width, height, jpeg, small.width, small.height, kind, levels, origin)


def decode_many(files: Sequence[bytes], max_megapixels: float, declared: Declared | None) -> list[Decoded | str]:
    """`decode` for a worker: for each file the decoded image, or the reason why it cannot be decoded."""
    results: list[Decoded | str] = []
    for data in files:
        try:
            results.append(decode(data, max_megapixels, declared))
        except UnreadableImage as error:
            results.append(str(error))
    return results


def spread_many(files: Sequence[bytes], max_megapixels: float) -> list[grey_levels.Spread | None]:
    """For a worker: the spread of the values of each file.

    None for 8 bits, for files that say themselves what is black and white, and for what cannot be decoded.
    """
    spreads: list[grey_levels.Spread | None] = []
    for data in files:
        try:
            image = open_image(data, max_megapixels)
            kind = grey_levels.pixel_type(image)
            says = kind is not None and grey_levels.in_file(image, kind) is not None
            spreads.append(None if says else grey_levels.spread(image))
        except Exception:  # ingest says later what is wrong with the file
            spreads.append(None)
    return spreads


def normalise(data: bytes, max_megapixels: float, longest_side: int, levels: Levels | None = None) -> bytes:
    """An uploaded query image as a JPEG of bounded size; `levels` as in `pixels`. Raises UnreadableImage."""
    image = open_image(data, max_megapixels)
    shrink = min(1.0, longest_side / max(image.size))
    upright = pixels(image, max(1, round(min(image.size) * shrink)), levels)
    upright.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    upright.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image.convert("RGB")


def _eight_bits(image: Image.Image, levels: Levels) -> Image.Image:
    """The image with 8 bits a sample, not turned: it keeps its EXIF orientation."""
    low = grey_levels.low_bytes(image)
    if low is not None and levels == Levels(0, 65535):
        return image  # the high bytes, as Pillow reads them
    image.load()
    orientation = image.getexif().get(0x0112)
    if low is not None:
        grey_levels.colours_to_8_bits(image, low, levels)
        return image
    shown = grey_levels.to_8_bits(image, levels)
    image.close()  # a large image and its copy may not fit into memory together with what is made of them
    if orientation is not None:
        shown.getexif()[0x0112] = orientation
    return shown


def _short_side_for_thumbnail(size: tuple[int, int]) -> int:
    return max(1, round(THUMBNAIL_LEAST_SIDE * min(size) / max(size)))


def _thumbnail(upright: Image.Image) -> tuple[Image.Image, bytes]:
    side = THUMBNAIL_SIDE
    while True:
        small = upright
        if max(upright.size) > side:
            size = _fitting(upright.size, side)
            small = upright.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        for quality in (82, 70, 55, 40):
            out = io.BytesIO()
            small.save(out, "JPEG", quality=quality)
            if out.tell() <= THUMBNAIL_BYTES:
                return small, out.getvalue()
        side = side * 3 // 4


def _fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size that Image.thumbnail gives an image, its longer side being `side`; that method needs a copy."""
    aspect = size[0] / size[1]

    def rounded(exact: float, error: Callable[[int], float]) -> int:
        return max(1, min(math.floor(exact), math.ceil(exact), key=error))

    if aspect <= 1:
        return rounded(side * aspect, lambda n: abs(aspect - n / side)), side
    return side, rounded(side / aspect, lambda n: abs(aspect - side / n) if n else 0.0)


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
