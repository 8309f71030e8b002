"""Vectors to two dimensions, for looking: t-SNE, whose repulsion is summed on a grid by FFT.

The gradient is that of van der Maaten and Hinton (2008); the grid is the idea of Linderman et al. (Nature Methods 16,
2019), with bilinear weights in place of their polynomials; the start is PCA (Kobak and Berens, Nature Communications
10, 2019). One step costs the neighbours and one grid, not the square of the number of points, and nothing is compiled.
It knows no lake.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from embeddings.vectors import principal_components
from embeddings.vectors.neighbours import nearest, neighbours
from embeddings.vectors.principal_components import reduce
from lake.extras import require

Progress = Callable[[float], None]

# Neighbours that attract, and the perplexity (how many of them count). More of both cost time and gain little:
# see docs/map.md.
NEIGHBOURS = 15
PERPLEXITY = 5.0
# Steps with attraction magnified, which brings islands together, then as it is.
PHASES = ((12.0, 100), (1.0, 250))
# Below this, islands mean nothing: PCA shows what there is.
FEWEST = 8
PLACED_BY = 5
_SPACING = 0.5  # of the grid, where the kernel's width is 1
_COARSEST, _FINEST = 50, 1_000  # cells a side, at least and at most
_FEW = 1_000  # up to here every pair is summed
_LONGEST = 5.0  # a step, as in openTSNE: without a bound few points, or many copies, fly apart for ever


def project(points: np.ndarray, seed: int = 0, progress: Progress | None = None) -> np.ndarray:
    """A place for each of the points (n, dim, finite), float32 (n, 2) in [-1, 1], the middle at 0.

    The same points and seed give the same places on the same machine. Points that are near each other in `points`
    are near each other here, mostly; distances between islands and the sizes of islands mean nothing. `progress` is
    told the share that is done, 0 to 1.
    """
    n = len(points)
    start = _first_two(points)
    if n < FEWEST or not np.ptp(points, axis=0).any():
        return _framed(start)
    tell = progress or (lambda share: None)
    near, distances = neighbours(points, min(NEIGHBOURS, n - 1))
    tell(0.1)
    weights = _affinities(distances.astype(np.float64) ** 2)
    # Equal points start apart by chance, or nothing would ever part them.
    chance = np.random.default_rng(seed).normal(size=(n, 2))
    start = start / max(float(start.std(axis=0).max()), 1e-12) + 0.01 * chance
    return _framed(_descend(near, weights, (1e-4 * start).astype(np.float32), lambda s: tell(0.1 + 0.9 * s)))


def place(points: np.ndarray, places: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Where new points (m, dim) belong on a map of `points` (n, dim) that stand at `places` (n, 2): float32 (m, 2).

    The mean place of the neighbours, the nearest counting most and those that stand elsewhere on the map than the
    nearest hardly at all: between two islands there is nothing.
    """
    near, distances = nearest(new, points, min(PLACED_BY, len(points)))
    stand = places[near].astype(np.float64)
    scale = np.maximum(distances.mean(axis=1, keepdims=True), 1e-12)
    away = np.linalg.norm(stand - stand[:, :1], axis=2)
    width = float(np.ptp(places, axis=0).max()) / 50 or 1.0
    weights = np.exp(-distances / scale - away / width)
    weights /= weights.sum(axis=1, keepdims=True)
    found: np.ndarray = (stand * weights[:, :, None]).sum(axis=1).astype(np.float32)
    return found


def method_of(n: int) -> tuple[str, str]:
    """The name of what `project` does with n points, and its parameters as JSON."""
    if n < FEWEST:
        return "pca", "{}"
    steps = [[magnified, count] for magnified, count in PHASES]
    facts = {"dim": principal_components.DIM, "neighbours": NEIGHBOURS, "perplexity": PERPLEXITY, "phases": steps}
    return "tsne", json.dumps(facts, sort_keys=True)


def _first_two(points: np.ndarray) -> np.ndarray:
    axes = reduce(points, 0, 2)
    return np.pad(axes, ((0, 0), (0, 2 - axes.shape[1]))).astype(np.float64)


def _framed(places: np.ndarray) -> np.ndarray:
    if not len(places):
        return np.zeros((0, 2), np.float32)
    low, high = places.min(axis=0), places.max(axis=0)
    half = float((high - low).max()) / 2 or 1.0
    framed: np.ndarray = ((places - (low + high) / 2) / half).astype(np.float32)
    return framed


def _affinities(squares: np.ndarray) -> np.ndarray:
    """Rows of weights that sum to 1, (n, k): Gaussians, each as wide as makes its perplexity what is wanted."""
    n, k = squares.shape
    wanted = np.log(min(PERPLEXITY, max(1.0, k / 3)))
    squares = squares - squares[:, :1]
    precision = 1 / np.maximum(squares.mean(axis=1), 1e-12)
    low, high = np.zeros(n), np.full(n, np.inf)
    for _ in range(40):
        weights = np.exp(-squares * precision[:, None])
        total = weights.sum(axis=1)
        wide = np.log(total) + precision * (squares * weights).sum(axis=1) / total > wanted
        low, high = np.where(wide, precision, low), np.where(wide, high, precision)
        # Neighbours all as far as the first have no width; their precision stops at what is still a number.
        precision = np.minimum(np.where(np.isinf(high), precision * 2, (low + high) / 2), 1e12)
    weights = np.exp(-squares * precision[:, None])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _descend(near: np.ndarray, weights: np.ndarray, places: np.ndarray, tell: Progress) -> np.ndarray:
    """Gradient descent with momentum and a gain of its own for each coordinate, as in the first t-SNE."""
    sparse = require("scipy.sparse", "scipy", "cluster")
    n, k = near.shape
    shares = (weights / (2 * n)).astype(np.float32)
    graph = sparse.csr_matrix((shares.ravel(), near.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    velocity, gains = np.zeros_like(places), np.ones_like(places)
    steps, total = 0, sum(count for _, count in PHASES)
    for magnified, count in PHASES:
        rate = n / magnified  # Belkina et al., Nature Communications 10, 2019
        for _ in range(count):
            x, y = np.ascontiguousarray(places[:, 0]), np.ascontiguousarray(places[:, 1])
            apart = (x[near] - x[:, None]) ** 2 + (y[near] - y[:, None]) ** 2
            graph.data = (shares / (1 + apart)).ravel()
            # Each pair pulls at both of its ends.
            pulls = np.asarray(graph.sum(axis=1)).ravel() + np.asarray(graph.sum(axis=0)).ravel()
            attraction = places * pulls[:, None] - (graph @ places + graph.T @ places)
            gradient = magnified * attraction - (_repulsion(places) if n > _FEW else _repulsion_of_pairs(places))
            gains = np.where((gradient > 0) != (velocity > 0), gains + 0.2, gains * 0.8).clip(0.01)
            velocity = (0.5 if steps < 100 else 0.8) * velocity - rate * (gains * gradient).astype(np.float32)
            velocity *= np.minimum(1, _LONGEST / np.maximum(np.linalg.norm(velocity, axis=1, keepdims=True), 1e-12))
            places = (places + velocity).astype(np.float32)
            places -= places.mean(axis=0)
            steps += 1
            tell(steps / total)
    return places


def _repulsion_of_pairs(places: np.ndarray) -> np.ndarray:
    """The same as `_repulsion`, exactly."""
    x, y = places.T
    right, up = x[:, None] - x, y[:, None] - y
    near = 1 / (1 + right**2 + up**2)
    squares = near**2
    found = np.stack([(squares * right).sum(axis=1), (squares * up).sum(axis=1)], axis=1)
    return np.asarray(found / max(float(near.sum(dtype=np.float64)) - len(places), 1e-12))


def _repulsion(places: np.ndarray) -> np.ndarray:
    """What the points do to each other, (n, 2): sum over j of q_ij^2 Z (y_i - y_j), q_ij = 1 / (1 + d_ij^2) / Z.

    The points' charges are spread on a grid, the sums are convolutions there, and are read off it again.
    """
    fft = require("scipy.fft", "scipy", "cluster")
    low = places.min(axis=0)
    moved = places - low
    extent = float(moved.max())
    step = max(min(_SPACING, max(extent, 1e-9) / _COARSEST), extent / _FINEST)
    side = fft.next_fast_len(2 * (int(extent / step) + 3), True)  # twice, so that nothing comes round the edge
    cell = (moved / step).astype(np.int64)
    part = (moved / step - cell).astype(np.float32)
    first = cell[:, 0] * side + cell[:, 1]
    right, up = part[:, 0], part[:, 1]
    corners = ((0, (1 - right) * (1 - up)), (1, (1 - right) * up), (side, right * (1 - up)), (side + 1, right * up))
    along = np.arange(side)
    squares = (np.minimum(along, side - along) * step).astype(np.float32) ** 2
    kernel = 1 / (1 + squares[:, None] + squares[None, :])
    once, twice = fft.rfft2(kernel, workers=-1), fft.rfft2(kernel**2, workers=-1)

    def spread(charges: np.ndarray | None) -> np.ndarray:
        grid = np.zeros(side * side)
        for offset, weight in corners:
            grid += np.bincount(first + offset, weight if charges is None else weight * charges, minlength=side * side)
        return np.asarray(fft.rfft2(grid.astype(np.float32).reshape(side, side), workers=-1))

    def read(spectrum: np.ndarray) -> np.ndarray:
        grid = fft.irfft2(spectrum, s=(side, side), workers=-1).ravel()
        return np.asarray(sum(grid[first + offset] * weight for offset, weight in corners))

    ones = spread(None)
    total = float(read(ones * once).sum(dtype=np.float64)) - len(places)  # without each point and itself
    field = read(ones * twice)
    sums = [read(spread(moved[:, axis]) * twice) for axis in (0, 1)]
    found: np.ndarray = (moved * field[:, None] - np.stack(sums, axis=1)) / max(total, 1e-12)
    return found
