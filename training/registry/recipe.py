"""All settings of a training run, in one frozen dataclass that is saved whole.

Settings come from TOML, JSON and KEY=VALUE. An unknown key is refused with the nearest names. docs/training.md has a
row for each field, checked by a test. The device and the number of worker processes are not settings, since they do not
change the result.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lake.errors import BadInput


@dataclass(frozen=True)
class Recipe:
    """Every recipe is valid: a value out of range raises BadInput.

    Rates are per optimiser step, shares are from 0 to 1, `epochs` counts passes over the new images.
    """

    task: Literal["classification", "segmentation", "detection"] = "classification"
    kind: Literal["finetune", "probe"] = "finetune"
    # The network.
    architecture: str = "efficientnet-lite0"
    pretrained: bool = True
    size: int = 0
    geometry: Literal["own", "crop", "squash"] = "own"
    dropout: float = 0.0
    freeze: Literal["none", "backbone", "norms"] = "none"
    # The probe.
    embedder: str = ""
    hidden: int = 0
    regularisation: float = 0.1
    # The steps.
    epochs: int = 10
    batch: int = 32
    optimiser: Literal["adamw", "sgd"] = "adamw"
    rate: float = 1e-3
    backbone_rate: float = 0.1
    layer_decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.01
    clip: float = 0.0
    label_smoothing: float = 0.0
    schedule: Literal["constant", "exponential", "cosine"] = "cosine"
    decay: float = 0.9
    warmup: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    # The images.
    validation: float = 0.15
    balance: Literal["none", "weights", "oversample"] = "none"
    crop: float = 0.6
    stretch: float = 0.15
    flip: Literal["none", "horizontal", "vertical", "both"] = "horizontal"
    turn: bool = False
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    erase: float = 0.0
    # Against forgetting.
    replay: float = 0.5
    l2_sp: float = 0.0
    wise_ft: float = 1.0
    # Stopping, and which epoch counts.
    metric: str = ""
    patience: int = 0
    gain: float = 0.0
    protect: tuple[str, ...] = ()
    margin: float = 0.02
    calibrate: bool = True
    # Exactness.
    seed: int = 0
    checkpoint_steps: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise BadInput(f"recipe: {name} is {value!r}; it must be between {low:g} and {high:g}")
        if self.kind == "probe" and self.task != "classification":
            raise BadInput(f"recipe: a probe is for classification, not {self.task}; use kind=finetune")
        if self.kind == "probe" and (self.l2_sp or self.wise_ft < 1.0 or self.protect or self.patience):
            raise BadInput("recipe: l2_sp, wise_ft, protect and patience are for fine-tuning; a probe has no epochs")
        if self.balance != "none" and self.task != "classification":
            raise BadInput(
                f"recipe: balance={self.balance} needs one class per image; for {self.task} use balance=none"
            )

    def json(self) -> str:
        """All settings, one JSON object: `Recipe.of(json.loads(...))` gives the same recipe."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, settings: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """A recipe with these settings and the defaults of all others. Raises BadInput, naming `source`."""
        return cls().changed(settings, source)

    def changed(self, settings: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """The recipe with changed settings. Raises BadInput for an unknown key, or a value of wrong type or range."""
        return replace(self, **{key: _value(key, value, source) for key, value in settings.items()})

    def with_words(self, words: Sequence[str]) -> Recipe:
        """The recipe changed by `--set KEY=VALUE ...`, words of the command line."""
        settings: dict[str, Any] = {}
        for word in words:
            key, equals, text = word.partition("=")
            if not equals:
                raise BadInput(f"--set {word!r}: write KEY=VALUE, e.g. --set epochs=20")
            settings[key.strip()] = _parsed(key.strip(), text.strip())
        return self.changed(settings, "--set")


# Both ends included.
_RANGES: dict[str, tuple[float, float]] = {
    "size": (0, 4096), "dropout": (0, 0.95), "hidden": (0, 65536), "regularisation": (1e-9, 1e6), "epochs": (1, 1e5),
    "batch": (1, 65536), "rate": (1e-12, 1e3), "backbone_rate": (0, 100), "layer_decay": (1e-3, 1), "momentum": (0, 1),
    "weight_decay": (0, 1e3), "clip": (0, 1e9), "label_smoothing": (0, 0.95), "decay": (1e-6, 1), "warmup": (0, 1e5),
    "validation": (0, 0.9), "crop": (0.01, 1), "stretch": (0, 0.9), "brightness": (0, 0.95), "contrast": (0, 0.95),
    "saturation": (0, 1), "erase": (0, 1), "replay": (0, 0.99), "l2_sp": (0, 1e6), "wise_ft": (0, 1),
    "patience": (0, 100_000), "gain": (0, 1), "margin": (0, 1), "seed": (0, 2**32 - 1), "checkpoint_steps": (0, 10**9),
}  # fmt: skip
_TYPES: dict[str, Any] = get_type_hints(Recipe)


def read(path: Path) -> dict[str, Any]:
    """The settings in a .toml or .json file. Raises BadInput."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the recipe {path}: {error}") from error
    try:
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix == ".json":
            settings = json.loads(text)
            if isinstance(settings, dict):
                return settings
            raise BadInput(f"{path}: a recipe must be one JSON object")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not valid: {error}") from error
    raise BadInput(f"{path}: a recipe must be a .toml or .json file")


def _check_key(key: str, source: str) -> None:
    if key not in _TYPES:
        names = [f.name for f in fields(Recipe)]
        near = difflib.get_close_matches(key, names, 3, 0.5) or names
        raise BadInput(f"{source}: there is no setting {key!r}; did you mean {', '.join(near)}? See docs/training.md")


def _value(key: str, value: Any, source: str) -> Any:
    _check_key(key, source)
    kind = _TYPES[key]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise BadInput(f"{source}: {key} is {value!r}; it must be one of {', '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise BadInput(f"{source}: {key} must be a list of names, not {value!r}")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
        raise BadInput(f"{source}: {key} must be {words[kind]}, not {value!r}")
    return value


def _parsed(key: str, text: str) -> Any:
    """A value of the command line, parsed as the type of its setting."""
    _check_key(key, "--set")
    kind = _TYPES[key]
    if get_origin(kind) is tuple:
        return [name for name in text.split(",") if name]
    if kind in (int, float, bool):
        try:
            return json.loads(text.lower() if kind is bool else text)
        except ValueError:
            return text  # `_value` then raises BadInput
    return text
