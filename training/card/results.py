"""The part of a model card that says what a model is worth: Markdown paragraphs from facts.

Values, intervals and sentences are the record's; what is weak or best is chosen by comparing them, never by arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.card import facts
from training.card.diff import cells_of
from training.card.facts import Facts
from training.card.markdown import block, code, number, plain, table, text

# Names of a list that are shown: classes, and images that a slice was blocked by.
MOST_CLASSES, MOST_IMAGES = 50, 5


def purpose(found: Facts) -> list[str]:
    """Its classes, what it was measured on, and where it is not to be relied on."""
    run, measured = found.run, ", ".join(code(name) for name in found.figures)
    shown = ", ".join(text(name) for name in run.classes[:MOST_CLASSES]) or "none recorded"
    more = ", and others that the table of runs lists" if len(run.classes) > MOST_CLASSES else ""
    lines = [f"- It knows these classes: {shown}{more}."]
    if run.task == "classification":
        lines.append("- It answers every image with one of them, also an image of something else.")
    if not measured:
        return ["\n".join([*lines, "- It was evaluated on no slice: what it is good for is not known."])]
    lines.append(f"- What it can do was measured on {measured}. On images of any other kind it was not.")
    if doubtful := _doubtful(found):
        lines.append(f"- Do not rely on it where the gate did not pass it: {', '.join(code(one) for one in doubtful)}.")
    if below := facts.weak(found):
        lines.append(f"- Do not rely on it for its weak slices: {', '.join(code(one) for one in below)}.")
    return ["\n".join(lines)]


def metrics(found: Facts, plots: Sequence[str]) -> list[str]:
    """Every metric on every slice, the baseline's beside it, with what the slices are."""
    old = found.called(found.baseline.id) if found.baseline else None
    head = ["slice", "role", "metric", found.name, "95 % interval", "n"]
    head += [code(old), "its 95 % interval", "its n"] if old else []
    rows = []
    for name, some in found.figures.items():
        role = found.slices[name].role if name in found.slices else None
        for metric, one in some.items():
            before = cells_of(found.before.get(name, {}).get(metric)) if old else []
            rows.append([code(name), role or "-", f"{code(metric)}{_arrow(metric)}", *cells_of(one), *before])
    head[3] = code(found.name)
    parts = (
        [table(head, rows)] if rows else [f"No slice was evaluated; run: {code(f'lakeloop evaluate {found.run.id}')}"]
    )
    if rows:
        parts.append("↑ higher is better, ↓ lower is better. Each slice is NAME@VERSION; n counts images.")
    if "slices.png" in plots:
        parts.append(f"![{plain(found.metric)} on every slice, with intervals](slices.png)")
    if "confusion.png" in plots:
        parts.append("![What was true and what was said, on the images of these slices](confusion.png)")
    definitions = [
        [code(name), number(one.size), code(one.definition), f"{one.created_at:%Y-%m-%d}"]
        for name, one in found.slices.items()
    ]
    if definitions:
        parts += ["What these slices are:", table(["slice", "images", "defined as", "made on"], definitions)]
    return parts


def gate(found: Facts) -> list[str]:
    """The verdict, each slice's sentence, and the policy."""
    gate = found.gate
    if gate is None:
        return ["It was judged by no gate."]
    ends = "must not replace" if gate.blocks else "may replace"
    said = f"Gate {code(gate.id)} of {gate.at:%Y-%m-%d %H:%M} UTC: **{gate.outcome}**."
    parts = [f"{said} {code(found.name)} {ends} {code(found.called(gate.baseline))}."]
    lines = []
    for one in gate.slices:
        standing = "" if one["standing"] == "judged" else f" ({one['standing']})"
        lines.append(f"- {'**Blocks.** ' if one['blocks'] else ''}{text(one['sentence'])}{standing}")
        if one["blocks"] and one["newly_wrong"]:
            shown = ", ".join(code(name) for name in one["newly_wrong"][:MOST_IMAGES])
            lines.append(f"  - newly wrong: {shown}{', …' if len(one['newly_wrong']) > MOST_IMAGES else ''}")
    return [*parts, "\n".join(lines), "The policy it was held to:", block(gate.policy)]


def calibration(found: Facts, plots: Sequence[str]) -> list[str]:
    """Whether its confidences mean what they say."""
    result, parts = found.run.data.get("result", {}), []
    if found.run.task != "classification":
        return ["Scores of this task are not calibrated."]
    if "temperature" in result:
        parts.append(f"Logits are divided by a temperature of {number(float(result['temperature']))}.")
    rows = [[code(name), *cells_of(some["ece"])] for name, some in found.figures.items() if "ece" in some]
    if rows:
        parts.append("Expected calibration error, lower is better:")
        parts.append(table(["slice", "ECE", "95 % interval", "n"], rows))
    if "reliability.png" in plots:
        parts.append("![Accuracy by confidence](reliability.png)")
    return parts or ["Nothing was measured."]


def weak(found: Facts) -> list[str]:
    """The slices that it is worst on beyond doubt."""
    if not found.figures:
        return ["Not known: no slice was evaluated."]
    below = facts.weak(found)
    parts = [f"By {code(found.metric)}, the slices whose whole interval is worse than that of the best slice:"]
    if below:
        rows = [[code(name), *cells_of(found.figures[name][found.metric])] for name in below]
        parts.append(table(["slice", found.metric, "95 % interval", "n"], rows))
    else:
        parts = [f"By {code(found.metric)}, no slice's interval lies wholly below that of the best slice."]
    empty = [name for name, some in found.figures.items() if all(one.value is None for one in some.values())]
    if empty:
        parts.append(f"Not known, for want of labelled images: {', '.join(code(name) for name in empty)}.")
    return parts


def forgetting(found: Facts) -> list[str]:
    """The runs of its model on every slice, up to this one."""
    if len(found.line) < 2:
        return ["No earlier run of this model was evaluated."]
    names = sorted({name for _, figures in found.line for name in figures})
    head = ["slice", *(code(found.called(run.id)) for run, _ in found.line), "best so far"]
    pick = min if facts.higher_is_better(found.metric) is False else max
    rows = []
    for name in names:
        values = [one.value if (one := figures.get(name, {}).get(found.metric)) else None for _, figures in found.line]
        known = [value for value in values if value is not None]
        if known:
            rows.append([code(name), *map(number, values), number(pick(known))])
    if not rows:
        return [f"No earlier run of this model was evaluated with {code(found.metric)}."]
    return [f"{code(found.metric)} of this model's runs, the oldest first:", table(head, rows)]


def _doubtful(found: Facts) -> list[str]:
    return [one["slice"] for one in (found.gate.slices if found.gate else []) if one["outcome"] != "passed"]


def _arrow(metric: str) -> str:
    better = facts.higher_is_better(metric)
    return "" if better is None else " ↑" if better else " ↓"
