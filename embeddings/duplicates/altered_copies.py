"""Makes altered copies of a picture: re-encoded, resized, cropped, brightened and shifted.

They are what a search for near-duplicates must find. A seed draws every copy; its bytes never equal the original's.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageEnhance

from lake.images.decode import open_image, pixels
from lake.images.levels import Levels

Change = Callable[[Image.Image, np.random.Generator], tuple[Image.Image, str, int]]


def _encoded(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    return image, str(rng.choice(["JPEG", "WEBP"])), int(rng.integers(30, 81))


def _resized(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    scale = rng.uniform(0.4, 0.8)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC), "JPEG", 90


def _cropped(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    """Cuts away at most a twelfth of each side's length, split at random between its two ends."""
    width, height = (round(side * rng.uniform(11 / 12, 0.98)) for side in image.size)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((int(left), int(top), int(left) + width, int(top) + height)), "JPEG", 90


def _brightened(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    brighter = ImageEnhance.Brightness(image).enhance(rng.uniform(1.15, 1.4))
    return ImageEnhance.Contrast(brighter).enhance(rng.uniform(0.85, 1.15)), "JPEG", 90


def _shifted(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    """Moves the picture by up to a twenty-fifth of each side; the gap is filled with its mirror image."""
    x, y = (int(side * rng.uniform(0.01, 0.04) * rng.choice([-1, 1])) for side in image.size)
    shifted = ImageChops.offset(image, x, y)
    values = np.asarray(shifted).copy()
    if y > 0:
        values[:y] = values[y : 2 * y][::-1]
    elif y < 0:
        values[y:] = values[2 * y : y][::-1]
    if x > 0:
        values[:, :x] = values[:, x : 2 * x][:, ::-1]
    elif x < 0:
        values[:, x:] = values[:, 2 * x : x][:, ::-1]
    return Image.fromarray(values), "JPEG", 90


CHANGES: dict[str, Change] = {
    "re-encoded": _encoded,
    "resized": _resized,
    "cropped": _cropped,
    "brightened": _brightened,
    "shifted": _shifted,
}


def copies(data: bytes, seed: int, levels: Levels | None = None) -> dict[str, bytes]:
    """kind -> one encoded copy of that kind; `levels` as in `lake.images.decode.pixels`. Raises UnreadableImage."""
    image = pixels(open_image(data), levels=levels)
    files = {}
    for number, (kind, change) in enumerate(CHANGES.items()):
        changed, format, quality = change(image, np.random.default_rng([seed, number]))
        buffer = io.BytesIO()
        changed.save(buffer, format, quality=quality)
        files[kind] = buffer.getvalue()
    return files
