"""A slice as code: its definition as plain data, checked, written as JSON, and said in words.

A definition is one kind of source and, optionally, slices that are taken away:

    {"where": "label = 'cat'"}                       images one of whose rows of predictions passes
    {"ids": ["9f3c...", ...]}                        images and predictions by their ids
    {"cluster": ["tree/0.3"]}                        everything in these nodes
    {"search": "a1b2c3d4"}                           what an active search has found
    {"like": {"ids": [...], "radius": 0.2, "embedder": "resnet18"}}   a ball round examples
    {"union": ["cats", "dogs@2", {"where": "..."}]}  in any of these
    {"intersect": ["cats", "night@gold"]}            in all of these
    ... , "minus": ["seen"]                          beside any of them

NAME means the slice's newest version. It knows no lake: what it gives is found in `members.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lake.errors import BadInput

KINDS = ("where", "ids", "cluster", "search", "like", "union", "intersect")
# As the column `kind` of slices says it.
NAMED = {kind: kind for kind in KINDS} | {"intersect": "intersection"}
# What an `ids` slice stores instead of its list: the ids are its members.
MEMBERS = "members"
DEEPEST = 20
ROLES = ("train", "evaluation", "regression")
# How the leak guard made a training slice, stored beside its definition: it left the leaks out; it compared images
# without vectors by identity only.
GUARD_FLAGS = ("drop_leaks", "identity_only")

Definition = dict[str, Any]


def check(given: Any, depth: int = 0) -> Definition:
    """The definition in its one form: lists where one may be given. Raises BadInput saying what is wrong in it."""
    if not isinstance(given, Mapping):
        raise BadInput(f"a slice's definition is an object with one of {', '.join(KINDS)}, not {given!r:.80}")
    if depth > DEEPEST:
        raise BadInput(f"the definition is nested more than {DEEPEST} deep")
    strange = sorted(set(given) - {*KINDS, "minus"})
    if strange:
        raise BadInput(f"a slice's definition has no {strange[0]!r}; it takes {', '.join(KINDS)} and minus")
    kinds = [kind for kind in KINDS if given.get(kind) is not None]
    if len(kinds) != 1:
        what = "a SQL filter, ids, a cluster node, a search, a likeness, a union or an intersection"
        raise BadInput(f"define a slice by exactly one of {what}")
    kind, value = kinds[0], given[kinds[0]]
    made: Definition = {}
    if kind in ("where", "search"):
        made[kind] = _text(kind, value)
    elif kind == "like":
        made[kind] = _ball(value)
    elif kind in ("union", "intersect"):
        parts = _list(kind, value)
        if len(parts) < 2:
            raise BadInput(f"{kind} takes two slices or more, not {len(parts)}")
        made[kind] = [check(one, depth + 1) if isinstance(one, Mapping) else _text(kind, one) for one in parts]
    else:
        made[kind] = [_text(kind, one) for one in dict.fromkeys(_list(kind, value))]
    if given.get("minus"):
        made["minus"] = [_text("minus", one) for one in dict.fromkeys(_list("minus", given["minus"]))]
    return made


def kind_of(definition: Definition) -> str:
    return next(kind for kind in KINDS if kind in definition)


def dump(definition: Definition, drop_leaks: bool = False, identity_only: bool = False) -> str:
    """What the column `spec` stores. Ids are left out: they are the slice's members."""
    stored = {**definition, "ids": MEMBERS} if "ids" in definition else dict(definition)
    stored |= {name: True for name, flag in zip(GUARD_FLAGS, (drop_leaks, identity_only), strict=True) if flag}
    return json.dumps(stored, ensure_ascii=False)


def load(text: str) -> Definition:
    """A definition as `slice show --spec` prints it. Raises BadInput."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the spec is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise BadInput(f"a spec is a JSON object with one of {', '.join(KINDS)}, not {text.strip()!r:.80}")
    return given


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
    """One line for people: the filter, the nodes, the number of ids, the names of slices."""
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
            some = ", ".join(one[:12] for one in value["ids"][:3]) + (", ..." if len(value["ids"]) > 3 else "")
            text = f"within {value['radius']:g} of {some} by {value['embedder'] or 'the first embedder'}"
        case _:
            joint = " or " if kind == "union" else " and "
            text = joint.join(one if isinstance(one, str) else f"({words(one)})" for one in value)
    return text + (f" minus {', '.join(definition['minus'])}" if definition.get("minus") else "")


def references(definition: Definition) -> list[str]:
    """The slices it names, as it names them."""
    found = list(definition.get("minus", ()))
    for part in (*definition.get("union", ()), *definition.get("intersect", ())):
        found += [part] if isinstance(part, str) else references(part)
    return found


def _ball(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or set(value) - {"ids", "radius", "embedder"}:
        raise BadInput(f"like takes ids, radius and embedder, not {value!r:.80}")
    ids = [_text("like", one) for one in dict.fromkeys(_list("like", value.get("ids")))]
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
