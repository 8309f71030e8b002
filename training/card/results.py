"""Card sections on quality: intended use, metrics, gate, calibration, weak slices, forgetting.

Values, intervals and sentences are those of the record. Weak and best ones are chosen by comparing recorded values.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.card import facts as card_facts
from training.card.diff import cells_of
from training.card.facts import CardFacts
from training.card.markdown import block, code, number, plain, table, text

# The most names in a list: classes, and newly wrong images of a blocking slice.
MOST_CLASSES, MOST_IMAGES = 50, 5


def intended_use(facts: CardFacts) -> list[str]:
    """Its classes, the slices it was evaluated on, and the slices not to rely on."""
    run, measured = facts.run, ", ".join(code(name) for name in facts.values)
    shown = ", ".join(text(name) for name in run.classes[:MOST_CLASSES]) or "none recorded"
    more = ", and others in the table runs" if len(run.classes) > MOST_CLASSES else ""
    lines = [f"- It knows these classes: {shown}{more}."]
    if run.task == "classification":
        lines.append("- It predicts one of them for every image, also for images of something else.")
    if not measured:
        return ["\n".join([*lines, "- It was not evaluated on any slice, so its quality is not known."])]
    lines.append(f"- It was evaluated on {measured}, and not on images of any other kind.")
    if not_passed := _not_passed(facts):
        lines.append(
            f"- Do not rely on it where it did not pass the gate: {', '.join(code(name) for name in not_passed)}."
        )
    if below := card_facts.weak_slices(facts):
        lines.append(f"- Do not rely on it for its weak slices: {', '.join(code(name) for name in below)}.")
    return ["\n".join(lines)]


def metrics(facts: CardFacts, plots: Sequence[str]) -> list[str]:
    """Every metric on every slice beside that of the baseline, and the definitions of the slices."""
    old = facts.name_of(facts.baseline.id) if facts.baseline else None
    head = ["slice", "role", "metric", code(facts.name), "95 % interval", "n"]
    head += [code(old), "its 95 % interval", "its n"] if old else []
    rows = []
    for name, values in facts.values.items():
        role = facts.slices[name].role if name in facts.slices else None
        for metric, value in values.items():
            before = cells_of(facts.baseline_values.get(name, {}).get(metric)) if old else []
            rows.append([code(name), role or "-", f"{code(metric)}{_arrow(metric)}", *cells_of(value), *before])
    parts = (
        [table(head, rows)]
        if rows
        else [f"It was not evaluated on any slice; run: {code(f'lakeloop evaluate {facts.run.id}')}"]
    )
    if rows:
        parts.append("↑ higher is better, ↓ lower is better. Slices are NAME@VERSION; n is the number of images.")
    if "slices.png" in plots:
        parts.append(f"![{plain(facts.main_metric)} on every slice, with intervals](slices.png)")
    if "confusion.png" in plots:
        parts.append("![Confusion matrix on the images of these slices](confusion.png)")
    definitions = [
        [code(name), number(slice_.size), code(slice_.definition), f"{slice_.created_at:%Y-%m-%d}"]
        for name, slice_ in facts.slices.items()
    ]
    if definitions:
        parts += ["The definitions of these slices:", table(["slice", "images", "definition", "created"], definitions)]
    return parts


def gate(facts: CardFacts) -> list[str]:
    """The verdict, each slice's sentence, and the policy."""
    gate = facts.gate
    if gate is None:
        return ["There is no gate verdict."]
    conclusion = "must not replace" if gate.blocks else "may replace"
    head = f"Gate {code(gate.id)} of {gate.at:%Y-%m-%d %H:%M} UTC: **{gate.outcome}**."
    parts = [f"{head} {code(facts.name)} {conclusion} {code(facts.name_of(gate.baseline))}."]
    lines = []
    for verdict in gate.slices:
        standing = "" if verdict["standing"] == "judged" else f" ({verdict['standing']})"
        lines.append(f"- {'**Blocks.** ' if verdict['blocks'] else ''}{text(verdict['sentence'])}{standing}")
        newly_wrong = verdict["newly_wrong"]
        if verdict["blocks"] and newly_wrong:
            shown = ", ".join(code(image_id) for image_id in newly_wrong[:MOST_IMAGES])
            lines.append(f"  - newly wrong: {shown}{', …' if len(newly_wrong) > MOST_IMAGES else ''}")
    return [*parts, "\n".join(lines), "The gate policy:", block(gate.policy)]


def calibration(facts: CardFacts, plots: Sequence[str]) -> list[str]:
    """Its temperature and calibration errors."""
    result, parts = facts.run.data.get("result", {}), []
    if facts.run.task != "classification":
        return ["Scores of this task are not calibrated."]
    if "temperature" in result:
        parts.append(f"Logits are divided by a temperature of {number(float(result['temperature']))}.")
    rows = [[code(name), *cells_of(values["ece"])] for name, values in facts.values.items() if "ece" in values]
    if rows:
        parts.append("Expected calibration error, lower is better:")
        parts.append(table(["slice", "ECE", "95 % interval", "n"], rows))
    if "reliability.png" in plots:
        parts.append("![Accuracy by confidence](reliability.png)")
    return parts or ["Nothing was measured."]


def weak(facts: CardFacts) -> list[str]:
    """The slices whose interval is below that of the best slice."""
    if not facts.values:
        return ["Not known: it was not evaluated on any slice."]
    below = card_facts.weak_slices(facts)
    parts = [f"By {code(facts.main_metric)}, the slices whose whole interval is worse than that of the best slice:"]
    if below:
        rows = [[code(name), *cells_of(facts.values[name][facts.main_metric])] for name in below]
        parts.append(table(["slice", facts.main_metric, "95 % interval", "n"], rows))
    else:
        parts = [f"By {code(facts.main_metric)}, no slice has an interval wholly below that of the best slice."]
    empty = [name for name, values in facts.values.items() if all(v.value is None for v in values.values())]
    if empty:
        parts.append(f"Not known, since no image is labelled: {', '.join(code(name) for name in empty)}.")
    return parts


def forgetting(facts: CardFacts) -> list[str]:
    """The runs of its model on every slice, up to this run."""
    if len(facts.series) < 2:
        return ["No earlier run of this model was evaluated."]
    names = sorted({name for _, values in facts.series for name in values})
    head = ["slice", *(code(facts.name_of(run.id)) for run, _ in facts.series), "best so far"]
    best = min if card_facts.higher_is_better(facts.main_metric) is False else max
    rows = []
    for name in names:
        cells = [values.get(name, {}).get(facts.main_metric) for _, values in facts.series]
        numbers = [cell.value if cell else None for cell in cells]
        known = [value for value in numbers if value is not None]
        if known:
            rows.append([code(name), *map(number, numbers), number(best(known))])
    if not rows:
        return [f"No earlier run of this model was evaluated with {code(facts.main_metric)}."]
    return [f"{code(facts.main_metric)} of the runs of this model, oldest first:", table(head, rows)]


def _not_passed(facts: CardFacts) -> list[str]:
    verdicts = facts.gate.slices if facts.gate else []
    return [verdict["slice"] for verdict in verdicts if verdict["outcome"] != "passed"]


def _arrow(metric: str) -> str:
    better = card_facts.higher_is_better(metric)
    return "" if better is None else " ↑" if better else " ↓"
