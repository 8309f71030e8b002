"""From a file's bytes to the uint8 square a network takes. Runs in worker processes; knows Pillow and numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from embeddings.embedders.specs import Preprocessing
from lake.errors import UnreadableImage
from lake.images import decode

# A JPEG may be decoded smaller (DCT scaling) while its short side stays this many times what `resize` asks for.
# Worst cosine to a full decode over the benchmark's photographs: 0.998 at 1.5, 0.995 at 1.0 (docs/log.md).
DCT_MARGIN = 1.5

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Prepared:
    """`images[i]` belongs to the `kept[i]`-th input; `reasons` says why each other input is missing."""

    images: np.ndarray | list[np.ndarray]
    kept: list[int]
    reasons: dict[int, str]


def prepare(data: bytes, how: Preprocessing | None, max_megapixels: float = decode.MAX_MEGAPIXELS_BULK) -> np.ndarray:
    """One image as uint8 (crop, crop, 3), or whole (height, width, 3) when `how` is None.

    The same pixels as torchvision's Resize + CenterCrop on a Pillow image, except that large JPEGs are decoded
    scaled. Raises UnreadableImage.
    """
    image = decode.open_image(data, max_megapixels)
    if how is None:
        return np.asarray(decode.pixels(image))
    return square(decode.pixels(image, shortest_side=round(how.resize * DCT_MARGIN)), how)


def square(image: Image.Image, how: Preprocessing) -> np.ndarray:
    """Resize and centre crop of an upright RGB image: uint8 (crop, crop, 3)."""
    width, height = image.size
    if how.mode == "squash":
        size = (how.resize, how.resize)
    elif width <= height:
        size = (how.resize, int(how.resize * height / width))
    else:
        size = (int(how.resize * width / height), how.resize)
    left, top = _start(size[0], how.crop), _start(size[1], how.crop)
    filter = _FILTERS[how.interpolation]
    if width < height or how.crop > min(size):
        # Pillow fills with black what a crop larger than the image asks for.
        image = image.resize(size, filter)
        return np.asarray(image.crop((left, top, left + how.crop, top + how.crop)))
    # Only the columns that stay are computed, a third less work. In two steps, because Pillow picks which direction
    # goes first by the shape, and rounds to 8 bits in between: for what is not tall it is the horizontal.
    across, down = width / size[0], height / size[1]
    image = image.resize((how.crop, height), filter, box=(left * across, 0, (left + how.crop) * across, height))
    image = image.resize((how.crop, how.crop), filter, box=(0, top * down, how.crop, (top + how.crop) * down))
    return np.asarray(image)


def _start(side: int, crop: int) -> int:
    """Where torchvision's CenterCrop begins; negative when it pads."""
    return round((side - crop) / 2.0) if side >= crop else -((crop - side) // 2)


def prepare_many(files: list[bytes], how: Preprocessing | None) -> Prepared:
    """`prepare` for a worker. A bad file neither stops nor shifts the others."""
    images: list[np.ndarray] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    for index, data in enumerate(files):
        try:
            images.append(prepare(data, how))
            kept.append(index)
        except UnreadableImage as error:
            reasons[index] = str(error)
    return Prepared(np.stack(images) if how is not None and images else images, kept, reasons)
