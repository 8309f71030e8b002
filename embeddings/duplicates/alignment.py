"""Measures whether two small pictures show the very same view: aligns and correlates them.

Vectors show that two images have the same kind of thing; a copy has the same thing in the same place. One picture is
moved and stretched, each axis by itself, until it fits the other best (Lucas and Kanade 1981, with gain and bias; from
coarse to fine). The result is their correlation, without the slow changes of light. This module knows no lake.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

SIDE = 48
# Pairs that a thread compares at once: their arrays fit into the processor's cache, and memory stays small.
AT_ONCE = 128
THREADS = 2
# Steps on the picture at a quarter, at half and at full size; more steps change nothing.
STEPS = (6, 5, 2)
# Pairs whose half-size pictures correlate less are not compared at full size: none of them would count as copies.
HOPELESS = 0.35
# Limits of the alignment: scale, shift (of half a side: an eighth of the side), and the share that both pictures show.
LEAST_SCALE, MOST_SCALE, MOST_SHIFT, LEAST_SHARED = 0.8, 1.25, 0.25, 0.6
# Grey levels by which the pixels of an empty picture differ from its middle at most; encoding a thumbnail adds some.
EVEN = 3.0
# Radius in pixels of the box mean that is subtracted, so that slow changes of light do not count.
SMOOTH = 5


def fingerprint(jpeg: bytes) -> np.ndarray:
    """A picture's grey values, uint8 (SIDE, SIDE), squashed to a square. For thumbnails made by the lake itself."""
    image = Image.open(io.BytesIO(jpeg), formats=("JPEG",))
    image.draft("L", (SIDE, SIDE))
    pixels: np.ndarray = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    return pixels


def fingerprints(jpegs: list[bytes]) -> np.ndarray:
    """uint8 (n, SIDE, SIDE)."""
    with ThreadPoolExecutor(THREADS) as pool:
        prints = [*pool.map(fingerprint, jpegs)]
    return np.stack(prints) if prints else np.empty((0, SIDE, SIDE), np.uint8)


def agreement(prints: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The correlation of each pair after alignment, float32 (pairs,): -1 to 1, higher is more similar.

    `prints` are `fingerprints`; `left` and `right` (pairs,) index them. Different photographs have 0.0 to 0.4, copies
    0.7 to 1. A picture without any structure, such as the view of a covered lens, has 1 with another one as bright,
    and 0 with every other.
    """
    rows = [slice(start, start + AT_ONCE) for start in range(0, len(left), AT_ONCE)]
    whole = prints.astype(np.float32)
    flat = _without_light(whole, SMOOTH)
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [*pool.map(lambda r: _agreement(whole, flat, left[r], right[r]), rows)]
    result = np.concatenate(parts) if parts else np.empty(0, np.float32)
    empty, brightness = _is_empty(whole), whole.mean(axis=(1, 2))
    both = empty[left] & empty[right]
    result[both] = np.abs(brightness[left] - brightness[right])[both] <= EVEN
    return result


def _is_empty(whole: np.ndarray) -> np.ndarray:
    """Whether each picture is one grey, but for noise: bool (n,). Of what is left of noise, nothing is a copy."""
    values = whole.reshape(len(whole), SIDE * SIDE)
    is_empty: np.ndarray = np.ptp(values, axis=1) <= 2 * EVEN
    return is_empty


def _agreement(whole: np.ndarray, flat: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    fixed, moving = whole[left], whole[right]
    fixed_small, moving_small = _halved(fixed), _halved(moving)
    transform = np.tile(np.array([1, 0, 1, 0], np.float32), (len(left), 1))
    transform = _fitted(_halved(fixed_small), _halved(moving_small), transform, STEPS[0])
    transform = _fitted(fixed_small, moving_small, transform, STEPS[1])
    correlation = _correlated(
        _without_light(fixed_small, SMOOTH // 2), _without_light(moving_small, SMOOTH // 2), transform
    )
    # Most pairs are nothing alike: only the others are compared at full size.
    hopeful = np.flatnonzero(correlation >= HOPELESS)
    if len(hopeful):
        finer = _fitted(fixed[hopeful], moving[hopeful], transform[hopeful], STEPS[2])
        correlation[hopeful] = _correlated(flat[left[hopeful]], flat[right[hopeful]], finer)
    return correlation


def _halved(pictures: np.ndarray) -> np.ndarray:
    n, side, _ = pictures.shape
    halved: np.ndarray = pictures.reshape(n, side // 2, 2, side // 2, 2).mean(axis=(2, 4))
    return halved


def _without_light(pictures: np.ndarray, radius: int) -> np.ndarray:
    """The pictures less their own mean over boxes of 2 x radius + 1 pixels."""
    width = 2 * radius + 1
    padded = np.pad(pictures, ((0, 0), (radius + 1, radius), (radius + 1, radius)), mode="edge")
    summed = padded.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    boxes = summed[:, width:, width:] - summed[:, :-width, width:] - summed[:, width:, :-width]
    boxes += summed[:, :-width, :-width]
    detail: np.ndarray = pictures - (boxes / width**2).astype(np.float32)
    return detail


def _grid(side: int) -> np.ndarray:
    return ((np.arange(side, dtype=np.float32) + 0.5) / side) * 2 - 1


def _moved(pictures: np.ndarray, transform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pictures sampled at x * scale + shift, both axes from -1 to 1, bilinear; and 1.0 where that is inside them.

    `transform` (n, 4): scale and shift along x, then along y.
    """
    side = pictures.shape[1]
    grid = _grid(side)
    x, y = (((transform[:, a : a + 1] * grid + transform[:, a + 1 : a + 2]) + 1) / 2 * side - 0.5 for a in (0, 2))
    inside = ((y > -0.5) & (y < side - 0.5))[:, :, None] & ((x > -0.5) & (x < side - 0.5))[:, None, :]
    x, y = np.clip(x, 0, side - 1), np.clip(y, 0, side - 1)
    column, row = np.minimum(x.astype(np.intp), side - 2), np.minimum(y.astype(np.intp), side - 2)
    right, down = (x - column)[:, None, :], (y - row)[:, :, None]
    # Along one axis and then the other: half the look-ups of doing both at once.
    above = np.take_along_axis(pictures, row[:, :, None], axis=1)
    below = np.take_along_axis(pictures, row[:, :, None] + 1, axis=1)
    rows = above + (below - above) * down
    first = np.take_along_axis(rows, column[:, None, :], axis=2)
    second = np.take_along_axis(rows, column[:, None, :] + 1, axis=2)
    moved: np.ndarray = first + (second - first) * right
    return moved, inside.astype(np.float32)


def _fitted(fixed: np.ndarray, moving: np.ndarray, transform: np.ndarray, steps: int) -> np.ndarray:
    """The transform after more Gauss-Newton steps on fixed = gain x moving(transform) + bias."""
    n, side, _ = fixed.shape
    grid = _grid(side)
    down, right = np.gradient(moving, axis=(1, 2))
    for _ in range(steps):
        moved, inside = _moved(moving, transform)
        along_x = _moved(right, transform)[0] * (side / 2)
        along_y = _moved(down, transform)[0] * (side / 2)
        slopes = [along_x * grid[None, None, :], along_x, along_y * grid[None, :, None], along_y, moved]
        columns = np.stack([*slopes, np.ones_like(moved)], axis=1) * inside[:, None]
        columns = columns.reshape(n, 6, -1)
        gram = columns @ columns.transpose(0, 2, 1)
        trace = np.trace(gram, axis1=1, axis2=2)[:, None, None]
        gram += np.eye(6, dtype=np.float32) * (1e-6 * trace + 1e-6)
        gram[:, range(4), range(4)] *= 1.02
        solution = np.linalg.solve(gram, columns @ (fixed * inside).reshape(n, -1, 1))[..., 0]
        gain = np.where(np.abs(solution[:, 4]) < 0.1, np.inf, solution[:, 4])
        transform = transform + np.clip(solution[:, :4] / gain[:, None], -0.1, 0.1).astype(np.float32)
        transform[:, [0, 2]] = np.clip(transform[:, [0, 2]], LEAST_SCALE, MOST_SCALE)
        transform[:, [1, 3]] = np.clip(transform[:, [1, 3]], -MOST_SHIFT, MOST_SHIFT)
    return transform


def _correlated(fixed: np.ndarray, moving: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Correlation where both pictures are; unaligned if that is higher, or if the aligned ones share too little."""
    moved, inside = _moved(moving, transform)
    aligned = _correlation(fixed, moved, inside)
    aligned[inside.mean(axis=(1, 2)) < LEAST_SHARED] = -1
    best: np.ndarray = np.maximum(aligned, _correlation(fixed, moving, np.ones_like(fixed)))
    return best


def _correlation(left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = weight.sum(axis=(1, 2), keepdims=True) + 1e-6
    a = (left - (left * weight).sum(axis=(1, 2), keepdims=True) / total) * weight
    b = (right - (right * weight).sum(axis=(1, 2), keepdims=True) / total) * weight
    # A grey level of difference over the whole picture is no structure.
    floor = total[:, 0, 0]
    scale = np.sqrt(np.maximum((a * a).sum(axis=(1, 2)), floor) * np.maximum((b * b).sum(axis=(1, 2)), floor))
    correlation: np.ndarray = ((a * b).sum(axis=(1, 2)) / scale).astype(np.float32)
    return correlation
