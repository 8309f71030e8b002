"""Black and white of images with more than 8 bits: from the file, as declared, or found from the values of a source.

A file of 12, 16 or 32 bits does not say by itself how bright a value is: 4095 is white for a 12-bit camera and nearly
black in a file that uses all 16 bits. One rule (`docs/pixels.md`) is used wherever pixels are decoded. 8-bit images
have no levels and are not touched. Imported by decoding workers; numpy only for images that need it.
"""

from __future__ import annotations

import functools
import io
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image as pillow

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# Ranges that files commonly use, black being 0: a share of 1, and 8, 10, 12, 14 and 16 bits.
FULL_SCALES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
# Values that mean "no value here". They are set aside only where a gap separates them from all others.
SENTINELS = (-99999.0, -32768.0, -9999.0, -999.0, 9999.0, 32767.0, 65535.0, 99999.0)
# Beyond this, numbers are fill values of scientific formats (1e20, 9.97e36, the largest float).
ABSURD = 1e19
# The ends of the values that count, in per cent: a few hot or dead pixels do not decide.
LOW, HIGH = 0.1, 99.9
# Bright lamps are brighter than HIGH, but hardly more than this often; a hot pixel or a cosmic ray is.
MOST_HIGHLIGHT = 8.0
PIXEL_TYPES = ("uint16", "int32", "uint32", "float")
# Pixels that are looked at, evenly spread over the image.
_SAMPLED = 1_000_000
_HIGH_BYTES = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B"}
_NATIVE = {"RGB;16N": "RGB;16B", "RGBA;16N": "RGBA;16B"}  # as above, where the machine is little-endian
_GREY_ALPHA = "LA;16B"
_SINGLE = ("I", "F")


@dataclass(frozen=True)
class Levels:
    """The value that is shown as black and the value that is shown as white, in the file's own numbers."""

    black: float
    white: float


@dataclass(frozen=True)
class Spread:
    """The values of one image: its pixel type, and the ends of the values that count (see LOW and HIGH)."""

    pixel_type: str
    low: float
    high: float


def pixel_type(image: Image.Image) -> str | None:
    """uint16, int32, uint32 or float of an image that is not loaded yet; None for 8 bits and fewer."""
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.mode in _SINGLE:
        return "float" if image.mode == "F" else "uint32" if _is_unsigned(image) else "int32"
    return "uint16" if _rawmode(image) in {*_HIGH_BYTES, *_NATIVE, _GREY_ALPHA} else None


def in_file(image: Image.Image, kind: str) -> Levels | None:
    """What the file says: TIFF's tags of its least and greatest sample values, or 9 to 15 bits a sample; PNG's sBIT."""
    if image.format == "TIFF":
        return _tiff_levels(getattr(image, "tag_v2", {}), kind)
    if image.format == "PNG" and kind == "uint16":
        bits = _significant_bits(_file(image))
        if bits is not None and 8 <= bits < 16 and not _fills_the_depth(image, bits):
            return Levels(0.0, 2.0**bits - 1)
    return None


def spread(image: Image.Image) -> Spread | None:
    """The spread of an image's values; None for 8 bits, and if no pixel has a value. Loads a copy of the image."""
    kind = pixel_type(image)
    if kind is None:
        return None
    import numpy as np

    values = counting(_sampled(image), no_data(image))
    if not values.size:
        return None
    low, high = np.percentile(values, [LOW, HIGH]).tolist()
    greatest = float(values.max())
    return Spread(kind, low, greatest if kind != "float" and greatest <= MOST_HIGHLIGHT * high else high)


def counting(values: np.ndarray, no_data: float | None = None) -> np.ndarray:
    """The values, float64 (n,), that count: finite, no fill value, and not a sentinel that a gap separates from all
    others: a gap wider than those others are spread.
    """
    import numpy as np

    values = values.ravel().astype(np.float64)
    values = values[np.isfinite(values) & (np.abs(values) < ABSURD)]
    if no_data is not None:
        values = values[values != no_data]
    for end in (np.min, np.max):
        if values.size and float(end(values)) in SENTINELS:
            others = values[values != end(values)]
            # Pictures of two values are black and white, not empty.
            if others.size and (width := np.ptp(others)) > 0 and np.abs(end(others) - end(values)) > width:
                values = others
    return values


def no_data(image: Image.Image) -> float | None:
    """The value that a TIFF of GDAL declares as "no value here"."""
    text = getattr(image, "tag_v2", {}).get(42113) if image.format == "TIFF" else None
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def found(spreads: Iterable[Spread]) -> Levels:
    """The levels of images that belong together, all of one pixel type, one spread at least.

    The smallest full scale that holds all their values, with black at 0: so 12 bits in a 16-bit file look like the
    8-bit picture. Values below 0 or above 16 bits, and floats that fit no scale well, go from their least to their
    greatest.
    """
    spreads = [*spreads]
    low, high = min(s.low for s in spreads), max(s.high for s in spreads)
    whole = spreads[0].pixel_type != "float"
    scale = next((full for full in FULL_SCALES[1 if whole else 0 :] if high <= full), None)
    if low >= 0 and scale is not None and (whole or high - low >= scale / 4 or high == low > 0):
        return Levels(0.0, scale)
    return Levels(low, high if high > low else low + max(1.0, abs(low) / 1e6))


def to_8_bits(image: Image.Image, levels: Levels) -> Image.Image:
    """A grey image, loaded and not turned yet, as 8-bit grey. Pixels without a value become black."""
    import numpy as np

    empty, unsigned = no_data(image), _is_unsigned(image)
    table = np.array(_table(levels), np.uint8) if image.mode.startswith("I;16") else None
    out = pillow.new("L", image.size)
    for top, strip in _strips(image):
        values = _numbers(strip, unsigned)
        if table is not None:
            grey = table[values]
        else:
            with np.errstate(all="ignore"):
                shares = (values.astype(np.float64) - levels.black) / (levels.white - levels.black)
            # A little is added, because k / 255 as a float may lie below k / 255.
            grey = np.floor(np.nan_to_num(shares, nan=0.0).clip(0, 1) * 255 + 1e-3).astype(np.uint8)
        if empty is not None:
            grey[values == empty] = 0
        out.paste(pillow.fromarray(grey), (0, top))
    return out


def colours_to_8_bits(high: Image.Image, low: Image.Image, levels: Levels) -> None:
    """As `to_8_bits`, in place, for colours: `high` has the high bytes of the samples, `low` the low bytes."""
    import numpy as np

    table = np.array(_table(levels), np.uint8)
    for (top, upper), (_, lower) in zip(_strips(high), _strips(low), strict=True):
        values = np.asarray(upper).astype(np.uint16) << 8 | np.asarray(lower)
        shown = table[values]
        if high.mode == "RGBA":
            shown[..., 3] = values[..., 3] >> 8
        high.paste(pillow.fromarray(shown), (0, top))


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips of about a million pixels, each with its first row: what is made of them stays small."""
    step = max(1, (1 << 20) // image.width)
    for top in range(0, image.height, step):
        yield top, image.crop((0, top, image.width, min(top + step, image.height)))


def low_bytes(image: Image.Image) -> Image.Image | None:
    """The low bytes of a colour image's 16-bit samples, where Pillow gives the high bytes; None for other images."""
    raw = _rawmode(image)
    other = "RGBA" if raw == _GREY_ALPHA else _HIGH_BYTES.get(raw) or _NATIVE.get(raw)
    if other is None:
        return None
    again = _again(image)
    again.tile = [tile._replace(args=_with_rawmode(tile.args, other)) for tile in again.tile]  # type: ignore[attr-defined]
    again.load()
    if raw != _GREY_ALPHA:
        return again
    # A pixel of grey and alpha was read as four bytes: high and low of the grey, high and low of the alpha.
    _, grey, _, alpha = again.split()
    return pillow.merge("RGBA", (grey, grey, grey, alpha))


def _again(image: Image.Image) -> Image.Image:
    """The same file, opened and not loaded."""
    return pillow.open(io.BytesIO(_file(image)), formats=(str(image.format),))


def _with_rawmode(arguments: Any, rawmode: str) -> Any:
    return rawmode if isinstance(arguments, str) else (rawmode, *arguments[1:])


def _rawmode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments if isinstance(arguments, str) else arguments[0] if arguments else "")


def _file(image: Image.Image) -> bytes:
    """The bytes that `lake.images.decode.open_image` opened. Loading the image loses them."""
    return bytes(image.fp.getbuffer())  # type: ignore[attr-defined]


@functools.lru_cache(16)
def _table(levels: Levels) -> list[int]:
    """What each value of 16 bits becomes, 0 to 255; in whole numbers, so that 257 x k is k exactly."""
    import numpy as np

    black, white = levels.black, levels.white
    if float(black).is_integer() and float(white).is_integer():
        black, white = int(black), int(white)
    # Values that use all 16 bits were always cut, not rounded: their vectors stay as they are.
    half = 0 if (black, white) == (0, 65535) else (white - black) // 2
    values = ((np.arange(65536) - black) * 255 + half) // (white - black)
    table: list[int] = np.clip(values, 0, 255).astype(np.uint8).tolist()
    return table


def _is_unsigned(image: Image.Image) -> bool:
    """Whether 32-bit integers of a TIFF have no sign. Pillow gives them as if they had."""
    tags = getattr(image, "tag_v2", {})
    return image.mode == "I" and tags.get(339, (1,))[0] == 1 and tags.get(258, (16,))[0] == 32


def _numbers(image: Image.Image, unsigned: bool) -> np.ndarray:
    import numpy as np

    values = np.asarray(image)
    return values.view(np.uint32) if unsigned else values


def _sampled(image: Image.Image) -> np.ndarray:
    """The values of up to _SAMPLED pixels, evenly spread, as numbers of the file: (n,)."""
    import numpy as np

    low = low_bytes(image)
    image = _again(image)
    shrink = max(1, math.ceil(math.sqrt(image.width * image.height / _SAMPLED)))
    size = max(1, image.width // shrink), max(1, image.height // shrink)

    def small(whole: Image.Image) -> Image.Image:
        return whole if shrink == 1 else whole.resize(size, pillow.Resampling.NEAREST)

    values = _numbers(small(image), _is_unsigned(image))
    if low is None:
        return values.ravel()
    colours: np.ndarray = values.astype(np.uint16) << 8 | np.asarray(small(low))
    return (colours[..., :3] if image.mode == "RGBA" else colours).ravel()


def _tiff_levels(tags: Any, kind: str) -> Levels | None:
    """TIFF 6.0: SMinSampleValue and SMaxSampleValue (340, 341), MinSampleValue and MaxSampleValue (280, 281)."""
    for least, greatest in ((340, 341), (280, 281)):
        white = _number(tags.get(greatest))
        black = _number(tags.get(least)) or 0.0
        if white is not None and white > black:
            return Levels(black, white)
    bits = tags.get(258, (16,))[0]
    return Levels(0.0, 2.0**bits - 1) if kind == "uint16" and 8 < bits < 16 else None


def _number(value: Any) -> float | None:
    values = value if isinstance(value, Sequence) else [value]
    try:
        number = float(max(values))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _significant_bits(data: bytes) -> int | None:
    """The greatest number of PNG's chunk sBIT, which lies before the pixels."""
    at = 8
    for _ in range(64):
        if len(data) < at + 8:
            return None
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"sBIT" and 1 <= length <= 4:
            return max(data[at + 8 : at + 8 + length], default=None)
        if name in (b"IDAT", b"IEND"):
            return None
        at += 12 + length
    return None


def _fills_the_depth(image: Image.Image, bits: int) -> bool:
    """Whether the values are scaled to 16 bits, as PNG asks; many cameras' files leave them as they are."""
    import numpy as np

    values = counting(_sampled(image))
    if not values.size or float(values.max()) <= 2**bits - 1:
        step = 2 ** (16 - bits)
        return bool(values.size and np.ptp(values) and np.minimum(values % step, step - values % step).max() <= 1)
    return True
