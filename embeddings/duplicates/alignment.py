"""Whether two small pictures show the very same view: they are laid over each other and compared.

Vectors say that two images show the same kind of thing; a copy shows the same thing in the same place. One picture is
moved and stretched, each axis by itself, until it fits the other best (Lucas and Kanade 1981, with gain and bias; from
coarse to fine), and what remains is their correlation, without the slow changes of light. It knows no lake.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

SIDE = 48
# Pairs compared at once by a thread: their arrays fit into the processor's cache and memory stays small.
AT_ONCE = 128
THREADS = 2
# Steps on the picture at a quarter, at half and at its whole size: more change nothing.
STEPS = (6, 5, 2)
# What the half-size pictures agree on at least when the whole ones agree on what counts as the same.
HOPELESS = 0.35
# How far a copy is taken to be stretched at most (to 0.8 or 1.25), moved (an eighth of the side), and cut.
LEAST_SCALE, MOST_SCALE, MOST_SHIFT, LEAST_SHARED = 0.8, 1.25, 0.25, 0.6
# Radius of the box mean that is taken away, in pixels of the whole picture: what is left is what light leaves alone.
SMOOTH = 5


def fingerprint(jpeg: bytes) -> np.ndarray:
    """A picture's grey values, uint8 (SIDE, SIDE), squashed to a square. For thumbnails made by the lake itself."""
    image = Image.open(io.BytesIO(jpeg), formats=("JPEG",))
    image.draft("L", (SIDE, SIDE))
    found: np.ndarray = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    return found


def fingerprints(jpegs: list[bytes]) -> np.ndarray:
    """uint8 (n, SIDE, SIDE)."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = [*pool.map(fingerprint, jpegs)]
    return np.stack(found) if found else np.empty((0, SIDE, SIDE), np.uint8)


def agreement(prints: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How well the pictures agree once they are aligned, float32 (pairs,): -1 to 1, higher is more alike.

    `prints` as `fingerprints` gives them; `left` and `right` (pairs,) say which of them to compare. Different
    photographs agree by 0.0 to 0.4, copies by 0.7 to 1. A picture without any structure agrees with nothing: 0.
    """
    rows = [slice(start, start + AT_ONCE) for start in range(0, len(left), AT_ONCE)]
    whole = prints.astype(np.float32)
    flat = _without_light(whole, SMOOTH)
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [*pool.map(lambda r: _agreement(whole, flat, left[r], right[r]), rows)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _agreement(whole: np.ndarray, flat: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    fixed, moving = whole[left], whole[right]
    fixed_small, moving_small = _halved(fixed), _halved(moving)
    place = np.tile(np.array([1, 0, 1, 0], np.float32), (len(left), 1))
    place = _fitted(_halved(fixed_small), _halved(moving_small), place, STEPS[0])
    place = _fitted(fixed_small, moving_small, place, STEPS[1])
    found = _correlated(_without_light(fixed_small, SMOOTH // 2), _without_light(moving_small, SMOOTH // 2), place)
    # Most pairs are nothing like each other: only the others are worth the whole picture.
    hope = np.flatnonzero(found >= HOPELESS)
    if len(hope):
        finer = _fitted(fixed[hope], moving[hope], place[hope], STEPS[2])
        found[hope] = _correlated(flat[left[hope]], flat[right[hope]], finer)
    return found


def _halved(pictures: np.ndarray) -> np.ndarray:
    n, side, _ = pictures.shape
    found: np.ndarray = pictures.reshape(n, side // 2, 2, side // 2, 2).mean(axis=(2, 4))
    return found


def _without_light(pictures: np.ndarray, radius: int) -> np.ndarray:
    """The pictures less their own mean over boxes of 2 x radius + 1 pixels."""
    width = 2 * radius + 1
    padded = np.pad(pictures, ((0, 0), (radius + 1, radius), (radius + 1, radius)), mode="edge")
    summed = padded.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    boxes = summed[:, width:, width:] - summed[:, :-width, width:] - summed[:, width:, :-width]
    boxes += summed[:, :-width, :-width]
    found: np.ndarray = pictures - (boxes / width**2).astype(np.float32)
    return found


def _grid(side: int) -> np.ndarray:
    return ((np.arange(side, dtype=np.float32) + 0.5) / side) * 2 - 1


def _moved(pictures: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pictures seen at x * scale + shift, both axes from -1 to 1, bilinear; and where that is inside of them.

    `place` (n, 4): scale and shift along x, then along y.
    """
    side = pictures.shape[1]
    grid = _grid(side)
    x, y = (((place[:, a : a + 1] * grid + place[:, a + 1 : a + 2]) + 1) / 2 * side - 0.5 for a in (0, 2))
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
    seen: np.ndarray = first + (second - first) * right
    return seen, inside.astype(np.float32)


def _fitted(fixed: np.ndarray, moving: np.ndarray, place: np.ndarray, steps: int) -> np.ndarray:
    """A better `place`, after so many Gauss-Newton steps on fixed = gain x moving(place) + bias."""
    n, side, _ = fixed.shape
    grid = _grid(side)
    down, right = np.gradient(moving, axis=(1, 2))
    for _ in range(steps):
        seen, inside = _moved(moving, place)
        along_x = _moved(right, place)[0] * (side / 2)
        along_y = _moved(down, place)[0] * (side / 2)
        slopes = [along_x * grid[None, None, :], along_x, along_y * grid[None, :, None], along_y, seen]
        columns = np.stack([*slopes, np.ones_like(seen)], axis=1) * inside[:, None]
        columns = columns.reshape(n, 6, -1)
        gram = columns @ columns.transpose(0, 2, 1)
        size = np.trace(gram, axis1=1, axis2=2)[:, None, None]
        gram += np.eye(6, dtype=np.float32) * (1e-6 * size + 1e-6)
        gram[:, range(4), range(4)] *= 1.02
        solved = np.linalg.solve(gram, columns @ (fixed * inside).reshape(n, -1, 1))[..., 0]
        gain = np.where(np.abs(solved[:, 4]) < 0.1, np.inf, solved[:, 4])
        place = place + np.clip(solved[:, :4] / gain[:, None], -0.1, 0.1).astype(np.float32)
        place[:, [0, 2]] = np.clip(place[:, [0, 2]], LEAST_SCALE, MOST_SCALE)
        place[:, [1, 3]] = np.clip(place[:, [1, 3]], -MOST_SHIFT, MOST_SHIFT)
    return place


def _correlated(fixed: np.ndarray, moving: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Correlation where both are; as they lie when that is more, or when the aligned ones share too little."""
    seen, inside = _moved(moving, place)
    aligned = _correlation(fixed, seen, inside)
    aligned[inside.mean(axis=(1, 2)) < LEAST_SHARED] = -1
    found: np.ndarray = np.maximum(aligned, _correlation(fixed, moving, np.ones_like(fixed)))
    return found


def _correlation(left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = weight.sum(axis=(1, 2), keepdims=True) + 1e-6
    a = (left - (left * weight).sum(axis=(1, 2), keepdims=True) / total) * weight
    b = (right - (right * weight).sum(axis=(1, 2), keepdims=True) / total) * weight
    # A grey level of difference over the whole picture is no structure.
    floor = total[:, 0, 0]
    scale = np.sqrt(np.maximum((a * a).sum(axis=(1, 2)), floor) * np.maximum((b * b).sum(axis=(1, 2)), floor))
    found: np.ndarray = ((a * b).sum(axis=(1, 2)) / scale).astype(np.float32)
    return found
