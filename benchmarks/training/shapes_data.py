"""Draws images of shapes: filled with texture from photographs, on other photographs, with soft edges.

Fills and backgrounds come from the same photographs, so that texture says nothing about the class or the background;
`colour_alone` measures this with a classifier of single pixels. Training and held-out images are cut from different
photographs. Equal seeds draw equal images.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.harness.data import files_under
from lake.formats.annotation import Annotations, GroundTruth
from lake.regions import masks

if TYPE_CHECKING:
    from lake.storage.store import Lake

SHAPES = ("circle", "square", "star", "triangle")
SIDE = 96
# The circle around a shape, as a share of the image's side.
DIAMETERS = (0.42, 0.66)
MOST_SHAPES = 3
# Standard deviation of the blur of a shape's edge, in pixels.
BLURS = (0.6, 1.2)
# A shape must be visible: along its edge, inside and outside differ by at least this much (of 255) in the median, in
# the colour channel that differs most.
CONTRAST = 60
_GAP = 2.0  # pixels between the circles around two shapes
_FINER = 4  # edges are drawn this many times finer, then averaged
_PHOTOGRAPH_SIDE = 192


@dataclass(frozen=True)
class Shape:
    """One instance: its class, and the pixels of which it covers at least half, bool (side, side)."""

    label: str
    mask: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x, y, width, height in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        return (float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y))


@dataclass(frozen=True)
class Drawing:
    image: Image.Image
    shapes: tuple[Shape, ...]

    def classes(self) -> np.ndarray:
        """uint8 (side, side): 0 background, else 1 + the index of the class in SHAPES."""
        out = np.zeros((self.image.height, self.image.width), np.uint8)
        for shape in self.shapes:
            out[shape.mask] = 1 + SHAPES.index(shape.label)
        return out

    def png(self) -> bytes:
        with io.BytesIO() as file:
            self.image.save(file, "PNG", compress_level=1)
            return file.getvalue()


def drawings(photographs: Sequence[np.ndarray], count: int, seed: int, side: int = SIDE) -> Iterator[Drawing]:
    """`count` images. `photographs`: uint8 (height, width, 3), at least two, each side of 32 pixels or more."""
    for child in np.random.SeedSequence(seed).spawn(count):
        yield draw(photographs, np.random.default_rng(child), side)


def draw(photographs: Sequence[np.ndarray], rng: np.random.Generator, side: int = SIDE) -> Drawing:
    """One image of 1 to MOST_SHAPES shapes that do not touch."""
    background = int(rng.integers(len(photographs)))
    picture = _texture(photographs[background], side, rng)
    taken: list[tuple[float, float, float]] = []
    shapes: list[Shape] = []
    wanted = int(rng.integers(1, MOST_SHAPES + 1))
    for _ in range(30 * wanted):  # a shape without free space or contrast is left out
        if len(shapes) == wanted:
            break
        label = SHAPES[int(rng.integers(len(SHAPES)))]
        radius = side * rng.uniform(*DIAMETERS) / 2
        x, y = rng.uniform(radius, side - radius, 2)
        if any(math.hypot(x - u, y - v) < radius + other + _GAP for u, v, other in taken):
            continue
        cover = _cover(label, x, y, radius, side, rng)
        # Any photograph except the background's.
        other = int(rng.integers(len(photographs) - 1))
        fill = _texture(photographs[other + (other >= background)], side, rng)
        if _contrast(cover >= 0.5, fill, picture) < CONTRAST:
            continue
        share = _blurred(cover, rng.uniform(*BLURS))[..., None]
        picture = (fill * share + picture * (1 - share) + 0.5).astype(np.uint8)
        taken.append((x, y, radius))
        shapes.append(Shape(label, cover >= 0.5))
    if not shapes:
        return draw(photographs, rng, side)
    return Drawing(Image.fromarray(picture), tuple(shapes))


def _texture(photograph: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 (side, side, 3): a random square of a photograph, rotated or mirrored."""
    height, width = photograph.shape[:2]
    crop = int(min(height, width) * rng.uniform(0.4, 1.0))
    top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
    cut = Image.fromarray(photograph[top : top + crop, left : left + crop]).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    turned = np.rot90(np.asarray(cut), int(rng.integers(4)))
    return np.ascontiguousarray(turned[:, ::-1] if rng.random() < 0.5 else turned)


def _cover(label: str, x: float, y: float, radius: float, side: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (side, side), 0 to 1: the share of each pixel that the shape covers, at a random angle."""
    angle = rng.uniform(0, 2 * math.pi)
    canvas = Image.new("L", (side * _FINER, side * _FINER))
    ImageDraw.Draw(canvas).polygon([((x + radius * dx) * _FINER, (y + radius * dy) * _FINER)
                                    for dx, dy in _outline(label, angle)], fill=255)  # fmt: skip
    return np.asarray(canvas.reduce(_FINER), np.float32) / np.float32(255)


def _contrast(mask: np.ndarray, fill: np.ndarray, background: np.ndarray) -> float:
    """The median difference along the mask's edge, in the colour channel that differs most: 0 to 255."""
    near = _blurred(mask.astype(np.float32), 1.0)
    edge = (near > 0.02) & (near < 0.98)
    return float(np.median(np.abs(fill[edge].astype(np.int16) - background[edge]).max(axis=1)))


def _blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    """float32, values 0 to 1, in steps of 1 / 255."""
    image = Image.fromarray((values * 255 + 0.5).astype(np.uint8)).filter(ImageFilter.GaussianBlur(deviation))
    return np.asarray(image, np.float32) / np.float32(255)


def _outline(label: str, angle: float) -> list[tuple[float, float]]:
    """The corners of the shape in the unit circle."""
    corners = {"circle": 64, "square": 4, "triangle": 3, "star": 10}[label]
    radii = [1.0 if label != "star" or k % 2 == 0 else 0.5 for k in range(corners)]
    turns = [angle + 2 * math.pi * k / corners for k in range(corners)]
    return [(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]


# Photographs ------------------------------------------------------------------------------------------------


def photographs_in(folder: Path) -> list[np.ndarray]:
    """Every JPEG under a folder, sorted, the shorter side resized to 192 pixels: uint8 (height, width, 3)."""
    from lake.images import decode

    images = []
    for path in files_under(folder):
        image = decode.pixels(decode.open_image(path.read_bytes()), shortest_side=_PHOTOGRAPH_SIDE)
        scale = _PHOTOGRAPH_SIDE / min(image.size)
        images.append(np.asarray(image.resize([max(_PHOTOGRAPH_SIDE, round(s * scale)) for s in image.size])))
    return images


def sample_photographs() -> list[np.ndarray]:
    """Photographs of installed packages: two of scikit-learn, and every 20th solar cell of elpv-dataset."""
    from search_app.demo.cells import cells, folder

    images = []
    # Importing sklearn.datasets would take seconds.
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    for path in sorted(Path(package.origin).parent.glob("datasets/images/*.jpg")):
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB").resize((256, _PHOTOGRAPH_SIDE))))
    for cell in cells()[::20]:
        with Image.open(folder() / cell.path) as image:
            images.append(np.asarray(image.convert("RGB").resize((_PHOTOGRAPH_SIDE, _PHOTOGRAPH_SIDE))))
    return images


# Colour alone ---------------------------------------------------------------------------------------------


def colour_alone(train: Sequence[Drawing], held_out: Sequence[Drawing], bits: int = 4) -> dict[str, float]:
    """{"miou", "accuracy", "background"} of a classifier that knows only the colour of a pixel.

    It is the best such classifier at `bits` bits per channel: each colour gets the most frequent class of its training
    pixels, with classes weighted equally; without the weights it would predict only background. `background` is the
    mean intersection over union of that prediction. Each value is 0 to 1.
    """
    from training.metrics.segmentation_metrics import compare

    size = len(SHAPES) + 1
    counts = np.zeros((size, 1 << 3 * bits))
    for drawing in train:
        code = _colour(drawing, bits) + drawing.classes().astype(np.int64).ravel() * counts.shape[1]
        counts += np.bincount(code, minlength=counts.size).reshape(counts.shape)
    likely = (counts / counts.sum(axis=1, keepdims=True)).argmax(axis=0).astype(np.uint8)
    ground_truths = [drawing.classes() for drawing in held_out]
    masks = [likely[_colour(drawing, bits)].reshape(drawing.image.height, drawing.image.width) for drawing in held_out]
    right = float(np.mean([(t == s).mean() for t, s in zip(ground_truths, masks, strict=True)]))
    nothing = [np.zeros_like(t) for t in ground_truths]
    return {
        "miou": compare(ground_truths, masks, SHAPES).miou(),
        "accuracy": right,
        "background": compare(ground_truths, nothing, SHAPES).miou(),
    }


def _colour(drawing: Drawing, bits: int) -> np.ndarray:
    """int64 (pixels,): the colour code of each pixel."""
    levels = np.asarray(drawing.image).astype(np.int64).reshape(-1, 3) >> (8 - bits)
    code: np.ndarray = (levels[:, 0] << 2 * bits) | (levels[:, 1] << bits) | levels[:, 2]
    return code


# Into a lake ----------------------------------------------------------------------------------------------


def bring_in(lake: Lake, drawn: Sequence[Drawing], slice: str) -> list[str]:
    """Stores the images with boxes and masks as labels, and makes a slice of them. Returns their image ids."""
    from lake import ids, slices
    from lake.formats.item import Item
    from lake.ingest.ingest import ingest_items

    files = [drawing.png() for drawing in drawn]
    items = [Item(f"{slice}/{k:05d}.png", data=data, read_annotations=_Saying(drawing))
             for k, (drawing, data) in enumerate(zip(drawn, files, strict=True))]  # fmt: skip
    report = ingest_items(lake, items)
    if report.rejected:
        raise ValueError(f"{len(report.rejected)} drawings were rejected: {report.rejected[0]}")
    names = [ids.image_id(data) for data in files]
    slices.create(lake, slice, ids=names)
    return names


@dataclass(frozen=True)
class _Saying:
    """The ground truth of a drawing: boxes for detection, masks for segmentation."""

    drawing: Drawing

    def __call__(self, width: int, height: int) -> Annotations:
        boxes, rows = [], []
        for shape in self.drawing.shapes:
            x, y, across, down = shape.box
            boxes.append({"label": shape.label, "score": None, "x": x, "y": y, "width": across, "height": down})
            rows.append({"label": shape.label, "score": None, "height": height, "width": width,
                          "counts": masks.encode(shape.mask)})  # fmt: skip
        ground_truths = [GroundTruth("detection", boxes=boxes), GroundTruth("segmentation", boxes=boxes, masks=rows)]
        return Annotations(ground_truths=ground_truths, annotator="shapes")
