"""What is different between two versions of a model: data, classes, recipe, environment, and what came of it.

Markdown, from the record of both runs. Two numbers stand side by side; whether a difference is more than chance is the
gate's to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from training.card import facts
from training.card.facts import Facts, Measured
from training.card.markdown import code, number, table, text

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.registry.runs import Run


def diff(lake: Lake, a: str, b: str) -> str:
    """From a to b, each NAME@V, a run or a model's name. Raises BadInput when one of them is not there or not done."""
    old, new = (facts.facts(lake, name, answers=False) for name in (a, b))
    parts = [f"# {old.title} → {new.title}", *changes(old.run, new.run)]
    parts += ["## Metrics", metrics(old, new) or "Neither was evaluated on a slice."]
    parts += ["## Gate", gate(old, new)]
    return "\n\n".join(parts) + "\n"


def changes(old: Run, new: Run) -> list[str]:
    """Data, classes, recipe and environment, as Markdown paragraphs with their headings; what is alike is left out."""
    kinds = {key: (getattr(old, key), getattr(new, key)) for key in ("model", "task", "kind", "parent", "seed")}
    parts = _section("Run", _table(kinds))
    parts += _section("Data", _data(old, new))
    gone, come = _apart(old.classes, new.classes)
    said = [f"- no longer known: {gone}"] * bool(gone) + [f"- new: {come}"] * bool(come)
    parts += _section("Classes", "\n".join(said))
    parts += _section("Recipe", _table(_pairs(old.settings, new.settings)))
    flat = [{k: v for k, v in run.environment.items() if k != "packages"} | run.environment.get("packages", {})
            for run in (old, new)]  # fmt: skip
    parts += _section("Environment", _table(_pairs(*flat)))
    return parts or ["Data, classes, recipe and environment are the same."]


def metrics(old: Facts, new: Facts) -> str:
    """Every metric on every slice that either was evaluated on; an empty text when there is none."""
    rows = []
    for name in sorted({*old.figures, *new.figures}):
        before, after = old.figures.get(name, {}), new.figures.get(name, {})
        for metric in dict.fromkeys([*before, *after]):
            cells = [part for one in (before.get(metric), after.get(metric)) for part in cells_of(one)]
            rows.append([code(name), code(metric), *cells])
    head = ["slice", "metric", *(f"{when} {what}" for when in ("old", "new") for what in ("value", "interval", "n"))]
    return table(head, rows) if rows else ""


def cells_of(one: Measured | None) -> list[str]:
    """Value, interval and n."""
    if one is None:
        return ["-", "-", "-"]
    interval = "-" if one.low is None or one.high is None else f"{number(one.low)} to {number(one.high)}"
    return [number(one.value), interval, number(one.n)]


def gate(old: Facts, new: Facts) -> str:
    """The verdict on the new one when it was judged against the old one."""
    found = new.gate
    if found is None or found.baseline != old.run.id:
        return f"{code(new.name)} was not judged against {code(old.name)}."
    ends = "must not replace" if found.blocks else "may replace"
    lines = [f"{code(found.id)}: **{found.outcome}**; {code(new.name)} {ends} {code(old.name)}.", ""]
    return "\n".join(lines + [f"- {text(one['sentence'])}" for one in found.slices])


# ----------------------------------------------------------------------------------------------------------


def _data(old: Run, new: Run) -> str:
    before, after = ({(one["use"], one["id"]): one for one in run.data.get("slices", [])} for run in (old, new))
    lines = []
    for key in sorted({*before, *after}):
        use, name = key
        if key not in after:
            lines.append(f"- no longer {use}: {code(name)}, {number(before[key]['images'])} images")
        elif key not in before:
            lines.append(f"- now {use}: {code(name)}, {number(after[key]['images'])} images")
        elif before[key]["images_sha256"] != after[key]["images_sha256"]:
            counts = f"{number(before[key]['images'])} images before, {number(after[key]['images'])} now"
            lines.append(f"- {use}: {code(name)} has other images, {counts}")
        elif before[key]["label_events_sha256"] != after[key]["label_events_sha256"]:
            lines.append(f"- {use}: {code(name)} has other labels")
    uses = {use: tuple(run.data.get("splits", {}).get(use, {}).get("images") for run in (old, new))
            for use in ("train", "replay", "validation", "test")}  # fmt: skip
    rows = [[use, number(a), number(b)] for use, (a, b) in uses.items() if a != b]
    shown = table(["images of", "old", "new"], rows) if rows else ""
    return "\n\n".join(part for part in ("\n".join(lines), shown) if part)


def _apart(old: Iterable[str], new: Iterable[str]) -> tuple[str, str]:
    before, after = dict.fromkeys(old), dict.fromkeys(new)
    gone, come = ([one for one in a if one not in b] for a, b in ((before, after), (after, before)))
    return ", ".join(map(text, gone)), ", ".join(map(text, come))


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (old.get(key), new.get(key)) for key in sorted({*old, *new})}


def _table(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    rows = [[code(key), _value(a), _value(b)] for key, (a, b) in pairs.items() if a != b]
    return table(["", "old", "new"], rows) if rows else ""


def _value(value: Any) -> str:
    return "-" if value is None or value == "" else code(value if isinstance(value, str) else json.dumps(value))


def _section(heading: str, body: str) -> list[str]:
    return [f"### {heading}", body] if body else []
