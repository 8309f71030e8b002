"""The smallest model there is: a logistic head on an embedder's vectors, and how good its answers are.

Features in, probabilities out. It does not know lakes or images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lake.errors import BadInput
from lake.extras import require


@dataclass(frozen=True)
class Probe:
    """`weights` (dim, classes) and `bias` (classes,): softmax(vectors @ weights + bias)."""

    classes: tuple[str, ...]
    weights: np.ndarray
    bias: np.ndarray

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """float64 (n, classes), rows adding up to 1, for unit vectors (n, dim)."""
        logits = np.asarray(vectors, np.float64) @ self.weights + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        out: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return out


def fit(vectors: np.ndarray, labels: Sequence[str], regularisation: float = 0.1) -> Probe:
    """A multinomial logistic regression (L-BFGS). `regularisation` is the inverse of scikit-learn's C.

    Raises BadInput for fewer than two classes.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise BadInput(f"a classifier needs two classes or more; the labels have {classes}")
    model = require("sklearn.linear_model", "scikit-learn", "train").LogisticRegression(
        C=1.0 / regularisation, max_iter=2_000
    )
    model.fit(np.asarray(vectors, np.float64), np.asarray(labels))
    weights, bias = model.coef_.T, model.intercept_
    if len(classes) == 2:  # scikit-learn keeps one column for two classes
        weights, bias = np.hstack([np.zeros_like(weights), weights]), np.array([0.0, bias[0]])
    return Probe(tuple(str(c) for c in model.classes_), weights, bias)


def accuracy(said: Sequence[str], truth: Sequence[str]) -> float:
    """Share of answers that are right, 0 to 1."""
    return float(np.mean(np.asarray(said) == np.asarray(truth)))


def balanced_accuracy(said: Sequence[str], truth: Sequence[str]) -> float:
    """Mean over the true classes of the share answered right, 0 to 1: guessing one class gives 1 / classes."""
    right = np.asarray(said) == np.asarray(truth)
    return float(np.mean([right[np.asarray(truth) == c].mean() for c in sorted(set(truth))]))
