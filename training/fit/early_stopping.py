"""Which epoch counts, and when no further one is worth while: by a metric, and by slices that must not fall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from training.metrics import metric_registry

if TYPE_CHECKING:
    from training.fit.checkpoint import Progress
    from training.registry.recipe import Recipe


def judge(
    recipe: Recipe, progress: Progress, value: float | None, protected: Mapping[str, float], *, warm: bool
) -> bool:
    """Whether this epoch's weights are the best so far; notes in `progress` what follows from it.

    `value`: the metric, higher is better (see `directed`); None: nothing was measured, and the newest weights count.
    `protected`: the metric on each protected slice. `warm`: the run began from a model that answers already; its
    slices are measured against what they were before the first step, else against the best they have been.
    An epoch in which a protected slice fell by more than the recipe's margin is never the best, and ends the run.
    """
    fell = []
    for name, now in protected.items():
        before = progress.reference.setdefault(name, now)
        if not now >= before - recipe.margin:
            fell.append(f"{name} fell from {before:.3f} to {now:.3f}")
        if not warm:
            progress.reference[name] = max(before, now)
    if fell:
        progress.ended = "; ".join(fell)
        return False
    if value is not None and not _better(value, progress.best, recipe.gain):
        progress.waited += 1
        if recipe.patience and progress.waited >= recipe.patience:
            progress.ended = f"no gain in {progress.waited} epochs"
        return False
    progress.best, progress.best_epoch, progress.waited = value, progress.epoch, 0
    return True


def directed(metric: str, value: float) -> float:
    """The value so that higher is better. Raises BadInput for a metric that nobody knows."""
    return value if metric != "loss" and metric_registry.get(metric).higher_is_better else -value


def _better(value: float, best: float | None, gain: float) -> bool:
    if math.isnan(value):
        return False
    return best is None or value > best + gain
