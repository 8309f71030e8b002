"""Which images an epoch has, in which order: a function of the seed and the epoch's number.

There is no state to save: a run that is resumed at step s of epoch e sees the same images as a run that never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lake.errors import BadInput


@dataclass(frozen=True)
class EpochSampler:
    """Draws batches of indices: 0 to `new` - 1 are the new images, the next `old` the older ones for replay.

    `replay`: the share of each epoch that is drawn from the older images; 0 takes each of them once. `classes`: the
    class of each image, to draw every class equally often; None draws every image equally often. Without `classes` each
    new image occurs once in an epoch.
    """

    new: int
    old: int
    batch: int
    seed: int
    replay: float = 0.5
    classes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.new < 1:
            raise BadInput("there is no image to train on")

    @property
    def length(self) -> int:
        """Images in an epoch."""
        return self.new + self._replayed

    @property
    def steps(self) -> int:
        """Batches in an epoch. Images that do not fill a batch wait for another epoch; a small set is one batch."""
        return max(1, self.length // self.batch)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of an epoch: indices of images."""
        rng = np.random.default_rng((self.seed, 1, number))
        drawn = [self._draw(np.arange(self.new), self.new, rng)]
        if self.old:
            drawn.append(self._draw(np.arange(self.new, self.new + self.old), self._replayed, rng))
        order = rng.permutation(np.concatenate(drawn))
        size = min(self.batch, len(order))
        return [order[start * size : (start + 1) * size] for start in range(self.steps)]

    @property
    def _replayed(self) -> int:
        if not self.old or not self.replay:
            return self.old
        return max(1, round(self.new * self.replay / (1 - self.replay)))

    def _draw(self, indices: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        if self.classes is None:
            return _cycled(indices, count, rng)
        classes = np.asarray(self.classes)[indices]
        order = rng.permutation(np.unique(classes))
        counts = [count // len(order) + (i < count % len(order)) for i in range(len(order))]
        return np.concatenate([_cycled(indices[classes == k], n, rng) for k, n in zip(order, counts, strict=True)])


def weights(classes: Sequence[int]) -> np.ndarray:
    """The weight of each image, n / (classes * images of its class): every class weighs the same, the mean is 1."""
    values, index, counts = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    return np.asarray(len(classes) / (len(values) * counts))[index]


def _cycled(indices: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the indices; none occurs a second time before all have occurred once."""
    rounds = [rng.permutation(indices) for _ in range(-(-count // len(indices)))]
    return np.concatenate(rounds)[:count] if rounds else indices[:0]
