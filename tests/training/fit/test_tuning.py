"""A search is resumable, refuses to mix what cannot be compared, and every trial is a run on record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lake.errors import BadInput
from lake.open_lake import OpenLake
from training.fit import tuning
from training.fit.tuning import SearchRange
from training.registry import runs
from training.registry.recipe import Recipe

# The grid's order is drawn from it: the trial that learns comes first.
SEED = 1


def test_ranges_in_words() -> None:
    result = tuning.space(["rate=1e-4..1e-2", "epochs=2..5", "flip=none,both", "dropout=0..0.5"], ["resnet18"])
    assert result == {
        "rate": SearchRange((), 1e-4, 1e-2, True, False),
        "epochs": SearchRange((), 2, 5, False, True),
        "flip": SearchRange(("none", "both")),
        "dropout": SearchRange((), 0.0, 0.5, False, False),
        "architecture": SearchRange(("resnet18",)),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rote=1..2"], "did you mean rate"),
        (["rate"], "write KEY=LOW..HIGH"),
        (["rate=2..1"], "must be below"),
        (["epochs=0..5"], "epochs is 0"),
        (["flip=up,down"], "one of none"),
        (["seed=0..5"], "cannot be compared"),
        ([], "name what to try"),
    ],
)
def test_an_invalid_range_is_explained(words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        tuning.space(words)
    with pytest.raises(BadInput, match="no architecture"):
        tuning.space([], ["resnet81"])


def _tune(
    lake: OpenLake, recipe: Recipe, tried: dict[str, SearchRange], trials: int, **how: Any
) -> tuning.TuningResult:
    arguments: dict[str, Any] = {"train": ["first"], "validation": ["held"], "device": "cpu", "workers": 0} | how
    return tuning.tune(lake, "rates", recipe=recipe, tried=tried, trials=trials, **arguments)


def test_a_search_continues_where_it_was_stopped(stock: OpenLake, tiny: Recipe) -> None:
    recipe, tried = replace(tiny, epochs=1), tuning.space(["rate=1e-4..1e-2"])

    def stop(state: dict[str, Any]) -> None:
        if "metrics" in state and len(runs.list(stock, search="rates")) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _tune(stock, recipe, tried, 4, progress=stop)
    result = _tune(stock, recipe, tried, 4)
    assert (result.done, result.failed, result.metric) == (3, 1, "balanced_accuracy")
    values = [one.value for one in result.best]
    assert values == sorted(values, reverse=True)
    every = {r.id: r for r in runs.list(stock, search="rates")}
    assert len(every) == 4
    for one in result.best:
        assert every[one.run].status == "done"
        assert every[one.run].recipe.rate == one.settings["rate"]
    assert len({r.data["splits"]["train"]["images_sha256"] for r in every.values()}) == 1
    assert _tune(stock, recipe, tried, 4) == result
    with pytest.raises(BadInput, match="different values of `recipe`"):
        _tune(stock, replace(recipe, batch=4), tried, 4)
    with pytest.raises(BadInput, match="different values of `slices`"):
        _tune(stock, recipe, tried, 4, train=["second"])


def test_architectures_are_compared_one_after_another(stock: OpenLake, tiny: Recipe) -> None:
    tried = tuning.space([], ["test_resnet", "test_vit"])
    result = _tune(stock, replace(tiny, epochs=1, size=160, freeze="backbone"), tried, 5, train=["second"])
    assert sorted(one.settings["architecture"] for one in result.best) == ["test_resnet", "test_vit"]


@pytest.mark.soak
def test_bad_trials_are_pruned(stock: OpenLake, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one whole trial there is something to compare with: one that learns nothing is stopped early."""
    monkeypatch.setattr(tuning, "UNPRUNED", 1)
    recipe = replace(tiny, epochs=4, schedule="constant", metric="loss", seed=SEED)
    result = _tune(stock, recipe, {"rate": SearchRange((5e-3, 1e-12))}, 2)
    second, first = runs.list(stock, search="rates")
    assert (first.recipe.rate, second.recipe.rate) == (5e-3, 1e-12)
    assert (result.done, result.pruned) == (2, 1)
    assert second.status == "stopped"
    assert "worse than the median after epoch" in (second.error or "")
    assert [one.run for one in result.best] == [first.id]
