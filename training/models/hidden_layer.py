"""A probe with one hidden layer of rectified linear units, trained by Adam. Numpy only: it is seconds of work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from training.models.probe import Probe

EPOCHS = 40
BATCH = 256
RATE = 3e-3
# Adam's (Kingma and Ba, ICLR 2015).
DECAYS, TINY = (0.9, 0.999), 1e-8


def fit(
    vectors: np.ndarray,
    codes: np.ndarray,
    each: np.ndarray,
    names: tuple[str, ...],
    units: int,
    regularisation: float,
    seed: int,
) -> Probe:
    """Minimises what `probe.fit` does, both layers' weights being penalised; the rate falls to zero by a cosine.

    `codes`: int64 (n,), places in `names`; `each`: the images' weights. Equal seeds give equal weights.
    """
    from training.models.probe import Probe

    rng, n = np.random.default_rng(seed), len(codes)
    x, weight = np.asarray(vectors, np.float32), np.asarray(each, np.float32)
    # Unit vectors' coordinates are small: without this the first layer would hardly differ from zero.
    scale = np.float32(1 / max(float(np.sqrt((x.astype(np.float64) ** 2).mean())), 1e-12))
    shapes = [(x.shape[1], units), (units,), (units, len(names)), (len(names),)]
    layers = [
        (rng.standard_normal(shape) * (np.sqrt(2 / shape[0]) if len(shape) == 2 else 0)).astype(np.float32)
        for shape in shapes
    ]
    first: list[np.ndarray] = [np.zeros_like(p) for p in layers]
    second: list[np.ndarray] = [np.zeros_like(p) for p in layers]
    steps = EPOCHS * -(-n // BATCH)
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(n)
        for begin in range(0, n, BATCH):
            rows = order[begin : begin + BATCH]
            found = _gradients(layers, x[rows] * scale, codes[rows], weight[rows], np.float32(regularisation / n))
            step += 1
            rate = RATE * (1 + np.cos(np.pi * step / steps)) / 2
            for place, gradient in enumerate(found):
                first[place] = DECAYS[0] * first[place] + (1 - DECAYS[0]) * gradient
                second[place] = DECAYS[1] * second[place] + (1 - DECAYS[1]) * gradient**2
                up, down = 1 - DECAYS[0] ** step, 1 - DECAYS[1] ** step
                layers[place] -= (rate * (first[place] / up) / (np.sqrt(second[place] / down) + TINY)).astype(
                    np.float32
                )
    w1, b1, w2, b2 = (p.astype(np.float64) for p in layers)
    return Probe(names, w2, b2, (w1 * float(scale), b1))


def _gradients(
    layers: list[np.ndarray], x: np.ndarray, codes: np.ndarray, weight: np.ndarray, penalty: np.float32
) -> list[np.ndarray]:
    w1, b1, w2, b2 = layers
    inner = np.maximum(x @ w1 + b1, 0)
    logits = inner @ w2 + b2
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(codes)), codes] -= 1
    chances *= weight[:, None] / np.float32(len(codes))
    back = (chances @ w2.T) * (inner > 0)
    return [x.T @ back + penalty * w1, back.sum(axis=0), inner.T @ chances + penalty * w2, chances.sum(axis=0)]
