"""The difference between two runs as Markdown: data, classes, recipe, environment, metrics and gate.

Two values are shown side by side. The gate decides whether their difference is more than chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from training.card import facts as card_facts
from training.card.facts import CardFacts, MetricValue
from training.card.markdown import code, number, table, text

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.registry.runs import Run


def diff(lake: Lake, old_name: str, new_name: str) -> str:
    """From old to new, each NAME@V, a run or the name of a model. Raises BadInput if one is missing or not done."""
    old, new = (card_facts.gather(lake, name, predictions=False) for name in (old_name, new_name))
    parts = [f"# {old.title} → {new.title}", *changes(old.run, new.run)]
    parts += ["## Metrics", metrics(old, new) or "Neither was evaluated on a slice."]
    parts += ["## Gate", gate(old, new)]
    return "\n\n".join(parts) + "\n"


def changes(old: Run, new: Run) -> list[str]:
    """Changes of data, classes, recipe and environment, as Markdown paragraphs with headings."""
    kinds = {key: (getattr(old, key), getattr(new, key)) for key in ("model", "task", "kind", "parent", "seed")}
    parts = _section("Run", _table(kinds))
    parts += _section("Data", _data(old, new))
    removed, added = _missing(old.classes, new.classes), _missing(new.classes, old.classes)
    lines = [f"- removed: {removed}"] * bool(removed) + [f"- added: {added}"] * bool(added)
    parts += _section("Classes", "\n".join(lines))
    parts += _section("Recipe", _table(_pairs(old.settings, new.settings)))
    flat = [{k: v for k, v in run.environment.items() if k != "packages"} | run.environment.get("packages", {})
            for run in (old, new)]  # fmt: skip
    parts += _section("Environment", _table(_pairs(*flat)))
    return parts or ["Data, classes, recipe and environment are the same."]


def metrics(old: CardFacts, new: CardFacts) -> str:
    """Every metric on every slice that either was evaluated on; "" if there is none."""
    rows = []
    for name in sorted({*old.values, *new.values}):
        before, after = old.values.get(name, {}), new.values.get(name, {})
        for metric in dict.fromkeys([*before, *after]):
            rows.append([code(name), code(metric), *cells_of(before.get(metric)), *cells_of(after.get(metric))])
    head = ["slice", "metric", *(f"{run} {column}" for run in ("old", "new") for column in ("value", "interval", "n"))]
    return table(head, rows) if rows else ""


def cells_of(value: MetricValue | None) -> list[str]:
    """Value, interval and n."""
    if value is None:
        return ["-", "-", "-"]
    interval = "-" if value.low is None or value.high is None else f"{number(value.low)} to {number(value.high)}"
    return [number(value.value), interval, number(value.n)]


def gate(old: CardFacts, new: CardFacts) -> str:
    """The verdict on the new run against the old one."""
    verdict = new.gate
    if verdict is None or verdict.baseline != old.run.id:
        return f"There is no gate verdict on {code(new.name)} against {code(old.name)}."
    conclusion = "must not replace" if verdict.blocks else "may replace"
    head = f"{code(verdict.id)}: **{verdict.outcome}**; {code(new.name)} {conclusion} {code(old.name)}."
    return "\n".join([head, "", *(f"- {text(slice_['sentence'])}" for slice_ in verdict.slices)])


# ----------------------------------------------------------------------------------------------------------


def _data(old: Run, new: Run) -> str:
    before, after = ({(row["use"], row["id"]): row for row in run.data.get("slices", [])} for run in (old, new))
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
    counts_table = table(["images of", "old", "new"], rows) if rows else ""
    return "\n\n".join(part for part in ("\n".join(lines), counts_table) if part)


def _missing(names: Iterable[str], others: Iterable[str]) -> str:
    """The names that are not among the others, listed."""
    known = set(others)
    return ", ".join(text(name) for name in dict.fromkeys(names) if name not in known)


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (old.get(key), new.get(key)) for key in sorted({*old, *new})}


def _table(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    rows = [[code(key), _value(a), _value(b)] for key, (a, b) in pairs.items() if a != b]
    return table(["", "old", "new"], rows) if rows else ""


def _value(value: Any) -> str:
    return "-" if value is None or value == "" else code(value if isinstance(value, str) else json.dumps(value))


def _section(heading: str, body: str) -> list[str]:
    return [f"### {heading}", body] if body else []
