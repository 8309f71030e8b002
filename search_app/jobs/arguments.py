"""The arguments of a kind of job as declared: checked when the job is started, and described in OpenAPI."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lake.errors import BadInput

Type = Literal["text", "texts", "integer", "number", "flag", "object"]
LONGEST_TEXT = 20_000
MOST_TEXTS = 1_000
_SCHEMAS: dict[Type, dict[str, Any]] = {
    "text": {"type": "string", "maxLength": LONGEST_TEXT},
    "texts": {"type": "array", "items": {"type": "string", "maxLength": LONGEST_TEXT}, "maxItems": MOST_TEXTS},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "flag": {"type": "boolean"},
    "object": {"type": "object"},
}


@dataclass(frozen=True)
class Argument:
    """One argument. `local`: it names a file or folder of the machine, so only the command line may give it."""

    type: Type
    doc: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    required: bool = False
    local: bool = False

    def schema(self) -> dict[str, Any]:
        """As JSON Schema. Null is the same as leaving out an argument that is not required."""
        schema = _SCHEMAS[self.type]
        none = [] if self.required else [None]
        types = schema["type"] if self.required else [schema["type"], "null"]
        limits = {"enum": [*self.choices, *none] if self.choices else None, "minimum": self.least, "maximum": self.most}
        return schema | {"type": types, "description": self.doc} | {k: v for k, v in limits.items() if v is not None}


def checked(kind: str, declared: Mapping[str, Argument], given: Mapping[str, Any], *, local: bool) -> dict[str, Any]:
    """The arguments without those that are None. `local`: they come from a person at this machine.

    Raises BadInput, naming the argument, for an unknown or missing one, a wrong type, a value out of its range, and for
    a path that comes from elsewhere.
    """
    allowed = {name: argument for name, argument in declared.items() if local or not argument.local}
    for name in given:
        if name not in allowed:
            if name in declared:
                raise BadInput(f"{kind}: {name} names a file of the server; give it on the command line there")
            near = difflib.get_close_matches(name, allowed, 3) or sorted(allowed)
            raise BadInput(f"{kind} takes no {name[:100]!r}; it takes {', '.join(near) or 'nothing'}")
    arguments = {name: value for name, value in given.items() if value is not None}
    for name, argument in allowed.items():
        if name in arguments:
            _check(f"{kind}: {name}", argument, arguments[name])
        elif argument.required:
            raise BadInput(f"{kind} needs {name}: {argument.doc}")
    return arguments


def _check(name: str, argument: Argument, value: Any) -> None:
    shown = f"{value!r:.100}"
    match argument.type:
        case "text":
            fits, wanted = (
                isinstance(value, str) and len(value) <= LONGEST_TEXT,
                f"a text of at most {LONGEST_TEXT:,} characters",
            )
        case "texts":
            fits = isinstance(value, list | tuple) and len(value) <= MOST_TEXTS
            fits = fits and all(isinstance(text, str) and len(text) <= LONGEST_TEXT for text in value)
            wanted = f"a list of at most {MOST_TEXTS:,} texts"
        case "integer":
            fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        case "number":
            fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        case "flag":
            fits, wanted = isinstance(value, bool), "true or false"
        case "object":
            fits, wanted = isinstance(value, Mapping), "an object"
    if not fits:
        raise BadInput(f"{name} is {shown}; it must be {wanted}")
    if argument.choices and value not in argument.choices:
        raise BadInput(f"{name} is {shown}; it must be one of {', '.join(argument.choices)}")
    if argument.least is not None and not value >= argument.least:
        raise BadInput(f"{name} is {shown}; it must be at least {argument.least:g}")
    if argument.most is not None and not value <= argument.most:
        raise BadInput(f"{name} is {shown}; it must be at most {argument.most:g}")
