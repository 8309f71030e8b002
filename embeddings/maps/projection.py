"""Projects vectors to two dimensions with t-SNE, whose repulsion is summed on a grid by FFT.

The gradient is that of van der Maaten and Hinton (2008); the grid is the idea of Linderman et al. (Nature Methods 16,
2019), with bilinear weights in place of their polynomials; the start is PCA (Kobak and Berens, Nature Communications
10, 2019). A step costs the neighbours and one grid, not the square of the number of points, and nothing is compiled.
This module knows no lake.
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

# Neighbours that attract, and the perplexity (how many of them count). More of either costs time and gains little: see
# docs/map.md.
NEIGHBOURS = 15
PERPLEXITY = 5.0
# Exaggeration of the attraction and number of steps: first exaggerated, which brings islands together, then not.
PHASES = ((12.0, 100), (1.0, 250))
# With fewer points, islands mean nothing, and PCA is used.
MIN_POINTS = 8
PLACING_NEIGHBOURS = 5
_SPACING = 0.5  # of the grid, where the kernel's width is 1
_COARSEST, _FINEST = 50, 1_000  # cells a side, at least and at most
_FEW = 1_000  # up to this many points every pair is summed
_LONGEST = 5.0  # a step, as in openTSNE: without a bound few points, or many copies, fly apart for ever


def project(points: np.ndarray, seed: int = 0, progress: Progress | None = None) -> np.ndarray:
    """Positions of the points (n, dim, finite), float32 (n, 2) in [-1, 1], centred at 0.

    The same points and seed give the same positions on the same machine. Neighbours among the points are mostly
    neighbours on the map; distances between islands and the sizes of islands mean nothing. `progress` receives the
    share that is done, 0 to 1.
    """
    n = len(points)
    start = _first_two(points)
    if n < MIN_POINTS or not np.ptp(points, axis=0).any():
        return _normalised(start)
    report = progress or (lambda share: None)
    index, distances = neighbours(points, min(NEIGHBOURS, n - 1))
    report(0.1)
    weights = _affinities(distances.astype(np.float64) ** 2)
    # Noise separates equal points; nothing else would.
    noise = np.random.default_rng(seed).normal(size=(n, 2))
    start = start / max(float(start.std(axis=0).max()), 1e-12) + 0.01 * noise
    return _normalised(_descend(index, weights, (1e-4 * start).astype(np.float32), lambda s: report(0.1 + 0.9 * s)))


def place(points: np.ndarray, positions: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Positions of new points (m, dim) on the map of `points` (n, dim) with `positions` (n, 2): float32 (m, 2).

    A new point gets the weighted mean position of its neighbours. Nearer neighbours weigh more; those far from the
    nearest one on the map weigh hardly anything, so no point lands between two islands.
    """
    index, distances = nearest(new, points, min(PLACING_NEIGHBOURS, len(points)))
    neighbour_positions = positions[index].astype(np.float64)
    scale = np.maximum(distances.mean(axis=1, keepdims=True), 1e-12)
    spread = np.linalg.norm(neighbour_positions - neighbour_positions[:, :1], axis=2)
    typical_spread = float(np.ptp(positions, axis=0).max()) / 50 or 1.0
    weights = np.exp(-distances / scale - spread / typical_spread)
    weights /= weights.sum(axis=1, keepdims=True)
    placed: np.ndarray = (neighbour_positions * weights[:, :, None]).sum(axis=1).astype(np.float32)
    return placed


def method_of(n: int) -> tuple[str, str]:
    """The method `project` uses for n points, and its parameters as JSON."""
    if n < MIN_POINTS:
        return "pca", "{}"
    steps = [[exaggeration, count] for exaggeration, count in PHASES]
    facts = {"dim": principal_components.DIM, "neighbours": NEIGHBOURS, "perplexity": PERPLEXITY, "phases": steps}
    return "tsne", json.dumps(facts, sort_keys=True)


def _first_two(points: np.ndarray) -> np.ndarray:
    axes = reduce(points, 0, 2)
    return np.pad(axes, ((0, 0), (0, 2 - axes.shape[1]))).astype(np.float64)


def _normalised(positions: np.ndarray) -> np.ndarray:
    if not len(positions):
        return np.zeros((0, 2), np.float32)
    low, high = positions.min(axis=0), positions.max(axis=0)
    half = float((high - low).max()) / 2 or 1.0
    normalised: np.ndarray = ((positions - (low + high) / 2) / half).astype(np.float32)
    return normalised


def _affinities(squares: np.ndarray) -> np.ndarray:
    """Rows of weights that sum to 1, (n, k): Gaussians whose width gives each row the perplexity PERPLEXITY."""
    n, k = squares.shape
    target_entropy = np.log(min(PERPLEXITY, max(1.0, k / 3)))
    squares = squares - squares[:, :1]
    precision = 1 / np.maximum(squares.mean(axis=1), 1e-12)
    low, high = np.zeros(n), np.full(n, np.inf)
    for _ in range(40):
        weights = np.exp(-squares * precision[:, None])
        total = weights.sum(axis=1)
        too_wide = np.log(total) + precision * (squares * weights).sum(axis=1) / total > target_entropy
        low, high = np.where(too_wide, precision, low), np.where(too_wide, high, precision)
        # Neighbours all as far as the first have no width; the limit keeps their precision finite.
        precision = np.minimum(np.where(np.isinf(high), precision * 2, (low + high) / 2), 1e12)
    weights = np.exp(-squares * precision[:, None])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _descend(index: np.ndarray, weights: np.ndarray, positions: np.ndarray, report: Progress) -> np.ndarray:
    """Gradient descent with momentum and a gain for each coordinate, as in the first t-SNE."""
    sparse = require("scipy.sparse", "scipy", "cluster")
    n, k = index.shape
    shares = (weights / (2 * n)).astype(np.float32)
    graph = sparse.csr_matrix((shares.ravel(), index.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    velocity, gains = np.zeros_like(positions), np.ones_like(positions)
    steps, total = 0, sum(count for _, count in PHASES)
    for exaggeration, count in PHASES:
        rate = n / exaggeration  # Belkina et al., Nature Communications 10, 2019
        for _ in range(count):
            x, y = np.ascontiguousarray(positions[:, 0]), np.ascontiguousarray(positions[:, 1])
            squared = (x[index] - x[:, None]) ** 2 + (y[index] - y[:, None]) ** 2
            graph.data = (shares / (1 + squared)).ravel()
            # Each pair pulls at both of its ends.
            pulls = np.asarray(graph.sum(axis=1)).ravel() + np.asarray(graph.sum(axis=0)).ravel()
            attraction = positions * pulls[:, None] - (graph @ positions + graph.T @ positions)
            gradient = exaggeration * attraction - (
                _repulsion(positions) if n > _FEW else _repulsion_of_pairs(positions)
            )
            gains = np.where((gradient > 0) != (velocity > 0), gains + 0.2, gains * 0.8).clip(0.01)
            velocity = (0.5 if steps < 100 else 0.8) * velocity - rate * (gains * gradient).astype(np.float32)
            velocity *= np.minimum(1, _LONGEST / np.maximum(np.linalg.norm(velocity, axis=1, keepdims=True), 1e-12))
            positions = (positions + velocity).astype(np.float32)
            positions -= positions.mean(axis=0)
            steps += 1
            report(steps / total)
    return positions


def _repulsion_of_pairs(positions: np.ndarray) -> np.ndarray:
    """The exact forces of `_repulsion`, from every pair."""
    x, y = positions.T
    right, up = x[:, None] - x, y[:, None] - y
    kernel = 1 / (1 + right**2 + up**2)
    squares = kernel**2
    forces = np.stack([(squares * right).sum(axis=1), (squares * up).sum(axis=1)], axis=1)
    return np.asarray(forces / max(float(kernel.sum(dtype=np.float64)) - len(positions), 1e-12))


def _repulsion(positions: np.ndarray) -> np.ndarray:
    """Repulsive forces (n, 2): sum over j of q_ij^2 Z (y_i - y_j), q_ij = 1 / (1 + d_ij^2) / Z.

    The points' charges are spread on a grid, convolved there by FFT, and the sums are read off the grid.
    """
    fft = require("scipy.fft", "scipy", "cluster")
    low = positions.min(axis=0)
    shifted = positions - low
    extent = float(shifted.max())
    step = max(min(_SPACING, max(extent, 1e-9) / _COARSEST), extent / _FINEST)
    side = fft.next_fast_len(2 * (int(extent / step) + 3), True)  # twice as wide, so that nothing wraps round the edge
    cell = (shifted / step).astype(np.int64)
    fraction = (shifted / step - cell).astype(np.float32)
    first = cell[:, 0] * side + cell[:, 1]
    right, up = fraction[:, 0], fraction[:, 1]
    corners = ((0, (1 - right) * (1 - up)), (1, (1 - right) * up), (side, right * (1 - up)), (side + 1, right * up))
    along = np.arange(side)
    squares = (np.minimum(along, side - along) * step).astype(np.float32) ** 2
    kernel = 1 / (1 + squares[:, None] + squares[None, :])
    kernel_spectrum, squared_spectrum = fft.rfft2(kernel, workers=-1), fft.rfft2(kernel**2, workers=-1)

    def spread(charges: np.ndarray | None) -> np.ndarray:
        grid = np.zeros(side * side)
        for offset, weight in corners:
            grid += np.bincount(first + offset, weight if charges is None else weight * charges, minlength=side * side)
        return np.asarray(fft.rfft2(grid.astype(np.float32).reshape(side, side), workers=-1))

    def read(spectrum: np.ndarray) -> np.ndarray:
        grid = fft.irfft2(spectrum, s=(side, side), workers=-1).ravel()
        return np.asarray(sum(grid[first + offset] * weight for offset, weight in corners))

    ones = spread(None)
    total = float(read(ones * kernel_spectrum).sum(dtype=np.float64)) - len(positions)  # without each point and itself
    field = read(ones * squared_spectrum)
    sums = [read(spread(shifted[:, axis]) * squared_spectrum) for axis in (0, 1)]
    forces: np.ndarray = (shifted * field[:, None] - np.stack(sums, axis=1)) / max(total, 1e-12)
    return forces
