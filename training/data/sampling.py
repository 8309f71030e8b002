"""Which images an epoch has, in which order: a pure function of the seed and the epoch's number.

So there is no state to save: a run that is resumed at step s of epoch e looks at the same images as one that was never
stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lake.errors import BadInput


@dataclass(frozen=True)
class Sampling:
    """`fresh` new images come first (0, 1, ...), then `older` ones for replay.

    `replay`: share of each epoch that is drawn from the older images; 0 takes each of them once. `kinds`: the class of
    each image, to draw every class equally often; None draws every image equally often. Each new image is once in an
    epoch when classes are not balanced.
    """

    fresh: int
    older: int
    batch: int
    seed: int
    replay: float = 0.5
    kinds: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.fresh < 1:
            raise BadInput("there is no image to train on")

    @property
    def length(self) -> int:
        """Images of an epoch."""
        return self.fresh + self._replayed

    @property
    def steps(self) -> int:
        """Batches of an epoch. What does not fill a batch waits for another epoch; a small set is one small batch."""
        return max(1, self.length // self.batch)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of an epoch: indices of images."""
        rng = np.random.default_rng((self.seed, 1, number))
        drawn = [self._draw(np.arange(self.fresh), self.fresh, rng)]
        if self.older:
            drawn.append(self._draw(np.arange(self.fresh, self.fresh + self.older), self._replayed, rng))
        order = rng.permutation(np.concatenate(drawn))
        size = min(self.batch, len(order))
        return [order[start * size : (start + 1) * size] for start in range(self.steps)]

    @property
    def _replayed(self) -> int:
        if not self.older or not self.replay:
            return self.older
        return max(1, round(self.fresh * self.replay / (1 - self.replay)))

    def _draw(self, of: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        if self.kinds is None:
            return _cycled(of, count, rng)
        kinds = np.asarray(self.kinds)[of]
        there = rng.permutation(np.unique(kinds))
        share = [count // len(there) + (place < count % len(there)) for place in range(len(there))]
        return np.concatenate([_cycled(of[kinds == kind], n, rng) for kind, n in zip(there, share, strict=True)])


def weights(kinds: Sequence[int]) -> np.ndarray:
    """Of each image, so that every class weighs the same in all and the mean is 1: n / (classes * images of its)."""
    values, place, counts = np.unique(np.asarray(kinds), return_inverse=True, return_counts=True)
    return np.asarray(len(kinds) / (len(values) * counts))[place]


def _cycled(of: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of them, none a second time before all were there once."""
    rounds = [rng.permutation(of) for _ in range(-(-count // len(of)))]
    return np.concatenate(rounds)[:count] if rounds else of[:0]
