"""The definition of a slice as plain data: checked, written as JSON, and described in words.

A definition is one kind of source and, optionally, slices that are subtracted:

    {"where": "label = 'cat'"}                       images with a sample that passes
    {"ids": ["9f3c...", ...]}                        images and predictions by id
    {"cluster": ["tree/0.3"]}                        all images in these nodes
    {"search": "a1b2c3d4"}                           the images that an active search has found
    {"like": {"ids": [...], "radius": 0.2, "embedder": "resnet18"}}   images near the mean of examples
    {"union": ["cats", "dogs@2", {"where": "..."}]}  images in any of these
    {"intersect": ["cats", "night@gold"]}            images in all of these
    ... , "minus": ["seen"]                          with any of them: without images of these slices

NAME means the slice's newest version. Nothing here knows the lake: `members.py` finds the images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lake.errors import BadInput

KINDS = ("where", "ids", "cluster", "search", "like", "union", "intersect")
# As the column `kind` of slices says it.
KIND_COLUMN = {kind: kind for kind in KINDS} | {"intersect": "intersection"}
# An `ids` slice stores this instead of its list: the ids are its members.
MEMBERS = "members"
MAX_DEPTH = 20
ROLES = ("train", "evaluation", "regression")
# How the leak guard made a training slice, stored beside its definition: it left the leaks out; it compared images
# without vectors by identity only.
GUARD_FLAGS = ("drop_leaks", "identity_only")

Definition = dict[str, Any]


def check(definition: Any, depth: int = 0) -> Definition:
    """The definition in its normal form: a single value becomes a list. Raises BadInput if it is not valid."""
    if not isinstance(definition, Mapping):
        raise BadInput(f"a slice's definition is an object with one of {', '.join(KINDS)}, not {definition!r:.80}")
    if depth > MAX_DEPTH:
        raise BadInput(f"the definition is nested more than {MAX_DEPTH} deep")
    unknown = sorted(set(definition) - {*KINDS, "minus"})
    if unknown:
        raise BadInput(f"a slice's definition has no {unknown[0]!r}; it takes {', '.join(KINDS)} and minus")
    kinds = [kind for kind in KINDS if definition.get(kind) is not None]
    if len(kinds) != 1:
        choices = "a SQL filter, ids, a cluster node, a search, a similarity, a union or an intersection"
        raise BadInput(f"define a slice by exactly one of {choices}")
    kind, value = kinds[0], definition[kinds[0]]
    checked: Definition = {}
    if kind in ("where", "search"):
        checked[kind] = _text(kind, value)
    elif kind == "like":
        checked[kind] = _ball(value)
    elif kind in ("union", "intersect"):
        parts = _list(kind, value)
        if len(parts) < 2:
            raise BadInput(f"{kind} takes two slices or more, not {len(parts)}")
        checked[kind] = [check(part, depth + 1) if isinstance(part, Mapping) else _text(kind, part) for part in parts]
    else:
        checked[kind] = [_text(kind, part) for part in dict.fromkeys(_list(kind, value))]
    if definition.get("minus"):
        checked["minus"] = [_text("minus", part) for part in dict.fromkeys(_list("minus", definition["minus"]))]
    return checked


def kind_of(definition: Definition) -> str:
    return next(kind for kind in KINDS if kind in definition)


def dump(definition: Definition, drop_leaks: bool = False, identity_only: bool = False) -> str:
    """What the column `spec` stores. Ids are left out: they are the slice's members."""
    stored = {**definition, "ids": MEMBERS} if "ids" in definition else dict(definition)
    stored |= {name: True for name, flag in zip(GUARD_FLAGS, (drop_leaks, identity_only), strict=True) if flag}
    return json.dumps(stored, ensure_ascii=False)


def load(text: str) -> Definition:
    """Parses a definition as `slice show --spec` prints it. Raises BadInput."""
    try:
        definition = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the spec is not JSON: {error}") from error
    if not isinstance(definition, dict):
        raise BadInput(f"a spec is a JSON object with one of {', '.join(KINDS)}, not {text.strip()!r:.80}")
    return definition


def stored(spec: str | None, kind: str, words: str) -> Definition:
    """The definition in the columns of a slice, with its guard flags; `ids` of one is `MEMBERS`.

    A slice that was made before slices had specs has it in `kind` and `words`.
    """
    if spec is not None:
        return load(spec)
    if kind == "where":
        return {"where": words}
    return {"cluster": words.split(", ")} if kind == "cluster" else {"ids": MEMBERS}


def words(definition: Definition) -> str:
    """The definition in one line: the filter, the nodes, the number of ids, the names of slices."""
    kind = kind_of(definition)
    value = definition[kind]
    match kind:
        case "where" | "search":
            text = str(value)
        case "ids":
            text = "the ids stored" if value == MEMBERS else f"{len(value):,} ids" if len(value) != 1 else "1 id"
        case "cluster":
            text = ", ".join(value)
        case "like":
            examples = ", ".join(part[:12] for part in value["ids"][:3]) + (", ..." if len(value["ids"]) > 3 else "")
            text = f"within {value['radius']:g} of {examples} by {value['embedder'] or 'the first embedder'}"
        case _:
            joint = " or " if kind == "union" else " and "
            text = joint.join(part if isinstance(part, str) else f"({words(part)})" for part in value)
    return text + (f" minus {', '.join(definition['minus'])}" if definition.get("minus") else "")


def references(definition: Definition) -> list[str]:
    """The slices it refers to: NAME, NAME@VERSION or NAME@TAG."""
    names = list(definition.get("minus", ()))
    for part in (*definition.get("union", ()), *definition.get("intersect", ())):
        names += [part] if isinstance(part, str) else references(part)
    return names


def _ball(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or set(value) - {"ids", "radius", "embedder"}:
        raise BadInput(f"like takes ids, radius and embedder, not {value!r:.80}")
    ids = [_text("like", example) for example in dict.fromkeys(_list("like", value.get("ids")))]
    radius = value.get("radius")
    if not ids:
        raise BadInput("like needs at least one id")
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 <= radius <= 2 or math.isnan(radius):
        raise BadInput(f"radius is {radius!r}; it is a cosine distance (1 - similarity), from 0 to 2")
    embedder = value.get("embedder")
    return {"ids": ids, "radius": float(radius), "embedder": None if embedder is None else _text("like", embedder)}


def _list(kind: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple):
        raise BadInput(f"{kind} takes a list, not {value!r:.80}")
    return [*value]


def _text(kind: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadInput(f"{kind} takes text, not {value!r:.80}")
    return value
