"""Altered copies of pictures, as they come about in the wild: what a search for near-duplicates is to find.

Every copy is drawn from a seed, and is a file of its own: its bytes never equal the original's.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageEnhance

from lake.images.decode import open_image, pixels

Change = Callable[[Image.Image, np.random.Generator], tuple[Image.Image, str, int]]


def _encoded(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    return image, str(rng.choice(["JPEG", "WEBP"])), int(rng.integers(30, 81))


def _resized(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    scale = rng.uniform(0.4, 0.8)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC), "JPEG", 90


def _cropped(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    """A twelfth of each side's length is cut away at most, spread over its two ends as it falls."""
    width, height = (round(side * rng.uniform(11 / 12, 0.98)) for side in image.size)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((int(left), int(top), int(left) + width, int(top) + height)), "JPEG", 90


def _brightened(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    brighter = ImageEnhance.Brightness(image).enhance(rng.uniform(1.15, 1.4))
    return ImageEnhance.Contrast(brighter).enhance(rng.uniform(0.85, 1.15)), "JPEG", 90


def _shifted(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str, int]:
    """Moved by up to a twenty-fifth of each side; what would be empty shows the border's mirror image."""
    x, y = (int(side * rng.uniform(0.01, 0.04) * rng.choice([-1, 1])) for side in image.size)
    moved = ImageChops.offset(image, x, y)
    values = np.asarray(moved).copy()
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


def copies(data: bytes, seed: int) -> dict[str, bytes]:
    """One copy of each kind, encoded."""
    image = pixels(open_image(data))
    found = {}
    for place, (kind, change) in enumerate(CHANGES.items()):
        changed, format, quality = change(image, np.random.default_rng([seed, place]))
        out = io.BytesIO()
        changed.save(out, format, quality=quality)
        found[kind] = out.getvalue()
    return found
