"""Prepares stored image files for a network: cut, resized and, in training, randomly augmented.

Boxes and masks change with the image. Every random number comes from a key that the caller gives (seed, epoch,
position), so an image looks the same in whichever process prepares it, and after a restart. Runs in decoding workers:
Pillow and numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from lake.errors import BadInput, UnreadableImage
from lake.images import decode
from lake.images.levels import Levels
from lake.regions import masks
from lake.regions.boxes import corners
from training.metrics.segmentation_metrics import IGNORED, ignore_crowds
from training.tasks.task import Sample, Target

if TYPE_CHECKING:
    from training.registry.recipe import Recipe

# A box is dropped if a cut leaves less than this share of its area.
LEAST_OF_A_BOX = 0.3
# Attempts to draw a cut that fits into the image.
_CUTS = 10

View = tuple[float, float, float, float]


@dataclass(frozen=True)
class Augmentation:
    """How training images vary. Fields and ranges are those of the recipe; the defaults change nothing."""

    crop: float = 1.0
    stretch: float = 0.0
    flip: str = "none"
    turn: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Augmentation:
        return cls(**{name: getattr(recipe, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Preparation:
    """`side`: pixels of the square. `geometry`: "crop" shows the centre square, "squash" the whole image.

    `classes`: index by name. `augmentation`: None outside of training; keys are then not used.
    """

    side: int
    geometry: Literal["crop", "squash"]
    classes: Mapping[str, int]
    augmentation: Augmentation | None = None


@dataclass(frozen=True)
class StoredSample:
    """An image file with its labels and the key of its random numbers. Boxes, masks and crowds: as in table labels.

    `levels`: black and white as recorded in the lake.
    """

    image_id: str
    data: bytes = field(repr=False)
    key: tuple[int, ...] = ()
    weight: float = 1.0
    label: str | None = None
    boxes: Sequence[Mapping[str, Any]] | None = None
    masks: Sequence[Mapping[str, Any]] | None = None
    crowd_boxes: Sequence[Mapping[str, Any]] | None = None
    crowd_masks: Sequence[Mapping[str, Any]] | None = None
    levels: Levels | None = None


def prepare_many(stored: Sequence[StoredSample], preparation: Preparation) -> list[Sample | str]:
    """For a worker: each file as a sample, or the reason why it cannot be prepared."""
    samples: list[Sample | str] = []
    for sample in stored:
        try:
            samples.append(prepare(sample, preparation))
        except (UnreadableImage, BadInput) as error:
            samples.append(f"{sample.image_id}: {error}")
    return samples


def prepare(stored: StoredSample, preparation: Preparation) -> Sample:
    """A stored file as a sample. Raises UnreadableImage, or BadInput if a mask has another size than its image."""
    opened = decode.open_image(stored.data)
    width, height = decode.upright_size(opened)
    rng = np.random.default_rng(stored.key) if preparation.augmentation is not None else None
    view = _view(width, height, preparation, rng)
    # Decode no more pixels than the square can show.
    scale = min(1.0, preparation.side / min(view[2] - view[0], view[3] - view[1]))
    image = decode.pixels(opened, max(1, math.ceil(scale * min(width, height))), stored.levels)
    return _sample(stored, image, (width, height), view, preparation, rng)


def whole(image_id: str, image: Image.Image, preparation: Preparation) -> Sample:
    """An image in memory (upright, RGB) as a sample without a target."""
    view = _view(*image.size, preparation, None)
    return _sample(StoredSample(image_id, b""), image, image.size, view, preparation, None)


def _sample(
    stored: StoredSample,
    image: Image.Image,
    size: tuple[int, int],
    view: View,
    preparation: Preparation,
    rng: np.random.Generator | None,
) -> Sample:
    """`image` may be smaller than the original, whose `size` is (width, height); `view` is in the original's pixels."""
    scale_x, scale_y = image.width / size[0], image.height / size[1]
    box = (view[0] * scale_x, view[1] * scale_y, view[2] * scale_x, view[3] * scale_y)
    square = image.resize((preparation.side, preparation.side), Image.Resampling.BILINEAR, box=box)
    target = _target(stored, size, view, preparation)
    augmentation = preparation.augmentation
    if rng is not None and augmentation is not None:
        if stored.boxes is not None and stored.masks is None:
            square = _without_crowds(square, stored, view)
        square = _recoloured(square, augmentation, rng)
        pixels, target = _flipped(np.asarray(square), target, augmentation, rng)
        pixels = _erased(pixels, augmentation, rng)
    else:
        pixels = np.array(square)
    return Sample(stored.image_id, pixels, target, stored.weight, size, view)


def _view(width: int, height: int, preparation: Preparation, rng: np.random.Generator | None) -> View:
    """The part of the image that the square shows."""
    side, augmentation = min(width, height), preparation.augmentation
    base_width, base_height = (side, side) if preparation.geometry == "crop" else (width, height)
    if rng is None or augmentation is None or (augmentation.crop == 1.0 and augmentation.stretch == 0.0):
        left, top = (width - base_width) / 2, (height - base_height) / 2
        return left, top, left + base_width, top + base_height
    view_width = view_height = 0.0
    for _ in range(_CUTS):
        share = math.sqrt(rng.uniform(augmentation.crop, 1.0))
        ratio = math.exp(0.5 * rng.uniform(math.log1p(-augmentation.stretch), -math.log1p(-augmentation.stretch)))
        view_width, view_height = base_width * share * ratio, base_height * share / ratio
        if view_width <= width and view_height <= height:
            break
    view_width, view_height = min(max(view_width, 1.0), width), min(max(view_height, 1.0), height)
    left, top = rng.uniform(0.0, width - view_width), rng.uniform(0.0, height - view_height)
    return left, top, left + view_width, top + view_height


def _target(stored: StoredSample, size: tuple[int, int], view: View, preparation: Preparation) -> Target:
    """The labels of the stored image, in the square's pixels."""
    # -1: a class that the model does not have; no prediction is correct.
    label = preparation.classes.get(stored.label, -1) if stored.label is not None else None
    boxes: np.ndarray = np.zeros((0, 4), np.float32)
    classes: np.ndarray = np.zeros(0, np.int64)
    if stored.boxes:
        known = [box for box in stored.boxes if box["label"] in preparation.classes]
        corners = [(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b in known]
        classes = np.array([preparation.classes[box["label"]] for box in known], np.int64)
        boxes, classes = _cut(np.array(corners, np.float64).reshape(-1, 4), classes, view, preparation.side)
    mask = None if stored.masks is None else _mask(stored, size, view, preparation)
    regions = [box for box in stored.crowd_boxes or () if box["label"] is None or box["label"] in preparation.classes]
    crowds = _in_square(regions, view, preparation.side).astype(np.float32)
    of_crowds = np.array([preparation.classes.get(box["label"], -1) for box in regions], np.int64)
    return Target(label, boxes, classes, mask, crowds, of_crowds)


def _in_square(boxes: Sequence[Mapping[str, Any]], view: View, side: int) -> np.ndarray:
    """float64 (n, 4): boxes in the square's pixels, cut at its edges."""
    left, top, right, bottom = view
    scale = np.array([side / (right - left), side / (bottom - top)] * 2)
    inside: np.ndarray = np.clip((corners(boxes) - [left, top, left, top]) * scale, 0, side)
    return inside


def _without_crowds(square: Image.Image, stored: StoredSample, view: View) -> Image.Image:
    """The image with grey instead of crowd regions, except where an instance's box is.

    A detector's loss takes what has no box as background, and torchvision's losses cannot be masked. Of a crowd region
    nobody said what is in it, so the network does not see it.
    """
    if not stored.crowd_boxes:
        return square
    hidden, side = np.zeros((square.height, square.width), bool), square.width
    for boxes, value in ((stored.crowd_boxes, True), (stored.boxes or (), False)):
        for x1, y1, x2, y2 in _in_square(boxes, view, side).tolist():
            hidden[math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = value
    pixels = np.array(square)
    pixels[hidden] = 127
    return Image.fromarray(pixels)


def _cut(boxes: np.ndarray, classes: np.ndarray, view: View, side: int) -> tuple[np.ndarray, np.ndarray]:
    left, top, right, bottom = view
    inside = np.clip(boxes, [left, top, left, top], [right, bottom, right, bottom])
    area = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    before = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    visible = (area > 0) & (area >= LEAST_OF_A_BOX * before)
    scale = np.array([side / (right - left), side / (bottom - top)] * 2)
    return ((inside[visible] - [left, top, left, top]) * scale).astype(np.float32), classes[visible]


def _mask(stored: StoredSample, size: tuple[int, int], view: View, preparation: Preparation) -> np.ndarray:
    """The class of each pixel. Where instances overlap, the later one counts. Crowd regions are IGNORED."""
    whole = np.zeros((size[1], size[0]), np.uint8)
    ignore_crowds(whole, stored.crowd_boxes, stored.crowd_masks)
    for mask in stored.masks or ():
        if (mask["height"], mask["width"]) != whole.shape:
            raise BadInput(f"a mask of {mask['width']} x {mask['height']} on an image of {size[0]} x {size[1]}")
        # A class that the model does not have is not background, either.
        value = preparation.classes[mask["label"]] + 1 if mask["label"] in preparation.classes else IGNORED
        whole[masks.decode(mask["counts"], mask["height"], mask["width"])] = value
    small = Image.fromarray(whole).resize((preparation.side, preparation.side), Image.Resampling.NEAREST, box=view)
    return np.array(small)


def _flipped(
    pixels: np.ndarray, target: Target, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, Target]:
    """Flips, and rotates by quarter turns."""
    horizontal = augmentation.flip in ("horizontal", "both") and rng.random() < 0.5
    vertical = augmentation.flip in ("vertical", "both") and rng.random() < 0.5
    turns = int(rng.integers(4)) if augmentation.turn else 0
    boxes, mask, side = target.boxes, target.mask, float(pixels.shape[0])
    if horizontal:
        pixels, mask = pixels[:, ::-1], None if mask is None else mask[:, ::-1]
        boxes = np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], axis=1)
    if vertical:
        pixels, mask = pixels[::-1], None if mask is None else mask[::-1]
        boxes = np.stack([boxes[:, 0], side - boxes[:, 3], boxes[:, 2], side - boxes[:, 1]], axis=1)
    for _ in range(turns):  # counter-clockwise, as numpy rotates
        boxes = np.stack([boxes[:, 1], side - boxes[:, 2], boxes[:, 3], side - boxes[:, 0]], axis=1)
    pixels, mask = np.rot90(pixels, turns), None if mask is None else np.ascontiguousarray(np.rot90(mask, turns))
    return np.ascontiguousarray(pixels), Target(target.label, boxes, target.box_classes, mask)  # grey crowds need none


def _recoloured(image: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    """Brightness and contrast in one table of 256 values; saturation as a step towards or away from grey."""
    if augmentation.brightness or augmentation.contrast:
        brightness = 1.0 + rng.uniform(-augmentation.brightness, augmentation.brightness)
        contrast = 1.0 + rng.uniform(-augmentation.contrast, augmentation.contrast)
        middle = float(np.asarray(image.convert("L")).mean())
        table = np.clip(((np.arange(256) - middle) * contrast + middle) * brightness, 0, 255).astype(np.uint8)
        image = image.point(table.tolist() * 3)
    if augmentation.saturation:
        amount = 1.0 + rng.uniform(-augmentation.saturation, augmentation.saturation)
        image = Image.blend(image.convert("L").convert("RGB"), image, amount)
    return image


def _erased(pixels: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Random erasing (arXiv 1708.04896): a share `erase` of the images gets a grey rectangle, 2 to 20 % of the area."""
    if not augmentation.erase or rng.random() >= augmentation.erase:
        return pixels
    side = pixels.shape[0]
    area, ratio = rng.uniform(0.02, 0.2) * side * side, math.exp(rng.uniform(-1.0, 1.0))
    height, width = (max(1, min(side, round(math.sqrt(area * r)))) for r in (ratio, 1 / ratio))
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    pixels = pixels.copy()
    pixels[top : top + height, left : left + width] = 127
    return pixels
