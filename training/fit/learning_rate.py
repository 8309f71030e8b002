"""The learning rate as a pure function of where a run stands: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.registry.recipe import Recipe


def factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """What every learning rate is multiplied with in optimiser step `step` (0, 1, ...), in 0 to 1.

    Warm-up rises in a straight line over `recipe.warmup` epochs, its first step above 0, and ends at 1. After it:
    constant; exponential, times `recipe.decay` at the end of each epoch since the warm-up; cosine, half a wave down
    to 0 just behind the last step.
    """
    warm = round(recipe.warmup * steps_per_epoch)
    if step < warm:
        return (step + 1) / (warm + 1)
    done, all = step - warm, recipe.epochs * steps_per_epoch - warm
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "exponential":
        return float(recipe.decay ** (done // steps_per_epoch))
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done / max(1, all))))
