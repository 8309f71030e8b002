"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.registry.recipe import Recipe


def factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The factor, 0 to 1, of every learning rate in optimiser step `step` (0, 1, ...).

    Warm-up rises linearly over `recipe.warmup` epochs, from above 0 to 1. After it: constant; exponential, times
    `recipe.decay` after each epoch since the warm-up; cosine, half a wave that reaches 0 just after the last step.
    """
    warm = round(recipe.warmup * steps_per_epoch)
    if step < warm:
        return (step + 1) / (warm + 1)
    done, total = step - warm, recipe.epochs * steps_per_epoch - warm
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "exponential":
        return float(recipe.decay ** (done // steps_per_epoch))
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done / max(1, total))))
