"""Image files for the tests of hostile input: small valid ones of every kind, and bombs. All made here, from seeds.

`valid` holds one file for each way a format can be written that a decoder treats differently. `bombs` are files that a
stranger would send to exhaust time or memory, to have something run, or to be taken for something else.
"""

from __future__ import annotations

import functools
import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageCms

from tests import pictures
from tests.pictures import encoded

MARKUP = b"<html><body><script>alert(document.domain)</script><img src=x onerror=alert(1)></body></html>"


Entry = tuple[int, int, int, int]  # tag, type, count, value


def chunk(name: bytes, body: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *more: bytes, interlace: int = 0) -> bytes:
    """A PNG of these filtered rows, with more chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlace))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")])


def tiff(entries: Sequence[Entry], after: bytes = b"", order: str = "<", following: int = 0) -> bytes:
    """A TIFF of one directory: (tag, type, count, value) each.

    `after` lies behind it, at 8 + 2 + 12 * len(entries) + 4; `following` is where the next directory is said to be.
    """
    mark = b"II" if order == "<" else b"MM"
    out = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value)
        out += struct.pack(order + "HHI", tag, kind, count) + packed
    return out + struct.pack(order + "I", following) + after


def segment(marker: int, body: bytes) -> bytes:
    """One JPEG segment with its length."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _interlaced() -> bytes:
    """Adam7 by hand: seven small images, one after another."""
    pixels = np.asarray(pictures.scene(11, 21, 17))
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx])
    return png(21, 17, 8, 2, rows, interlace=1)


def _tiled(order: str) -> bytes:
    """Four tiles of 16 x 16 grey pixels, of which 20 x 24 count."""
    tiles = np.arange(4 * 256, dtype=np.uint8).tobytes()
    entries = 10
    start = 8 + 2 + 12 * entries + 4
    offsets = struct.pack(order + "4I", *(start + 32 + 256 * i for i in range(4)))
    counts = struct.pack(order + "4I", *[256] * 4)
    fields = [
        (256, 3, 1, 20), (257, 3, 1, 24), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 3, 1, 16), (323, 3, 1, 16), (324, 4, 4, start), (325, 4, 4, start + 16),
    ]  # fmt: skip
    return tiff(fields, offsets + counts + tiles, order)


def _apart(seed: int, count: int = 3) -> list[Image.Image]:
    return [pictures.scene(seed + i, 26, 18) for i in range(1, count)]


@functools.cache
def valid() -> dict[str, bytes]:
    """name -> file, every one of which Pillow decodes whole."""
    scene = pictures.scene(1, 26, 18)
    grey, deep = scene.convert("L"), Image.fromarray(np.arange(16 * 12, dtype=np.uint16).reshape(12, 16) * 300)
    clear = scene.convert("RGBA")
    clear.putalpha(grey)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    sideways[0x010E] = "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    images = {
        "jpeg": encoded(scene, "JPEG", quality=70),
        "jpeg-grey": encoded(grey, "JPEG", quality=70),
        "jpeg-progressive": encoded(scene, "JPEG", quality=70, progressive=True),
        "jpeg-restarts": encoded(scene, "JPEG", quality=70, restart_marker_blocks=1),
        "jpeg-cmyk": encoded(scene.convert("CMYK"), "JPEG", quality=70),
        "jpeg-sideways": encoded(scene, "JPEG", quality=70, exif=sideways, icc_profile=profile, comment=b"a comment"),
        "jpeg-mpo": encoded(scene, "MPO", save_all=True, append_images=_apart(2), quality=60),
        "png": encoded(scene, "PNG"),
        "png-interlaced": _interlaced(),
        "png-16": encoded(deep, "PNG"),
        "png-16-rgb": png(3, 2, 16, 2, (b"\0" + struct.pack(">9H", *range(0, 63_000, 7_000))) * 2),
        "png-palette": encoded(scene.quantize(7), "PNG", transparency=2),
        "png-alpha": encoded(clear, "PNG"),
        "png-1": encoded(scene.convert("1"), "PNG"),
        "png-animated": encoded(scene, "PNG", save_all=True, append_images=_apart(3)),
        "webp": encoded(scene, "WEBP", quality=60),
        "webp-lossless": encoded(scene, "WEBP", lossless=True),
        "webp-alpha": encoded(clear, "WEBP", quality=60, exif=sideways),
        "webp-animated": encoded(scene, "WEBP", save_all=True, append_images=_apart(4)),
        "gif": encoded(scene.quantize(16), "GIF"),
        "gif-animated": encoded(scene.quantize(16), "GIF", save_all=True, append_images=_apart(5), loop=0),
        "bmp": encoded(scene, "BMP"),
        "bmp-palette": encoded(scene.quantize(16), "BMP"),
        "bmp-downwards": b"BM" + struct.pack("<IHHI", 54 + 24, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2, -3, 1, 24, 0, 24, 0, 0, 0, 0) + bytes(range(24)),
        "bmp-core": b"BM" + struct.pack("<IHHI", 26 + 16, 0, 0, 26) + struct.pack("<IHHHH", 12, 2, 2, 1, 24)
        + bytes(range(16)),
        "tiff": encoded(scene, "TIFF"),
        "tiff-lzw": encoded(scene, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encoded(scene, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encoded(scene, "TIFF", compression="jpeg"),
        "tiff-g4": encoded(scene.convert("1"), "TIFF", compression="group4"),
        "tiff-16": encoded(deep, "TIFF"),
        "tiff-float": encoded(grey.convert("F"), "TIFF"),
        "tiff-pages": encoded(scene, "TIFF", save_all=True, append_images=_apart(6)),
        "tiff-sideways": encoded(scene, "TIFF", exif=sideways),
        "tiff-tiled": _tiled("<"),
        "tiff-tiled-mm": _tiled(">"),
        "tiff-big": encoded(scene, "TIFF", big_tiff=True),
    }  # fmt: skip
    return images


def cuts(step: int = 1) -> Iterator[tuple[str, bytes]]:
    """Every valid file, cut off at every `step`-th byte: (name, what is left)."""
    for offset, (name, data) in enumerate(valid().items()):
        for length in range(offset % step, len(data), step):
            yield f"{name} cut at {length}", data[:length]


def flips(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Valid files with one to four bytes replaced, as often in the head as anywhere."""
    rng = np.random.default_rng(seed)
    names = sorted(valid())
    for number in range(count):
        name = names[number % len(names)]
        broken = bytearray(valid()[name])
        reach = len(broken) if number // len(names) % 2 else min(len(broken), 96)
        for offset in rng.integers(0, reach, rng.integers(1, 5)):
            broken[offset] = rng.integers(256)
        yield f"{name} flip {seed}/{number}", bytes(broken)


def _gif(width: int, height: int, frames: Sequence[tuple[int, int]]) -> bytes:
    """A GIF of one-colour frames; each header gives that size, but there is data for one pixel only."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    body = b"".join(b"," + struct.pack("<HHHHB", 0, 0, w, h, 0) + b"\x02\x02\x44\x01\x00" for w, h in frames)
    return head + body + b";"


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose `count` scans each go over the whole picture again, in a few bytes."""
    data = encoded(Image.new("L", (side, side), 77), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    return data[:-2] + scan * count + b"\xff\xd9"


def _webp_canvas(width: int, height: int, inner: bytes) -> bytes:
    """A WebP that says it is of that size, around the frame of another."""
    body = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0"
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + inner[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@functools.cache
def bombs() -> dict[str, bytes]:
    """name -> file. Some are valid images in disguise, some are no images, some would cost gigabytes or minutes."""
    jpeg, inner = valid()["jpeg"], valid()["webp"]
    empty = zlib.compress(bytes(64 << 20), 9)
    zeros = zlib.compress(bytes(6_300 * 6_300), 9)
    strip = [(258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    loop = [(256, 3, 1, 9), (257, 3, 1, 9), *strip, (273, 4, 1, 0), (278, 3, 1, 9), (279, 4, 1, 81)]
    exif_loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    flat = encoded(Image.new("L", (6_300, 6_300), 99), "PNG")
    return {
        # What costs memory.
        "png of 50,000 x 50,000": png(50_000, 50_000, 8, 2, b""),
        "png of 2^31 x 2^31": png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        "png of 40 megapixels": flat,
        "png of 40 megapixels with alpha": png(6_300, 6_300, 8, 6, bytes(6_300 * (1 + 4 * 6_300))),
        "png of 40 megapixels, empty": png(6_300, 6_300, 16, 6, b""),
        "png with 64 MiB of zTXt": png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"Comment\0\0" + empty)),
        "png with 64 MiB of iCCP": png(1, 1, 8, 0, b"\0\0", chunk(b"iCCP", b"profile\0\0" + empty)),
        "png with 100 x 64 MiB of iTXt": png(
            1, 1, 8, 0, b"\0\0", *[chunk(b"iTXt", b"Comment\0\1\0\0\0" + empty)] * 100
        ),
        "png with 50,000 chunks": png(1, 1, 8, 0, b"\0\0", *[chunk(b"tEXt", b"a\0b")] * 50_000),
        "png with a chunk of 2 GiB": png(1, 1, 8, 0, b"\0\0", struct.pack(">I", 2**31 - 1) + b"tEXt"),
        "apng of 10^9 frames": png(1, 1, 8, 0, b"\0\0", chunk(b"acTL", struct.pack(">II", 10**9, 0))),
        "gif of 65,535 x 65,535": _gif(65_535, 65_535, [(1, 1)]),
        "gif with a frame beyond its canvas": _gif(1, 1, [(65_535, 65_535)]),
        "gif with 100,000 frames": _gif(1, 1, [(1, 1)] * 100_000),
        "webp of 16,777,216 x 16,777,216": _webp_canvas(1 << 24, 1 << 24, inner),
        "webp with a canvas beyond its frame": _webp_canvas(6_000, 6_000, inner),
        "webp lossless of 16,384 x 16,384": b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f\xff\xff\xff\x0f" + bytes(15),
        "bmp of 2^31 x 2^31": b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 2**31 - 1, -(2**31), 1, 24, 0) + bytes(20),
        "bmp of 40 megapixels, empty": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 6_300, 6_300, 1, 24, 0, 0, 0, 0, 0, 0),
        "tiff of 4 gigapixels": tiff([(256, 4, 1, 65_535), (257, 4, 1, 65_535), *strip]),
        "tiff with strips outside": tiff(
            [(256, 3, 1, 99), (257, 3, 1, 99), *strip, (273, 4, 1, 2**31), (279, 4, 1, 2**32 - 1)]
        ),
        "tiff of 65,535 bits a sample": tiff([(256, 3, 1, 9), (257, 3, 1, 9), (258, 3, 1, 65_535), *strip[1:]]),
        "tiff with 2^32 - 1 samples": tiff([(256, 3, 1, 9), (257, 3, 1, 9), (258, 3, 2**32 - 1, 8), *strip[1:]]),
        "tiff of 40 megapixels, deflated": tiff(
            [(256, 3, 1, 6_300), (257, 3, 1, 6_300), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 122),
             (277, 3, 1, 1), (278, 3, 1, 6_300), (279, 4, 1, len(zeros))],
            zeros,
        ),
        # What costs time.
        "tiff whose directory follows itself": tiff(loop, bytes(200), following=8),
        "tiff with 65,535 entries": tiff([(65_000, 3, 1, 1)] * 65_533 + [(256, 3, 1, 1), (257, 3, 1, 1)]),
        "jpeg whose exif follows itself": jpeg[:2] + segment(0xE1, exif_loop) + jpeg[2:],
        "jpeg with 65,000 segments": jpeg[:2] + segment(0xFE, b"") * 65_000 + jpeg[2:],
        "jpeg with 2 million segments": jpeg[:2] + segment(0xFE, b"") * 2_000_000,
        "jpeg of fill bytes": jpeg[:2] + b"\xff" * (8 << 20) + jpeg[2:],
        "jpeg of restart markers": jpeg[:2] + b"\xff\xd0" * (4 << 20) + jpeg[2:],
        "jpeg of zeros between segments": jpeg[:2] + bytes(8 << 20) + jpeg[2:],
        "jpeg with 5,000 scans": scans(5_000, 2_000),
        "jpeg of 65,500 x 600": encoded(Image.new("L", (65_500, 600)), "JPEG", quality=1),
        "jpeg without a height": jpeg.replace(jpeg[jpeg.index(b"\xff\xc0") + 5 :][:2], b"\0\0", 1),
        # What is something else, or two things at once.
        "jpeg with markup in its comment": jpeg[:2] + segment(0xFE, MARKUP) + jpeg[2:],
        "jpeg with a comment of 64 KiB": jpeg[:2] + segment(0xFE, b"a" * 65_533) + jpeg[2:],
        "jpeg with markup behind it": jpeg + MARKUP,
        "gif with script in its head": b"GIF89a/*" + bytes(3) + b"*/=alert(1)//" + bytes(40),
        "gif with a zip behind it": valid()["gif"] + b"PK\x05\x06" + bytes(18),
        "html": MARKUP,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script></svg>',
        "svg with entities": b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><svg>&c;</svg>',
        "svgz": gzip.compress(b'<svg xmlns="http://www.w3.org/2000/svg"/>' * 99_999),
        "fits, gzipped": gzip.compress(b"SIMPLE  =                    T" + b" " * (16 << 20)),
        "fits": b"SIMPLE  =                    T".ljust(2_880),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n",
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 4, 65_535, 65_535, 8, 3) + bytes(64),
        "ico": b"\0\0\1\0\1\0" + bytes(64),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64),
        "avif": b"\0\0\0\x1cftypavif" + bytes(64),
        "ppm": b"P6 40000 40000 255\n",
        "xbm": b"#define x_width 99999\n#define x_height 99999\nstatic char x[] = {",
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "elf": b"\x7fELF" + bytes(64),
        "zip": b"PK\x03\x04" + bytes(64),
        "nothing": b"",
        "one byte": b"\xff",
        "magic bytes alone": b"\xff\xd8\xff",
        "zeros": bytes(4_096),
    }  # fmt: skip
