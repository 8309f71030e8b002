"""Reads format, width and height from the first bytes of an image file, without decoding pixels.

For the hot path of the HTTP API, which checks untrusted bytes inside the server process: Pillow would pass some formats
(WebP) to a decoder just to open them. A file that passes may still be broken when it is decoded.
Formats: those of `lake/images/decode.py`. Sources: ITU T.81 (JPEG), RFC 2083 (PNG), RFC 9649 (WebP), GIF89a, TIFF 6.0,
BigTIFF (libtiff), Windows BITMAPINFOHEADER.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from lake.errors import UnreadableImage

# Markers or entries read before the size is known: bounds the time. Photographs have a few dozen.
MOST_ENTRIES = 4_096
# The bytes at the end of a file in which its end marker usually is.
_TAIL = 1_024
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


class ImageHeader(NamedTuple):
    """Width and height in pixels, before any EXIF orientation is applied."""

    format: str
    width: int
    height: int


def read_header(data: bytes, max_megapixels: float) -> ImageHeader:
    """The header of an image file. Raises UnreadableImage with the reason."""
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        header = _header(data)
    except (struct.error, IndexError, OverflowError) as error:  # a place beyond the end, or beyond 64 bits
        raise UnreadableImage("broken header: it ends too early") from error
    if header.width < 1 or header.height < 1:
        raise UnreadableImage(f"no pixels ({header.width} x {header.height})")
    if header.width * header.height > max_megapixels * 1e6:
        raise UnreadableImage(f"too large: {header.width} x {header.height} is over {max_megapixels:g} megapixels")
    check_complete(header.format, data)
    return header


def pixel_type(data: bytes) -> str | None:
    """uint16, int32, uint32 or float of a PNG or TIFF that seems to have more than 8 bits a sample; None for others."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "uint16" if data[24:25] == b"\x10" else None
    if data[:4] not in _TIFF_HEADS:
        return None
    try:
        tags = _tiff_tags(data)
    except (struct.error, IndexError, OverflowError, UnreadableImage):
        return None
    bits, kind = tags.get(258, 1), tags.get(339, 1)
    if bits <= 8 or tags.get(277, 1) > 4:
        return None
    if kind == 3:
        return "float"
    return "uint16" if bits <= 16 and kind == 1 else "uint32" if kind == 1 else "int32"


def check_complete(format: str, data: bytes) -> None:
    """Raises UnreadableImage if the end of a JPEG, PNG or WebP is missing, as far as that shows without decoding.

    Half a picture, its rest grey, would be a false example; a broken transfer makes such files. The formats' other
    decoders find a missing end, too, but only when they decode.
    """
    if format == "JPEG":
        whole = data.rfind(b"\xff\xd9", max(0, len(data) - _TAIL)) >= 0 or _has_end_after_scan(data)
    elif format == "PNG":
        whole = data.rfind(b"IEND", max(0, len(data) - _TAIL)) >= 0 or _has_whole_chunks(data)
    else:
        whole = format != "WEBP" or len(data) >= int.from_bytes(data[4:8], "little") + 8
    if not whole:
        raise UnreadableImage("the image file is truncated: its end is missing")


def _has_end_after_scan(data: bytes) -> bool:
    """Whether an end marker follows the picture's first scan; a small picture in the EXIF data has one of its own."""
    scan = data.find(b"\xff\xda", _jpeg_frame(data))
    return scan >= 0 and data.find(b"\xff\xd9", scan) >= 0


def _has_whole_chunks(data: bytes) -> bool:
    """Whether the content of the last of the PNG's chunks is whole; it may lack its checksum and all that follows."""
    at = 8
    for _ in range(MOST_ENTRIES):
        if len(data) < at + 8:
            return True
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IDAT" and at + 8 + length > len(data):
            return False
        at += 12 + length
    return True


def upright_sizes(data: bytes) -> list[tuple[int, int]]:
    """The sizes, as (width, height), that the upright image may have: two where an orientation may turn it.

    The orientation itself is not read. Raises UnreadableImage.
    """
    header = read_header(data, float("inf"))
    size = (header.width, header.height)
    turned = header.format == "TIFF" or any(mark in data for mark in (b"Exif\0\0", b"EXIF", b"eXIf"))
    return [size, size[::-1]] if turned else [size]


def _header(data: bytes) -> ImageHeader:
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        return ImageHeader("PNG", *struct.unpack_from(">II", data, 16))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return ImageHeader("GIF", *struct.unpack_from("<HH", data, 6))
    if data[:4] in _TIFF_HEADS:
        return _tiff(data)
    if data[:2] == b"BM":
        return _bmp(data)
    raise UnreadableImage("not an image of a known format (JPEG, PNG, WEBP, BMP, TIFF, GIF)")


def _jpeg(data: bytes) -> ImageHeader:
    height, width = struct.unpack_from(">HH", data, _jpeg_frame(data) + 5)
    return ImageHeader("JPEG", width, height)


def _jpeg_frame(data: bytes) -> int:
    """Walks the segments to the start of frame, which holds the size. Every step moves on by two bytes or more."""
    at = 2
    for _ in range(MOST_ENTRIES):
        if data[at] != 0xFF:
            raise UnreadableImage("broken header: a JPEG marker is missing")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        # SOF0 to SOF15, without DHT, JPG and DAC, which lie among them.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return at
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without a length
            at += 2
            continue
        if marker in (0xD9, 0xDA):
            raise UnreadableImage("broken header: a JPEG without a frame")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            raise UnreadableImage("broken header: a JPEG segment of no length")
        at += 2 + length
    raise UnreadableImage(f"broken header: a JPEG with more than {MOST_ENTRIES:,} markers before its frame")


def _webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        if len(data) < 30:
            raise IndexError
        return ImageHeader("WEBP", width, height)
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WEBP", width & 0x3FFF, height & 0x3FFF)
    raise UnreadableImage("broken header: a WebP of no known kind")


def _bmp(data: bytes) -> ImageHeader:
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        return ImageHeader("BMP", *struct.unpack_from("<HH", data, 18))
    if not 40 <= size <= 124:
        raise UnreadableImage("broken header: a BMP of no known kind")
    width, height = struct.unpack_from("<ii", data, 18)
    return ImageHeader("BMP", width, abs(height))  # a negative height: rows from the top


def _tiff(data: bytes) -> ImageHeader:
    sizes = _tiff_tags(data)
    if not {256, 257} <= sizes.keys():
        raise UnreadableImage("broken header: a TIFF without its width and height")
    return ImageHeader("TIFF", sizes[256], sizes[257])


def _tiff_tags(data: bytes) -> dict[int, int]:
    """The first number of those tags of the first directory that say what the pixels are."""
    order = "<" if data[:2] == b"II" else ">"
    if 43 in data[2:4]:  # BigTIFF
        count, step, value_at, offset = "Q", 20, 12, "Q"
        (start,) = struct.unpack_from(order + "Q", data, 8)
    else:
        count, step, value_at, offset = "H", 12, 8, "I"
        (start,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + count, data, start)
    if entries > MOST_ENTRIES:
        raise UnreadableImage(f"broken header: a TIFF directory of {entries:,} entries")
    tags: dict[int, int] = {}
    first = start + struct.calcsize(order + count)
    for at in range(first, first + step * entries, step):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        if tag in (256, 257, 258, 277, 339) and kind in _TIFF_NUMBERS:
            number = order + _TIFF_NUMBERS[kind]
            (values,) = struct.unpack_from(order + offset, data, at + 4)
            if values * struct.calcsize(number) > step - value_at:  # they lie elsewhere in the file
                (value_at_other,) = struct.unpack_from(order + offset, data, at + value_at)
                if tag in (256, 257):
                    value_at_other = at + value_at  # one number each: a broken count
                (tags[tag],) = struct.unpack_from(number, data, value_at_other)
            else:
                (tags[tag],) = struct.unpack_from(number, data, at + value_at)
    return tags
