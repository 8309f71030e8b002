"""Probes: a logistic regression on an embedder's vectors, optionally with a small hidden layer.

Features in, probabilities out; this module knows no lake and no images. Without a hidden layer the optimum is that of
scikit-learn's LogisticRegression. L-BFGS finds it (Nocedal and Wright, Numerical Optimization, 7.2); its first estimate
of the curvature is the classes' own (Böhning 1992, with each class's own factor instead of his bound), which needs a
third of the passes over the vectors. It begins on samples. Large inputs are multiplied in single precision; the loss is
added in double.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embeddings.embedders import torch_import
from lake.errors import BadInput

# Inputs with at least this many numbers are multiplied in single precision: twice as fast, half the memory.
SINGLE_FROM = 4_000_000
# The logits of a chunk fit in the processor's cache.
CHUNK = 4_096
# The most steps, and how many of the last steps describe the curvature.
STEPS, PAIRS = 1_000, 20
# Shares of the rows for the first stages; a sample smaller than SMALLEST_STAGE is skipped.
STAGES, SMALLEST_STAGE = (0.05, 0.25), 4_096
# Stop when the expected gain of a step is this share of the loss; single precision cannot resolve less.
STAGE_TOLERANCE, TOLERANCE_SINGLE, TOLERANCE_DOUBLE = 1e-2, 3e-7, 1e-8
# Rows that the classes' curvature is measured on: at least, and per dimension.
CURVED_ON, CURVED_BY = 8_192, 16
# A probe with a hidden layer: at least so many epochs, and steps; images a step; Adam's learning rate.
HIDDEN_EPOCHS, HIDDEN_STEPS, HIDDEN_BATCH, HIDDEN_RATE = 40, 400, 256, 3e-3


@dataclass(frozen=True)
class Probe:
    """`weights` (inputs, classes) and `bias` (classes,): softmax(inputs @ weights + bias).

    The inputs are the vectors or, with `hidden` = (weights (dim, units), bias (units,)), the outputs of a layer of
    rectified linear units.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    bias: np.ndarray
    hidden: tuple[np.ndarray, np.ndarray] | None = None

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """float64 (n, classes), rows adding up to 1, for unit vectors (n, dim)."""
        inputs = np.asarray(vectors, np.float64)
        if self.hidden is not None:
            inputs = np.maximum(inputs @ self.hidden[0] + self.hidden[1], 0.0)
        logits = inputs @ self.weights + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        out: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return out


def fit(
    vectors: np.ndarray,
    labels: Sequence[str],
    regularisation: float = 0.1,
    *,
    weights: np.ndarray | None = None,
    balanced: bool = False,
    hidden: int = 0,
    start: Probe | None = None,
    seed: int = 0,
) -> Probe:
    """Fits a multinomial logistic regression to vectors (n, dim) with finite numbers.

    It minimises the summed cross-entropy + regularisation / 2 |weights|^2, with a free bias. `regularisation`: above 0,
    the inverse of scikit-learn's C. `weights`: (n,), 0 or more, multiply the images' losses. `balanced`: every class
    has the same total weight. `hidden`: units of a hidden layer, 0 for none; seeded. `start`: a probe on the same
    vectors to begin from; classes that it does not have begin at zero. Raises BadInput for fewer than two classes, for
    weights that do not fit, and for numbers that are not finite.
    """
    vectors = np.asarray(vectors)
    classes, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    names = tuple(classes.tolist())
    if len(names) < 2:
        raise BadInput(f"a classifier needs two classes or more; the labels have {list(names)}")
    if vectors.ndim != 2 or len(vectors) != len(codes):
        raise BadInput(f"vectors of shape {vectors.shape} for {len(codes)} labels")
    if not 0 < regularisation < np.inf:
        raise BadInput(f"regularisation is {regularisation}; it must be a number above 0")
    each = image_weights(codes, len(names), weights, balanced)
    if not np.isfinite(vectors.sum(dtype=np.float64)):
        raise BadInput("a vector has a number that is not finite")
    if hidden:
        return _fit_hidden(vectors, codes, each, names, hidden, regularisation, seed)
    # For two classes scikit-learn has one column of weights, the difference of our two: each is penalised twice as
    # much.
    penalty = regularisation * (2.0 if len(names) == 2 else 1.0)
    order = np.random.default_rng(seed).permutation(len(codes))  # labels are often sorted
    theta = _minimise(vectors, codes, each, len(names), penalty, _begin(start, names, vectors.shape[1]), order)
    return Probe(names, theta[:-1], theta[-1])


def image_weights(codes: np.ndarray, classes: int, weights: np.ndarray | None, balanced: bool) -> np.ndarray:
    """float64 (n,): each image's weight, times n / (classes x images of its class) when balanced. Raises BadInput."""
    each = np.ones(len(codes)) if weights is None else np.asarray(weights, np.float64)
    if each.shape != codes.shape or not np.isfinite(each).all() or (each < 0).any():
        raise BadInput(f"weights must be {len(codes)} numbers from 0, one for each image")
    totals = np.bincount(codes, each, minlength=classes)
    if (totals == 0).any():
        raise BadInput("every class needs an image with a weight above 0")
    if balanced:
        each = each * (totals.sum() / (classes * totals))[codes]
    out: np.ndarray = each
    return out


def _fit_hidden(
    vectors: np.ndarray,
    codes: np.ndarray,
    weights: np.ndarray,
    classes: tuple[str, ...],
    units: int,
    regularisation: float,
    seed: int,
) -> Probe:
    """Minimises the objective of `fit`, with both layers' weights penalised, by Adam and a cosine learning rate.

    It runs on one thread: equal seeds then give equal weights, whatever the number of cores.
    """
    torch = torch_import.torch()
    generator, n = torch.Generator().manual_seed(seed), len(codes)
    # The coordinates of unit vectors are small: without the scale the first layer would hardly differ from zero.
    scale = 1 / max(float(np.sqrt((vectors.astype(np.float64) ** 2).mean())), 1e-12)
    x = torch.from_numpy(np.asarray(vectors, np.float32)) * scale
    y, weight = torch.from_numpy(codes), torch.from_numpy(np.asarray(weights, np.float32))
    layers = [torch.nn.utils.skip_init(torch.nn.Linear, *size) for size in ((x.shape[1], units), (units, len(classes)))]
    for layer in layers:
        torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        torch.nn.init.zeros_(layer.bias)
    network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
    optimiser = torch.optim.Adam(network.parameters(), lr=HIDDEN_RATE)
    steps = math.ceil(n / HIDDEN_BATCH)
    epochs = max(HIDDEN_EPOCHS, math.ceil(HIDDEN_STEPS / steps))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(epochs):
            for rows in torch.randperm(n, generator=generator).split(HIDDEN_BATCH):
                losses = torch.nn.functional.cross_entropy(network(x[rows]), y[rows], reduction="none")
                penalty = sum((layer.weight**2).sum() for layer in layers)
                optimiser.zero_grad()
                ((losses * weight[rows]).mean() + regularisation / (2 * n) * penalty).backward()
                optimiser.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    hidden, head = ((part.weight.detach().T.double().numpy(), part.bias.detach().double().numpy()) for part in layers)
    return Probe(classes, *head, (hidden[0] * scale, hidden[1]))


# ----------------------------------------------------------------------------------------------------------


class _Problem:
    """The objective on a set of rows. `theta`: float64 (dim + 1, classes), the bias in the last row."""

    def __init__(self, x: np.ndarray, codes: np.ndarray, each: np.ndarray, classes: int, penalty: float) -> None:
        self.x, self.codes, self.classes, self.penalty = x, codes, classes, penalty
        self.each = each.astype(x.dtype)

    def evaluate(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its gradient."""
        total, gradient = 0.0, np.zeros(theta.shape)
        for start in range(0, len(self.x), CHUNK):
            rows = slice(start, start + CHUNK)
            x, each, own = self.x[rows], self.each[rows], self.codes[rows]
            probabilities, losses = _probabilities(x, theta, own)
            total += float(each.astype(np.float64) @ losses)
            probabilities *= each[:, None]
            probabilities[np.arange(len(own)), own] -= each
            gradient[:-1] += x.T @ probabilities
            gradient[-1] += probabilities.sum(axis=0)
        gradient[:-1] += self.penalty * theta[:-1]
        return total + self.penalty / 2 * float((theta[:-1] ** 2).sum()), gradient


def _probabilities(x: np.ndarray, theta: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities (n, classes) of every row, and its cross-entropy, float64 (n,)."""
    z = x @ theta[:-1].astype(x.dtype)
    z += theta[-1].astype(x.dtype)
    z -= z.max(axis=1, keepdims=True)
    true = z[np.arange(len(z)), codes].astype(np.float64)
    np.exp(z, out=z)
    summed = z.sum(axis=1, keepdims=True)
    z /= summed
    return z, np.log(summed[:, 0].astype(np.float64)) - true


class _Curvature:
    """c_k G + penalty for every class k: G is the mean of [x, 1] [x, 1]^T, c_k the sum of the class's p (1 - p).

    One eigendecomposition serves all classes and samples.
    """

    def __init__(self, x: np.ndarray, codes: np.ndarray, each: np.ndarray) -> None:
        rows = max(CURVED_BY * x.shape[1], CURVED_ON)
        self.x, self.codes, self.each = x[:rows], codes[:rows], each[:rows]
        part = np.hstack([self.x, np.ones((len(self.x), 1), x.dtype)])
        values, self.axes = np.linalg.eigh((part.T @ part).astype(np.float64) / len(part))
        self.values = np.maximum(values, 0.0)[:, None]

    def update(self, problem: _Problem, theta: np.ndarray) -> None:
        """Measures the problem's curvature at theta."""
        p = _probabilities(self.x, theta, self.codes)[0].astype(np.float64)
        total = float(problem.each.sum(dtype=np.float64))
        factors = np.einsum("nk,nk,n->k", p, 1 - p, self.each) / self.each.sum() * total
        # A class with probabilities near 0 and 1 everywhere has almost no curvature.
        self.curvature = self.values * np.maximum(factors, 1e-6 * total) + problem.penalty

    def solve(self, v: np.ndarray) -> np.ndarray:
        """The inverse times v (dim + 1, classes)."""
        out: np.ndarray = self.axes @ ((self.axes.T @ v) / self.curvature)
        return out


def _minimise(
    vectors: np.ndarray,
    codes: np.ndarray,
    each: np.ndarray,
    classes: int,
    penalty: float,
    theta: np.ndarray,
    order: np.ndarray,
) -> np.ndarray:
    n, dim = vectors.shape
    if n < dim:
        # The optimum lies in the span of the vectors: n coordinates are enough.
        x64 = vectors.astype(np.float64)
        values, axes = np.linalg.eigh(x64 @ x64.T)
        positive = values > values[-1] * 1e-12
        basis = x64.T @ (axes[:, positive] / np.sqrt(values[positive]))
        inner = np.vstack([basis.T @ theta[:-1], theta[-1:]])
        optimum = _minimise_in(x64 @ basis, codes, each, classes, penalty, inner, order)
        return np.vstack([basis @ optimum[:-1], optimum[-1:]])
    return _minimise_in(vectors, codes, each, classes, penalty, theta, order)


def _minimise_in(
    vectors: np.ndarray,
    codes: np.ndarray,
    each: np.ndarray,
    classes: int,
    penalty: float,
    theta: np.ndarray,
    order: np.ndarray,
) -> np.ndarray:
    n = len(vectors)
    dtype = np.float32 if vectors.size >= SINGLE_FROM else np.float64
    x = np.ascontiguousarray(vectors[order], dtype=dtype)
    codes, each = codes[order], each[order]
    tolerance = TOLERANCE_SINGLE if dtype is np.float32 else TOLERANCE_DOUBLE
    curvature = _Curvature(x, codes, each)
    for share in (*STAGES, 1.0):
        rows = int(n * share)
        if share == 1.0 or (rows >= SMALLEST_STAGE and len(np.unique(codes[:rows])) == classes):
            # With its share of the penalty a sample overfits; with the whole penalty it ends nearer to the optimum.
            part = _Problem(x[:rows], codes[:rows], each[:rows], classes, penalty)
            theta = _descend(part, curvature, theta, tolerance if share == 1.0 else STAGE_TOLERANCE)
    return theta


def _descend(problem: _Problem, curvature: _Curvature, theta: np.ndarray, tolerance: float) -> np.ndarray:
    curvature.update(problem, theta)
    pairs: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=PAIRS)
    value, gradient = problem.evaluate(theta)
    for _ in range(STEPS):
        step = _step(curvature, pairs, gradient)
        slope = float((gradient * step).sum())  # below 0; half of it is the gain of the step if the loss is a parabola
        while True:
            new_value, new_gradient = problem.evaluate(theta + step)
            if new_value <= value + 1e-4 * slope:
                break
            # To the minimum of a parabola through the known values and slope.
            shorter = min(max(-slope / (2 * (new_value - value - slope)), 0.1), 0.5)
            step, slope = shorter * step, shorter * slope
            if -slope <= 1e-10 * value:  # only rounding is left
                return theta
        pairs.append((step, new_gradient - gradient))
        theta, value, gradient = theta + step, new_value, new_gradient
        if -slope / 2 <= tolerance * value:
            return theta
    return theta


def _step(curvature: _Curvature, pairs: Sequence[tuple[np.ndarray, np.ndarray]], gradient: np.ndarray) -> np.ndarray:
    """The step to the minimum of the quadratic that the last steps describe."""
    direction, shares = -gradient, []
    for step_before, change in reversed(pairs):
        shares.append(float((step_before * direction).sum() / (step_before * change).sum()))
        direction = direction - shares[-1] * change
    step = curvature.solve(direction)
    if pairs:
        step_before, change = pairs[-1]
        step *= (step_before * change).sum() / (change * curvature.solve(change)).sum()
    for (step_before, change), share in zip(pairs, reversed(shares), strict=True):
        step += step_before * (share - float((change * step).sum() / (step_before * change).sum()))
    return step


def _begin(start: Probe | None, names: tuple[str, ...], dim: int) -> np.ndarray:
    theta = np.zeros((dim + 1, len(names)))
    if start is None:
        return theta
    if start.hidden is not None or len(start.weights) != dim:
        raise BadInput(f"a probe on vectors of {dim} numbers cannot begin from a probe on {len(start.weights)} inputs")
    for k, name in enumerate(names):
        if name in start.classes:
            theta[:-1, k] = start.weights[:, start.classes.index(name)]
            theta[-1, k] = start.bias[start.classes.index(name)]
    return theta
