"""From a stored file to the square a network gets: cut, turned, mirrored and recoloured, its boxes and mask with it.

Every draw comes from a key given by the caller (seed, epoch, position), so an image looks the same whichever process
prepares it, and after a restart. Runs in decoding workers: Pillow and numpy only.
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
from lake.regions import masks
from training.metrics.segmentation_metrics import IGNORED
from training.tasks.task import Sample, Target

if TYPE_CHECKING:
    from training.registry.recipe import Recipe

# A box of which less than this share is left by a cut is no box of its thing any more.
LEAST_OF_A_BOX = 0.3
_CUTS = 10

View = tuple[float, float, float, float]


@dataclass(frozen=True)
class Look:
    """How images are drawn in training. Ranges as in the recipe of the same names; the default changes nothing."""

    crop: float = 1.0
    stretch: float = 0.0
    flip: str = "none"
    turn: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Look:
        return cls(**{name: getattr(recipe, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Preparation:
    """`side`: pixels of the square; `geometry`: "crop" shows the centre square, "squash" the whole image.

    `classes`: index by name. `look`: how images are varied; None: not at all, and keys are not looked at.
    """

    side: int
    geometry: Literal["crop", "squash"]
    classes: Mapping[str, int]
    look: Look | None = None


@dataclass(frozen=True)
class Job:
    """One file to prepare: what is known of it, and the key of its draws. `boxes` and `masks` as in table labels."""

    image_id: str
    data: bytes = field(repr=False)
    key: tuple[int, ...] = ()
    weight: float = 1.0
    label: str | None = None
    boxes: Sequence[Mapping[str, Any]] | None = None
    masks: Sequence[Mapping[str, Any]] | None = None


def prepare_many(jobs: Sequence[Job], how: Preparation) -> list[Sample | str]:
    """For a worker: each file as a sample, or the reason why it cannot be one."""
    found: list[Sample | str] = []
    for job in jobs:
        try:
            found.append(prepare(job, how))
        except (UnreadableImage, BadInput) as error:
            found.append(f"{job.image_id}: {error}")
    return found


def prepare(job: Job, how: Preparation) -> Sample:
    """One stored file as a sample. Raises UnreadableImage, BadInput for a mask that is not of its image."""
    opened = decode.open_image(job.data)
    width, height = _upright_size(opened)
    rng = np.random.default_rng(job.key) if how.look is not None else None
    view = _view(width, height, how, rng)
    # No more is decoded than the square can show.
    scale = min(1.0, how.side / min(view[2] - view[0], view[3] - view[1]))
    shown = decode.pixels(opened, shortest_side=max(1, math.ceil(scale * min(width, height))))
    return _sample(job, shown, (width, height), view, how, rng)


def _upright_size(opened: Image.Image) -> tuple[int, int]:
    try:
        # EXIF orientations 5 to 8 swap the axes. For some formats Pillow reads the whole file to find them.
        lies = opened.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception as error:  # Pillow raises many kinds for broken files
        raise UnreadableImage(str(error).strip() or type(error).__name__) from error
    return (opened.height, opened.width) if lies else opened.size


def whole(image_id: str, image: Image.Image, how: Preparation) -> Sample:
    """An image in memory (upright, RGB) as a sample without a target."""
    view = _view(*image.size, how, None)
    return _sample(Job(image_id, b""), image, image.size, view, how, None)


def _sample(
    job: Job,
    shown: Image.Image,
    size: tuple[int, int],
    view: View,
    how: Preparation,
    rng: np.random.Generator | None,
) -> Sample:
    across, down = shown.width / size[0], shown.height / size[1]
    box = (view[0] * across, view[1] * down, view[2] * across, view[3] * down)
    square = shown.resize((how.side, how.side), Image.Resampling.BILINEAR, box=box)
    target = _target(job, size, view, how)
    if rng is not None and how.look is not None:
        square = _recoloured(square, how.look, rng)
        pixels, target = _moved(np.asarray(square), target, how.look, rng)
        pixels = _erased(pixels, how.look, rng)
    else:
        pixels = np.array(square)
    return Sample(job.image_id, pixels, target, job.weight, size, view)


def _view(width: int, height: int, how: Preparation, rng: np.random.Generator | None) -> View:
    """The part of the image that is shown."""
    side = min(width, height)
    base_width, base_height = (side, side) if how.geometry == "crop" else (width, height)
    if rng is None or how.look is None or (how.look.crop == 1.0 and how.look.stretch == 0.0):
        left, top = (width - base_width) / 2, (height - base_height) / 2
        return left, top, left + base_width, top + base_height
    across = down = 0.0
    for _ in range(_CUTS):
        share = math.sqrt(rng.uniform(how.look.crop, 1.0))
        ratio = math.exp(0.5 * rng.uniform(math.log1p(-how.look.stretch), -math.log1p(-how.look.stretch)))
        across, down = base_width * share * ratio, base_height * share / ratio
        if across <= width and down <= height:
            break
    across, down = min(max(across, 1.0), width), min(max(down, 1.0), height)
    left, top = rng.uniform(0.0, width - across), rng.uniform(0.0, height - down)
    return left, top, left + across, top + down


def _target(job: Job, size: tuple[int, int], view: View, how: Preparation) -> Target:
    """What the statement about the image says of the square."""
    # A class that the model does not have is never answered right.
    label = how.classes.get(job.label, -1) if job.label is not None else None
    boxes: np.ndarray = np.zeros((0, 4), np.float32)
    kinds: np.ndarray = np.zeros(0, np.int64)
    if job.boxes:
        known = [b for b in job.boxes if b["label"] in how.classes]
        corners = [(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b in known]
        kinds = np.array([how.classes[b["label"]] for b in known], np.int64)
        boxes, kinds = _cut(np.array(corners, np.float64).reshape(-1, 4), kinds, view, how.side)
    mask = None if job.masks is None else _mask(job.masks, size, view, how)
    return Target(label, boxes, kinds, mask)


def _cut(boxes: np.ndarray, kinds: np.ndarray, view: View, side: int) -> tuple[np.ndarray, np.ndarray]:
    left, top, right, bottom = view
    inside = np.clip(boxes, [left, top, left, top], [right, bottom, right, bottom])
    area = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    before = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = (area > 0) & (area >= LEAST_OF_A_BOX * before)
    scale = np.array([side / (right - left), side / (bottom - top)] * 2)
    return ((inside[kept] - [left, top, left, top]) * scale).astype(np.float32), kinds[kept]


def _mask(given: Sequence[Mapping[str, Any]], size: tuple[int, int], view: View, how: Preparation) -> np.ndarray:
    """Classes of pixels; where instances overlap, the later one counts."""
    whole = np.zeros((size[1], size[0]), np.uint8)
    for one in given:
        if (one["height"], one["width"]) != whole.shape:
            raise BadInput(f"a mask of {one['width']} x {one['height']} on an image of {size[0]} x {size[1]}")
        # A class the model does not have is not background, either.
        value = how.classes[one["label"]] + 1 if one["label"] in how.classes else IGNORED
        whole[masks.decode(one["counts"], one["height"], one["width"])] = value
    small = Image.fromarray(whole).resize((how.side, how.side), Image.Resampling.NEAREST, box=view)
    return np.array(small)


def _moved(pixels: np.ndarray, target: Target, look: Look, rng: np.random.Generator) -> tuple[np.ndarray, Target]:
    """Mirrored and turned by quarter turns."""
    across = look.flip in ("horizontal", "both") and rng.random() < 0.5
    down = look.flip in ("vertical", "both") and rng.random() < 0.5
    turns = int(rng.integers(4)) if look.turn else 0
    boxes, mask, side = target.boxes, target.mask, float(pixels.shape[0])
    if across:
        pixels, mask = pixels[:, ::-1], None if mask is None else mask[:, ::-1]
        boxes = np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], axis=1)
    if down:
        pixels, mask = pixels[::-1], None if mask is None else mask[::-1]
        boxes = np.stack([boxes[:, 0], side - boxes[:, 3], boxes[:, 2], side - boxes[:, 1]], axis=1)
    for _ in range(turns):  # to the left, as numpy turns
        boxes = np.stack([boxes[:, 1], side - boxes[:, 2], boxes[:, 3], side - boxes[:, 0]], axis=1)
    pixels, mask = np.rot90(pixels, turns), None if mask is None else np.ascontiguousarray(np.rot90(mask, turns))
    return np.ascontiguousarray(pixels), Target(target.label, boxes, target.box_classes, mask)


def _recoloured(image: Image.Image, look: Look, rng: np.random.Generator) -> Image.Image:
    """Brightness and contrast in one table of 256 values; saturation as a step towards or away from grey."""
    if look.brightness or look.contrast:
        bright = 1.0 + rng.uniform(-look.brightness, look.brightness)
        steep = 1.0 + rng.uniform(-look.contrast, look.contrast)
        middle = float(np.asarray(image.convert("L")).mean())
        table = np.clip(((np.arange(256) - middle) * steep + middle) * bright, 0, 255).astype(np.uint8)
        image = image.point(table.tolist() * 3)
    if look.saturation:
        amount = 1.0 + rng.uniform(-look.saturation, look.saturation)
        image = Image.blend(image.convert("L").convert("RGB"), image, amount)
    return image


def _erased(pixels: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """A grey rectangle of 2 to 20 % of the square, in `erase` of the images (random erasing, arXiv 1708.04896)."""
    if not look.erase or rng.random() >= look.erase:
        return pixels
    side = pixels.shape[0]
    area, ratio = rng.uniform(0.02, 0.2) * side * side, math.exp(rng.uniform(-1.0, 1.0))
    height, width = (max(1, min(side, round(math.sqrt(area * r)))) for r in (ratio, 1 / ratio))
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    pixels = pixels.copy()
    pixels[top : top + height, left : left + width] = 127
    return pixels
