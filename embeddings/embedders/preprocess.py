"""Prepares images, in worker processes: from a file's bytes to the uint8 square of a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from embeddings.embedders.specs import Preprocessing
from lake.errors import UnreadableImage
from lake.images import decode
from lake.images.levels import Levels

# A JPEG may be decoded smaller (DCT scaling) if its short side stays at least this many times `resize`.
# Worst cosine to a full decode over the benchmark's photographs: 0.998 at 1.5, 0.995 at 1.0 (docs/log.md).
DCT_MARGIN = 1.5

# Pixels of a resized image that is made whole before it is cropped.
MOST_RESIZED = 50_000_000

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Prepared:
    """`images[i]` is of the input with index `kept[i]`; `reasons`: index -> why the input is missing."""

    images: np.ndarray | list[np.ndarray]
    kept: list[int]
    reasons: dict[int, str]


def prepare(
    data: bytes,
    preprocessing: Preprocessing | None,
    max_megapixels: float = decode.MAX_MEGAPIXELS,
    levels: Levels | None = None,
) -> np.ndarray:
    """One image as uint8 (crop, crop, 3), or whole (height, width, 3) if `preprocessing` is None.

    The pixels are those of torchvision's Resize and CenterCrop on a Pillow image, except that large JPEGs are decoded
    smaller. `levels`: black and white as recorded in the lake. Raises UnreadableImage.
    """
    image = decode.open_image(data, max_megapixels)
    if preprocessing is None:
        return np.asarray(decode.pixels(image, levels=levels))
    return square(decode.pixels(image, round(preprocessing.resize * DCT_MARGIN), levels), preprocessing)


def square(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes and centre-crops an upright RGB image: uint8 (crop, crop, 3)."""
    width, height = image.size
    resize, crop = preprocessing.resize, preprocessing.crop
    if preprocessing.mode == "squash":
        size = (resize, resize)
    elif width <= height:
        size = (resize, int(resize * height / width))
    else:
        size = (int(resize * width / height), resize)
    left, top = _start(size[0], crop), _start(size[1], crop)
    filter = _FILTERS[preprocessing.interpolation]
    if width < height or crop > min(size):
        if size[0] * size[1] > MOST_RESIZED:
            # A strip of 1 x 30,000 pixels would become one of 224 x 6,720,000.
            return square(_middle(image, crop / resize), preprocessing)
        # Pillow pads with black if the crop is larger than the image.
        return np.asarray(image.resize(size, filter).crop((left, top, left + crop, top + crop)))
    # Computes only the columns that stay, a third less work. In two steps, because Pillow chooses by the shape which
    # direction goes first, and rounds to 8 bits in between: for images that are not tall, the horizontal.
    across, down = width / size[0], height / size[1]
    image = image.resize((crop, height), filter, box=(left * across, 0, (left + crop) * across, height))
    image = image.resize((crop, crop), filter, box=(0, top * down, crop, (top + crop) * down))
    return np.asarray(image)


def _middle(image: Image.Image, share: float) -> Image.Image:
    """The middle of the image's long side, more than twice `share` of the short side."""
    width, height = image.size
    # An even number is cut away, so that the middle stays the middle.
    keep = math.ceil(2 * share * min(width, height)) + 2
    cut = max(0, max(width, height) - keep) // 2
    return image.crop((0, cut, width, height - cut) if width < height else (cut, 0, width - cut, height))


def _start(side: int, crop: int) -> int:
    """Where torchvision's CenterCrop begins; negative if it pads."""
    return round((side - crop) / 2.0) if side >= crop else -((crop - side) // 2)


def prepare_many(
    files: list[bytes], preprocessing: Preprocessing | None, levels: list[Levels | None] | None = None
) -> Prepared:
    """`prepare` for several files, each with its levels; a bad file neither stops nor shifts the others."""
    images: list[np.ndarray] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    for index, data in enumerate(files):
        try:
            images.append(prepare(data, preprocessing, levels=levels[index] if levels is not None else None))
            kept.append(index)
        except UnreadableImage as error:
            reasons[index] = str(error)
    return Prepared(np.stack(images) if preprocessing is not None and images else images, kept, reasons)
