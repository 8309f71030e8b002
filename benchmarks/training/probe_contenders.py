"""The contenders of `probe`, one process each. Each returns the seconds of the fit, loss and accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness.contender import Stopwatch

TEST = 20_000


def lakeloop(turn: int, **arguments: Any) -> dict[str, Any]:
    """`training.models.probe.fit`."""
    from training.models import probe

    x, codes, other, other_codes = _data(**arguments)
    names = [f"{k:03d}" for k in codes]
    with Stopwatch() as clock:
        head = probe.fit(x, names, arguments["regularisation"])
    return clock.figures() | _quality(
        head.weights, head.bias, x, codes, other, other_codes, arguments["regularisation"]
    )


def sklearn(turn: int, **arguments: Any) -> dict[str, Any]:
    """lbfgs in double precision, to the same optimum."""
    return _sklearn(np.float64, 1e-6, arguments)


def sklearn_float32(turn: int, **arguments: Any) -> dict[str, Any]:
    """lbfgs in single precision, to the same optimum."""
    return _sklearn(np.float32, 1e-6, arguments)


def sklearn_default(turn: int, **arguments: Any) -> dict[str, Any]:
    """lbfgs in double precision, with its default tolerance."""
    return _sklearn(np.float64, 1e-4, arguments)


def _sklearn(kind: type, tolerance: float, arguments: dict[str, Any]) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    x, codes, other, other_codes = _data(**arguments)
    x = x.astype(kind)
    model = LogisticRegression(C=1 / arguments["regularisation"], max_iter=5_000, tol=tolerance)
    with Stopwatch() as clock:
        model.fit(x, codes)
    figures = _quality(model.coef_.T, model.intercept_, x, codes, other, other_codes, arguments["regularisation"])
    return clock.figures() | figures | {"iterations": int(model.n_iter_[0])}


def _data(
    rows: int, dim: int, classes: int, regularisation: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """float32 unit vectors and classes to train on, then vectors and classes to evaluate on."""
    rng = np.random.default_rng(0)
    n = rows + TEST
    centres, codes = rng.standard_normal((classes, dim), np.float32), rng.integers(0, classes, n)
    spread = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
    x = centres[codes] * np.float32(0.5) + 20 * spread * rng.standard_normal((n, dim), np.float32) + np.float32(0.5)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    codes = np.where(rng.random(n) < 0.05, rng.integers(0, classes, n), codes)
    return x[:rows], codes[:rows], x[rows:], codes[rows:]


def _quality(
    weights: np.ndarray,
    bias: np.ndarray,
    x: np.ndarray,
    codes: np.ndarray,
    other: np.ndarray,
    other_codes: np.ndarray,
    regularisation: float,
) -> dict[str, float]:
    weights = np.asarray(weights, np.float64)
    loss = regularisation / 2 * float((weights**2).sum())
    for start in range(0, len(x), 10_000):
        z = x[start : start + 10_000].astype(np.float64) @ weights + bias
        z -= z.max(axis=1, keepdims=True)
        true = z[np.arange(len(z)), codes[start : start + 10_000]]
        loss += float((np.log(np.exp(z).sum(axis=1)) - true).sum())
    predicted = (other @ weights + bias).argmax(axis=1)
    return {"loss": loss, "accuracy": float((predicted == other_codes).mean())}
