"""A recipe is every setting, refuses what it does not know, and is documented key by key."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lake.errors import BadInput
from training.fit import learning_rate
from training.registry import recipe as recipes
from training.registry.recipe import Recipe

PAGE = Path(__file__).parents[3] / "docs/training.md"


def test_a_recipe_saved_and_read_is_the_same() -> None:
    made = Recipe(epochs=3, protect=("night@2", "rain"), rate=0.1 + 0.2)
    assert Recipe.of(json.loads(made.json())) == made


def test_toml_json_and_words_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('epochs = 20\nrate = 1\nflip = "both"\nprotect = ["night"]\nturn = true\n')
    (tmp_path / "r.json").write_text('{"epochs": 20, "rate": 1, "flip": "both", "protect": ["night"], "turn": true}')
    words = Recipe().with_words(["epochs=20", "rate=1", "flip=both", "protect=night", "turn=True"])
    assert Recipe.of(recipes.read(tmp_path / "r.toml")) == Recipe.of(recipes.read(tmp_path / "r.json")) == words
    assert words == replace(Recipe(), epochs=20, rate=1.0, flip="both", protect=("night",), turn=True)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epoch=3", "no setting 'epoch'; did you mean epochs"),
        ("epochs", "write KEY=VALUE"),
        ("epochs=1.5", "epochs must be a whole number, not 1.5"),
        ("epochs=true", "epochs must be a whole number"),
        ("epochs=many", "epochs must be a whole number, not 'many'"),
        ("epochs=0", "epochs is 0; it must be between 1 and"),
        ("rate=nan", "rate must be"),
        ("schedule=linear", "it must be one of constant, exponential, cosine"),
        ("turn=1", "turn must be true or false"),
        ("kind=probe", None),
        ("task=detection", None),
    ],
)
def test_a_message_says_what_is_wrong_with_a_setting(word: str, message: str | None) -> None:
    if message is None:
        Recipe().with_words([word])
        return
    with pytest.raises(BadInput, match=re.escape(message)):
        Recipe().with_words([word])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(BadInput, match="a probe is for classification"):
        Recipe(kind="probe", task="detection")
    with pytest.raises(BadInput, match="a probe has no epochs"):
        Recipe(kind="probe", patience=2)
    with pytest.raises(BadInput, match="one class per image"):
        Recipe(task="segmentation", balance="weights")


@pytest.mark.parametrize(("name", "text"), [("r.toml", "epochs = "), ("r.json", "[1]"), ("r.yaml", "epochs: 1")])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=name):
        recipes.read(tmp_path / name)


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", PAGE.read_text(), re.M)
    said = json.loads(Recipe().json())
    assert [name for name, _ in rows] == [f.name for f in fields(Recipe)]
    assert {name: json.loads(value) for name, value in rows} == said


def test_cosine_with_warm_up() -> None:
    recipe = Recipe(epochs=3, warmup=1.0, schedule="cosine")
    found = [round(learning_rate.factor(recipe, step, 4), 3) for step in range(12)]
    assert found == [0.2, 0.4, 0.6, 0.8, 1.0, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]


def test_exponential_decay_falls_once_an_epoch() -> None:
    recipe = Recipe(epochs=3, schedule="exponential", decay=0.5)
    assert [learning_rate.factor(recipe, step, 2) for step in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_constant_is_constant() -> None:
    assert {learning_rate.factor(Recipe(schedule="constant"), step, 7) for step in range(70)} == {1.0}
