"""What a gate asks of a candidate: which metric, how large a fall is still none, and which slices must not fall.

A policy is a file that a team keeps beside its code, TOML or JSON; without one the defaults below hold. It is stored
whole with every verdict. Nothing is measured here.
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
# The metric of a task when the policy names none.
METRICS = {"classification": "accuracy", "segmentation": "miou", "detection": "map_50"}


@dataclass(frozen=True)
class Rule:
    """What is different for one slice; None: as for all."""

    metric: str | None = None
    margin: float | None = None
    undecided_blocks: bool | None = None


@dataclass(frozen=True)
class Policy:
    """`margin`: a true fall up to this is put up with, in the metric's own unit, above 0. `fail_level`: chance of
    failing any slice when none has fallen, over all slices together. `pass_level`: chance of passing a slice whose
    true fall is larger than its margin, for each. `protected` and `watched`: names of slices, `*` and `?` stand for
    anything. `costs[truth][answer]`: what a wrong answer costs, for the metric cost.
    """

    metric: str | None = None
    margin: float = 0.02
    fail_level: float = 0.05
    pass_level: float = 0.05
    protected: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    slices: Mapping[str, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _number("margin", self.margin, None)
        _number("fail_level", self.fail_level, 0.5)
        _number("pass_level", self.pass_level, 0.5)
        for name, rule in self.slices.items():
            if rule.margin is not None:
                _number(f"slices.{name}.margin", rule.margin, None)

    def metric_of(self, name: str, task: str) -> str:
        """The metric that judges a slice."""
        return self.rule(name).metric or self.metric or METRICS[task]

    def margin_of(self, name: str) -> float:
        own = self.rule(name).margin
        return self.margin if own is None else own

    def standing(self, name: str, role: str | None) -> Standing:
        """protected: a fall blocks, and not knowing does, too; judged: a fall blocks; watched: nothing does.

        Slices of role regression are protected whatever the policy says.
        """
        if role == "regression" or _among(name, self.protected):
            return "protected"
        return "watched" if _among(name, self.watched) else "judged"

    def undecided_blocks(self, name: str, role: str | None) -> bool:
        """Whether not knowing blocks: for protected slices, unless the slice's rule says otherwise."""
        standing, own = self.standing(name, role), self.rule(name).undecided_blocks
        return standing == "protected" if own is None or standing == "watched" else own

    def rule(self, name: str) -> Rule:
        return self.slices.get(name, Rule())

    def named(self) -> list[str]:
        """The slices it names outright: they are judged whatever their role."""
        plain = [one for one in (*self.protected, *self.watched) if not set(one) & set("*?[")]
        return sorted({*plain, *self.slices})

    def with_slices(self, names: Sequence[str]) -> Policy:
        """The policy, judging these as well."""
        return replace(self, slices={**{name: Rule() for name in names}, **self.slices})

    def json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def load(path: Path) -> Policy:
    """The policy in a file, JSON when its name ends so, else TOML. Raises BadInput saying what is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadInput(f"policy {path}: {error}") from error
    try:
        return of(given)
    except BadInput as error:
        raise BadInput(f"policy {path}: {error}") from error


def of(given: Any) -> Policy:
    """A policy from plain data, as `Policy.json` and files have it. Raises BadInput for what it does not know."""
    made: dict[str, Any] = {}
    for key, value in _known(given, Policy, "a policy").items():
        if key in ("protected", "watched"):
            if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in value):
                raise BadInput(f"{key} is a list of slices' names, not {value!r:.80}")
            made[key] = tuple(value)
        elif key == "costs":
            made[key] = _costs(value)
        elif key == "slices":
            if not isinstance(value, Mapping):
                raise BadInput(f"slices is a table for each slice, [slices.NAME], not {value!r:.80}")
            made[key] = {name: _rule(name, rule) for name, rule in value.items()}
        elif key == "metric":
            made[key] = _text(key, value)
        else:
            made[key] = value
    return Policy(**made)


def _rule(name: str, given: Any) -> Rule:
    found = _known(given, Rule, f"[slices.{name}]")
    if "@" in name:
        raise BadInput(f"[slices.{name}]: a rule is for a slice's newest version; name it without @")
    blocks = found.get("undecided_blocks")
    if blocks is not None and not isinstance(blocks, bool):
        raise BadInput(f"slices.{name}.undecided_blocks is {blocks!r}; it is true or false")
    return Rule(_text(f"slices.{name}.metric", found.get("metric")), found.get("margin"), blocks)


def _costs(given: Any) -> dict[str, dict[str, float]]:
    from training.metrics.classification_metrics import Costs

    if not isinstance(given, Mapping) or not all(isinstance(row, Mapping) for row in given.values()):
        raise BadInput("costs is a table for each true class, [costs.TRUTH], with ANSWER = COST in it")
    Costs(given)
    return {truth: dict(row) for truth, row in given.items()}


def _known(given: Any, kind: type[Policy] | type[Rule], what: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise BadInput(f"{what} is a table, not {given!r:.80}")
    names = [f.name for f in fields(kind)]
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 3) or names
            raise BadInput(f"{what} has no {key!r}; did you mean {', '.join(near)}?")
    return given


def _number(name: str, value: Any, most: float | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < (most or float("inf")):
        raise BadInput(f"{name} is {value!r}; it is a number above 0" + (f" and below {most}" if most else ""))


def _text(name: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise BadInput(f"{name} is {value!r}; it is a metric's name")
    return value


def _among(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, one) for one in patterns)
