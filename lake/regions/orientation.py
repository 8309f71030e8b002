"""Turns boxes and masks from the pixels that an image file stores to the upright image, by its EXIF orientation.

The eight orientations are those of EXIF 2.32 (tag 0x0112): 1 is upright, 3 upside down, 6 and 8 lie on their sides, and
2, 4, 5 and 7 are mirrored, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lake.regions import masks

# Orientations whose upright image has width and height of the stored one exchanged.
LYING = (5, 6, 7, 8)
# Whether x and y are exchanged first, and then mirrored.
_STEPS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def stored_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height of the stored pixels, from those of the upright image."""
    return (height, width) if orientation in LYING else (width, height)


def turn_box(box: Mapping[str, Any], width: int, height: int, orientation: int) -> dict[str, Any]:
    """A box of the stored pixels on the upright image, which is `width` x `height`."""
    exchange, mirror_x, mirror_y = _STEPS[orientation]
    x, y, box_width, box_height = box["x"], box["y"], box["width"], box["height"]
    if exchange:
        x, y, box_width, box_height = y, x, box_height, box_width
    if mirror_x:
        x = width - x - box_width
    if mirror_y:
        y = height - y - box_height
    return {**box, "x": x + 0.0, "y": y + 0.0, "width": box_width, "height": box_height}


def turn_mask(mask: Mapping[str, Any], orientation: int) -> dict[str, Any]:
    """A mask of the stored pixels on the upright image."""
    exchange, mirror_x, mirror_y = _STEPS[orientation]
    pixels = masks.decode(mask["counts"], mask["height"], mask["width"])
    if exchange:
        pixels = pixels.T
    if mirror_x:
        pixels = pixels[:, ::-1]
    if mirror_y:
        pixels = pixels[::-1]
    height, width = pixels.shape
    return {**mask, "height": height, "width": width, "counts": masks.encode(np.ascontiguousarray(pixels))}
