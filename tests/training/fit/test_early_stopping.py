"""The best epoch, patience, and slices that must not fall, epoch by epoch."""

from __future__ import annotations

import pytest

from lake.errors import BadInput
from training.fit import early_stopping
from training.fit.checkpoint import TrainingProgress
from training.registry.recipe import Recipe


def _epochs(
    recipe: Recipe, values: list[float | None], night: list[float] | None = None, warm: bool = False
) -> TrainingProgress:
    at = TrainingProgress()
    for place, value in enumerate(values):
        at.epoch = place + (0 if warm else 1)
        early_stopping.update(recipe, at, value, {} if night is None else {"night@1": night[place]}, warm=warm)
        if at.ended:
            break
    return at


def test_patience_counts_epochs_without_a_gain() -> None:
    at = _epochs(Recipe(patience=2), [0.5, 0.6, 0.6, 0.59, 0.9])
    assert (at.best, at.best_epoch, at.epoch, at.ended) == (0.6, 2, 4, "no gain in 2 epochs")


def test_a_gain_below_the_threshold_does_not_count() -> None:
    assert _epochs(Recipe(gain=0.05), [0.5, 0.54, 0.56]).best_epoch == 3


def test_without_a_measure_the_newest_counts() -> None:
    assert _epochs(Recipe(patience=1), [None, None, None]).best_epoch == 3


def test_nan_is_never_better() -> None:
    assert _epochs(Recipe(), [float("nan"), 0.1, float("nan")]).best_epoch == 2


def test_a_protected_slice_that_falls_ends_a_warm_run_and_its_epoch_is_not_the_best() -> None:
    at = _epochs(Recipe(margin=0.02), [0.5, 0.6, 0.9], [0.8, 0.785, 0.77], warm=True)
    assert (at.best_epoch, at.ended) == (1, "night@1 fell from 0.800 to 0.770")


def test_a_run_from_nothing_is_held_to_the_best_it_has_been() -> None:
    at = _epochs(Recipe(margin=0.02), [0.5, 0.6, 0.9], [0.3, 0.9, 0.87])
    assert (at.best_epoch, at.ended) == (2, "night@1 fell from 0.900 to 0.870")


def test_metrics_where_lower_is_better_are_negated() -> None:
    assert early_stopping.directed("loss", 0.3) == -0.3
    assert early_stopping.directed("ece", 0.3) == -0.3
    assert early_stopping.directed("accuracy", 0.3) == 0.3
    with pytest.raises(BadInput, match="did you mean"):
        early_stopping.directed("acuracy", 0.3)
