"""Which epoch is the best, and when to stop: by a metric, and by protected slices that must not fall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from training.metrics import metric_registry

if TYPE_CHECKING:
    from training.fit.checkpoint import TrainingProgress
    from training.registry.recipe import Recipe


def update(
    recipe: Recipe, progress: TrainingProgress, value: float | None, protected: Mapping[str, float], *, warm: bool
) -> bool:
    """Whether this epoch's weights are the best so far. Updates `progress`; sets `ended` if training must stop.

    `value`: the metric, higher is better (see `directed`); None if nothing was measured: the newest weights are then
    the best. `protected`: the metric on each protected slice. `warm`: the run began with a trained model; its slices
    are compared with their values before the first step, otherwise with their best values so far. An epoch in which a
    protected slice falls by more than the recipe's margin is never the best, and ends the run.
    """
    falls = []
    for name, current in protected.items():
        before = progress.reference.setdefault(name, current)
        if not current >= before - recipe.margin:
            falls.append(f"{name} fell from {before:.3f} to {current:.3f}")
        if not warm:
            progress.reference[name] = max(before, current)
    if falls:
        progress.ended = "; ".join(falls)
        return False
    if value is not None and not _better(value, progress.best, recipe.gain):
        progress.waited += 1
        if recipe.patience and progress.waited >= recipe.patience:
            progress.ended = f"no gain in {progress.waited} epochs"
        return False
    progress.best, progress.best_epoch, progress.waited = value, progress.epoch, 0
    return True


def directed(metric: str, value: float) -> float:
    """The value, negated if lower is better. Raises BadInput for an unknown metric."""
    return value if metric != "loss" and metric_registry.get(metric).higher_is_better else -value


def _better(value: float, best: float | None, gain: float) -> bool:
    if math.isnan(value):
        return False
    return best is None or value > best + gain
