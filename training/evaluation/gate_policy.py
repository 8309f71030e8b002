"""A gate policy: metric, margin and protection of each slice; read from a TOML or JSON file.

A team keeps its policy beside its code; without one the defaults below apply. Every verdict stores its whole policy.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from lake.errors import BadInput

Standing = Literal["protected", "judged", "watched"]
# The metric of a task if the policy names none.
METRICS = {"classification": "accuracy", "segmentation": "miou", "detection": "map_50"}


@dataclass(frozen=True)
class SliceRule:
    """What differs for one slice; None: as for all slices."""

    metric: str | None = None
    margin: float | None = None
    undecided_blocks: bool | None = None


@dataclass(frozen=True)
class GatePolicy:
    """`margin`: the largest true fall that is accepted, in the metric's unit, above 0. `fail_level`: chance of failing
    any slice if none has fallen, over all slices together. `pass_level`: chance of passing a slice whose true fall is
    larger than its margin, for each slice. `protected` and `watched`: names of slices; `*` and `?` are wildcards.
    `costs[ground truth][prediction]`: the cost of a wrong prediction, for the metric cost.
    """

    metric: str | None = None
    margin: float = 0.02
    fail_level: float = 0.05
    pass_level: float = 0.05
    protected: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    slices: Mapping[str, SliceRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_number("margin", self.margin, None)
        _check_number("fail_level", self.fail_level, 0.5)
        _check_number("pass_level", self.pass_level, 0.5)
        for name, rule in self.slices.items():
            if rule.margin is not None:
                _check_number(f"slices.{name}.margin", rule.margin, None)

    def metric_of(self, name: str, task: str) -> str:
        """The name of the metric for a slice."""
        return self.rule(name).metric or self.metric or METRICS[task]

    def margin_of(self, name: str) -> float:
        """The margin for a slice."""
        own = self.rule(name).margin
        return self.margin if own is None else own

    def standing(self, name: str, role: str | None) -> Standing:
        """protected: a fall blocks, and an undecided outcome blocks; judged: a fall blocks; watched: nothing blocks.

        Regression slices are always protected.
        """
        if role == "regression" or _matches(name, self.protected):
            return "protected"
        return "watched" if _matches(name, self.watched) else "judged"

    def undecided_blocks(self, name: str, role: str | None) -> bool:
        """Whether an undecided outcome blocks: for protected slices, unless the slice's rule says otherwise."""
        standing, own = self.standing(name, role), self.rule(name).undecided_blocks
        return standing == "protected" if own is None or standing == "watched" else own

    def rule(self, name: str) -> SliceRule:
        """The rule of a slice; without one, a rule that changes nothing."""
        return self.slices.get(name, SliceRule())

    def named(self) -> list[str]:
        """The slices that it names without wildcards. The gate covers them whatever their role."""
        exact = [name for name in (*self.protected, *self.watched) if not set(name) & set("*?[")]
        return sorted({*exact, *self.slices})

    def with_slices(self, names: Sequence[str]) -> GatePolicy:
        """The policy that covers these slices, too."""
        return replace(self, slices={**{name: SliceRule() for name in names}, **self.slices})

    def json(self) -> str:
        """All fields as one JSON object; `of(json.loads(...))` gives the same policy."""
        return json.dumps(asdict(self), sort_keys=True)


def load(path: Path) -> GatePolicy:
    """Reads a policy file: JSON if its name ends in .json, else TOML. Raises BadInput with what is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadInput(f"policy {path}: {error}") from error
    try:
        return of(data)
    except BadInput as error:
        raise BadInput(f"policy {path}: {error}") from error


def of(data: Any) -> GatePolicy:
    """A policy from plain data, as in files and `GatePolicy.json`. Raises BadInput for unknown keys and bad values."""
    values: dict[str, Any] = {}
    for key, value in _checked(data, GatePolicy, "a policy").items():
        if key in ("protected", "watched"):
            if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
                raise BadInput(f"{key} is {value!r:.80}; it must be a list of slice names")
            values[key] = tuple(value)
        elif key == "costs":
            values[key] = _costs(value)
        elif key == "slices":
            if not isinstance(value, Mapping):
                raise BadInput(f"slices is {value!r:.80}; it must have a table for each slice, [slices.NAME]")
            values[key] = {name: _rule(name, rule) for name, rule in value.items()}
        elif key == "metric":
            values[key] = _metric_name(key, value)
        else:
            values[key] = value
    return GatePolicy(**values)


def _rule(name: str, data: Any) -> SliceRule:
    values = _checked(data, SliceRule, f"[slices.{name}]")
    if "@" in name:
        raise BadInput(f"[slices.{name}]: a rule is for the newest version of a slice; name it without @")
    blocks = values.get("undecided_blocks")
    if blocks is not None and not isinstance(blocks, bool):
        raise BadInput(f"slices.{name}.undecided_blocks is {blocks!r}; it must be true or false")
    return SliceRule(_metric_name(f"slices.{name}.metric", values.get("metric")), values.get("margin"), blocks)


def _costs(data: Any) -> dict[str, dict[str, float]]:
    from training.metrics.classification_metrics import Costs

    if not isinstance(data, Mapping) or not all(isinstance(row, Mapping) for row in data.values()):
        raise BadInput("costs must have a table for each true class, [costs.TRUE_CLASS], with PREDICTED_CLASS = COST")
    Costs(data)
    return {label: dict(row) for label, row in data.items()}


def _checked(data: Any, kind: type[GatePolicy] | type[SliceRule], name: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise BadInput(f"{name} is {data!r:.80}; it must be a table")
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 3) or known
            raise BadInput(f"{name} has no {key!r}; did you mean {', '.join(near)}?")
    return data


def _check_number(name: str, value: Any, most: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < (most or float("inf")):
        raise BadInput(f"{name} is {value!r}; it must be a number above 0" + (f" and below {most}" if most else ""))


def _metric_name(name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise BadInput(f"{name} is {value!r}; it must be the name of a metric")
    return value


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
