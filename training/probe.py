"""The smallest model there is: a logistic head on an embedder's vectors, with a small hidden layer if asked.

Features in, probabilities out. It does not know lakes or images. The head is scikit-learn's LogisticRegression (same
objective, same optimum), found by Newton's method: each step is solved by conjugate gradients, whose preconditioner is
the curvature of the classes on their own (Böhning 1992, with each class's own factor instead of his bound). Early steps
look at a sample. Large inputs are multiplied in single precision; the loss is added in double.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lake.errors import BadInput

# From this many numbers on, products are made in single precision: twice as fast, half the memory.
SINGLE_FROM = 4_000_000
# A chunk's logits stay in the processor's cache between the product and what is done with it.
CHUNK = 4_096
# A step is solved until this share of its residual is left: what it may leave undone is the square of it.
FORCING = 0.15
STEPS, INNER = 100, 200
# Shares of the rows that are looked at, one after the other; a sample smaller than this is not worth a stage.
STAGES, SMALLEST_STAGE = (0.05, 0.25), 4_096
STAGE_TOLERANCE = 1e-3
# Of the loss: what the last step may still have gained. What is left then is the square of FORCING times that.
TOLERANCE = 1e-6
# Of the loss: a residual worth less than this is left alone. Single precision could not tell it from rounding.
NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class Probe:
    """`weights` (inputs, classes) and `bias` (classes,): softmax(inputs @ weights + bias).

    The inputs are the vectors, or, with `hidden` = (weights (dim, units), bias (units,)), what a layer of rectified
    linear units makes of them.
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
    """A multinomial logistic regression of vectors (n, dim) with finite numbers.

    It minimises the summed cross-entropy + regularisation / 2 |weights|^2, the bias being free: `regularisation`, above
    0, is the inverse of scikit-learn's C. `weights`: (n,), 0 or more, multiply the images' losses; `balanced` has every
    class weigh the same. `hidden`: units of a hidden layer, 0 for none; seeded. `start`: a head on the same vectors to
    begin from; classes it does not know begin at zero. Raises BadInput for fewer than two classes, for weights that do
    not fit, and for numbers that are not finite.
    """
    vectors = np.asarray(vectors)
    classes, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    names = tuple(classes.tolist())
    if len(names) < 2:
        raise BadInput(f"a classifier needs two classes or more; the labels have {list(names)}")
    if vectors.ndim != 2 or len(vectors) != len(codes):
        raise BadInput(f"vectors of shape {vectors.shape} for {len(codes)} labels")
    if not 0 < regularisation < np.inf:
        raise BadInput(f"regularisation is {regularisation}; it is a number above 0")
    each = image_weights(codes, len(names), weights, balanced)
    if not np.isfinite(vectors.sum(dtype=np.float64)):
        raise BadInput("some vector has a number that is not finite")
    if hidden:
        from training import hidden_layer

        return hidden_layer.fit(vectors, codes, each, names, hidden, regularisation, seed)
    # For two classes scikit-learn penalises one column of weights, the two columns' difference: twice as much a column.
    penalty = regularisation * (2.0 if len(names) == 2 else 1.0)
    order = np.random.default_rng(seed).permutation(len(codes))  # labels come sorted as often as not
    theta = _minimise(vectors, codes, each, len(names), penalty, _begin(start, names, vectors.shape[1]), order)
    return Probe(names, theta[:-1], theta[-1])


def image_weights(codes: np.ndarray, classes: int, weights: np.ndarray | None, balanced: bool) -> np.ndarray:
    """float64 (n,): each image's weight, times n / (classes x images of its class) when balanced. Raises BadInput."""
    each = np.ones(len(codes)) if weights is None else np.asarray(weights, np.float64)
    if each.shape != codes.shape or not np.isfinite(each).all() or (each < 0).any():
        raise BadInput(f"weights are {len(codes)} numbers from 0, one an image")
    totals = np.bincount(codes, each, minlength=classes)
    if (totals == 0).any():
        raise BadInput("every class needs an image with a weight above 0")
    if balanced:
        each = each * (totals.sum() / (classes * totals))[codes]
    out: np.ndarray = each
    return out


# ----------------------------------------------------------------------------------------------------------


class _Problem:
    """The objective on some rows: `theta` is (dim + 1, classes), weights above the bias, float64."""

    def __init__(self, x: np.ndarray, codes: np.ndarray, each: np.ndarray, classes: int, penalty: float) -> None:
        self.x, self.codes, self.classes, self.penalty = x, codes, classes, penalty
        self.each = each.astype(x.dtype)
        self.chances = np.empty((len(x), classes), x.dtype)

    def loss(self, theta: np.ndarray) -> float:
        """The objective; leaves the classes' chances of every row behind, for `gradient` and `curve`."""
        w, b = theta[:-1].astype(self.x.dtype), theta[-1].astype(self.x.dtype)
        total = 0.0
        for rows in self._chunks():
            z = np.matmul(self.x[rows], w, out=self.chances[rows])
            z += b
            z -= z.max(axis=1, keepdims=True)
            true = z[np.arange(len(z)), self.codes[rows]].astype(np.float64)
            np.exp(z, out=z)
            summed = z.sum(axis=1, keepdims=True)
            total += float(self.each[rows].astype(np.float64) @ (np.log(summed[:, 0].astype(np.float64)) - true))
            z /= summed
        return total + self.penalty / 2 * float((theta[:-1] ** 2).sum())

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        """Its gradient where `loss` was last."""
        out = np.zeros(theta.shape)
        for rows in self._chunks():
            apart = self.chances[rows] * self.each[rows, None]
            apart[np.arange(len(apart)), self.codes[rows]] -= self.each[rows]
            out[:-1] += self.x[rows].T @ apart
            out[-1] += apart.sum(axis=0)
        out[:-1] += self.penalty * theta[:-1]
        return out

    def curve(self, direction: np.ndarray) -> np.ndarray:
        """The Hessian times a direction, where `loss` was last."""
        w, b = direction[:-1].astype(self.x.dtype), direction[-1].astype(self.x.dtype)
        out = np.zeros(direction.shape)
        for rows in self._chunks():
            p = self.chances[rows]
            moved = self.x[rows] @ w
            moved += b
            moved *= p
            moved -= p * moved.sum(axis=1, keepdims=True)
            moved *= self.each[rows, None]
            out[:-1] += self.x[rows].T @ moved
            out[-1] += moved.sum(axis=0)
        out[:-1] += self.penalty * direction[:-1]
        return out

    def _chunks(self) -> list[slice]:
        return [slice(start, start + CHUNK) for start in range(0, len(self.x), CHUNK)]


class _Preconditioner:
    """(c_k G + penalty)^-1 for every class k: G the mean of [x, 1] [x, 1]^T, c_k the class's p (1 - p), summed.

    One eigendecomposition serves all classes and steps.
    """

    def __init__(self, x: np.ndarray) -> None:
        part = x[: max(16 * x.shape[1], 8_192)]
        part = np.hstack([part, np.ones((len(part), 1), x.dtype)])
        values, self.axes = np.linalg.eigh((part.T @ part).astype(np.float64) / len(part))
        self.values = np.maximum(values, 0.0)[:, None]

    def look(self, problem: _Problem) -> None:
        """Takes the curvature of where the problem's loss was last."""
        p = problem.chances
        bent = np.einsum("nk,nk,n->k", p, 1 - p, problem.each).astype(np.float64)
        # A class that the model is sure of everywhere has hardly any.
        self.curvature = self.values * np.maximum(bent, 1e-6 * len(p)) + problem.penalty

    def solve(self, v: np.ndarray) -> np.ndarray:
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
        # The optimum lies in what the vectors span: as many coordinates as there are vectors do.
        x64 = vectors.astype(np.float64)
        values, turned = np.linalg.eigh(x64 @ x64.T)
        kept = values > values[-1] * 1e-12
        basis = x64.T @ (turned[:, kept] / np.sqrt(values[kept]))
        inner = np.vstack([basis.T @ theta[:-1], theta[-1:]])
        found = _minimise_in(x64 @ basis, codes, each, classes, penalty, inner, order)
        return np.vstack([basis @ found[:-1], found[-1:]])
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
    kind = np.float32 if vectors.size >= SINGLE_FROM else np.float64
    x = np.ascontiguousarray(vectors[order], dtype=kind)
    codes, each = codes[order], each[order]
    preconditioner = _Preconditioner(x)
    for share in (*STAGES, 1.0):
        rows = int(n * share)
        if share == 1.0 or (rows >= SMALLEST_STAGE and len(np.unique(codes[:rows])) == classes):
            part = _Problem(x[:rows], codes[:rows], each[:rows], classes, penalty * share)
            theta = _newton(part, preconditioner, theta, TOLERANCE if share == 1.0 else STAGE_TOLERANCE)
    return theta


def _newton(problem: _Problem, preconditioner: _Preconditioner, theta: np.ndarray, tolerance: float) -> np.ndarray:
    value = problem.loss(theta)
    for _ in range(STEPS):
        gradient = problem.gradient(theta)
        preconditioner.look(problem)
        step = _solve(problem, preconditioner, gradient, 2 * NEGLIGIBLE * value)
        slope = float((gradient * step).sum())  # below 0; half of it is what the step gains, were the loss a parabola
        if -slope <= 2 * NEGLIGIBLE * value:
            return theta
        length = 1.0
        while True:
            tried = problem.loss(theta + length * step)
            if tried <= value + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-6:  # rounding is all that is left
                return theta
        theta, value = theta + length * step, tried
        if length == 1.0 and -slope / 2 <= tolerance * value:
            return theta
    return theta


def _solve(problem: _Problem, preconditioner: _Preconditioner, gradient: np.ndarray, negligible: float) -> np.ndarray:
    """Newton's step, roughly: conjugate gradients until FORCING of the residual is left, or what is negligible."""
    step = np.zeros_like(gradient)
    residual = -gradient
    solved = preconditioner.solve(residual)
    direction, size = solved.copy(), float((residual * solved).sum())
    enough = max(FORCING**2 * size, negligible)
    for _ in range(INNER):
        bent = problem.curve(direction)
        bend = float((direction * bent).sum())
        if bend <= 0:  # rounding
            break
        step += size / bend * direction
        residual -= size / bend * bent
        solved = preconditioner.solve(residual)
        left = float((residual * solved).sum())
        if left <= enough:
            break
        direction = solved + left / size * direction
        size = left
    return step if step.any() else solved


def _begin(start: Probe | None, names: tuple[str, ...], dim: int) -> np.ndarray:
    theta = np.zeros((dim + 1, len(names)))
    if start is None:
        return theta
    if start.hidden is not None or len(start.weights) != dim:
        raise BadInput(f"a head on vectors of {dim} cannot begin from one on {len(start.weights)} inputs")
    for k, name in enumerate(names):
        if name in start.classes:
            theta[:-1, k] = start.weights[:, start.classes.index(name)]
            theta[-1, k] = start.bias[start.classes.index(name)]
    return theta
