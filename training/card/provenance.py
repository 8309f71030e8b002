"""Card sections on origin: data, changes, training, environment, loading, licences, history."""

from __future__ import annotations

from collections.abc import Sequence

from training.card import diff
from training.card.facts import CardFacts
from training.card.markdown import block, code, number, table, text

MOST_CLASSES = 50


def data(facts: CardFacts) -> list[str]:
    """Slices and splits with their counts and hashes, and what was left out."""
    data = facts.run.data
    head = ["slice", "use", "images", "SHA-256 of image ids", "SHA-256 of label events"]
    rows = [
        [
            code(row["id"]),
            row["use"],
            number(row["images"]),
            code(row["images_sha256"]),
            code(row["label_events_sha256"]),
        ]
        for row in data.get("slices", [])
    ]
    parts = [table(head, rows) if rows else "No slice is recorded."]
    splits = [
        [use, number(split["images"]), code(split["images_sha256"]), _counts(split["classes"])]
        for use, split in data.get("splits", {}).items()
        if split["images"]
    ]
    if splits:
        parts.append("Splits (no image is in two splits):")
        parts.append(table(["split", "images", "SHA-256 of image ids", "classes"], splits))
    left_out = [f"- {text(reason)}: {number(count)} images" for reason, count in data.get("left_out", {}).items()]
    if left_out:
        parts += ["Left out:", "\n".join(left_out)]
    compared = data.get("compared", {})
    if compared.get("by") == "likeness":
        threshold = f"a cosine of {number(compared.get('threshold'))} of {code(compared.get('embedder'))} vectors"
        parts.append(f"Near-duplicates, from {threshold} on, are never in two splits.")
    elif compared:
        parts.append(
            "Near-duplicates were not searched, since the lake had no vectors. Equal files are never in two splits."
        )
    if data.get("result", {}).get("without_vector"):
        parts.append(f"{number(data['result']['without_vector'])} images had no vector and were not used.")
    return parts


def changes(facts: CardFacts) -> list[str]:
    """What differs from the baseline."""
    if facts.baseline is None:
        return ["It is the first: there is no model before it to compare with."]
    return [f"Since {code(facts.name_of(facts.baseline.id))}:", *diff.changes(facts.baseline, facts.run)]


def training(facts: CardFacts, plots: Sequence[str]) -> list[str]:
    """Start, end, metrics of the splits, curves, and the whole recipe."""
    run = facts.run
    start = f", from the weights of {code(facts.name_of(run.parent))}" if run.parent else ""
    end = f", ended {run.ended_at:%Y-%m-%d %H:%M} UTC" if run.ended_at else ""
    parts = [f"Run {code(run.id)}, started {run.started_at:%Y-%m-%d %H:%M} UTC{end}{start}, seed {number(run.seed)}."]
    if run.search:
        parts.append(f"It is a trial of the search {code(run.search)}.")
    result = run.data.get("result", {})
    if "ended" in result:
        parts.append(
            f"Its weights are of epoch {number(result.get('best_epoch'))}; it ended by: {text(result['ended'])}."
        )
    rows = [
        [code(row["split"]), code(row["metric"]), number(row["value"]), number(row["n"])]
        for row in facts.training
        if row["split"] == "test" or (row["split"] and run.kind == "probe")
    ]
    if not any(row["split"] == "validation" and run.kind == "probe" for row in facts.training):
        n = run.data.get("splits", {}).get("validation", {}).get("images")
        rows += [[code("validation"), code(name), number(float(value)), number(n)]
                 for name, value in result.get("validation", {}).items()]  # fmt: skip
    if rows:
        parts.append(table(["split", "metric", "value", "n"], rows))
    if "curves.png" in plots:
        parts.append("![Loss and metrics by epoch](curves.png)")
    return [*parts, "The whole recipe:", block(run.settings)]


def environment(facts: CardFacts) -> list[str]:
    """Software and machine."""
    environment = dict(facts.run.environment)
    packages = environment.pop("packages", None) or {}
    rows = [[code(key), code(value)] for key, value in [*environment.items(), *packages.items()] if value is not None]
    return [table(["name", "version or value"], rows) if rows else "Not recorded."]


def loading(facts: CardFacts) -> list[str]:
    """How to load it, and its files."""
    lines = [
        "```python",
        "import lake",
        "from training.models import trained_model",
        "",
        f'model = trained_model.load(lake.open("my.lake"), "{facts.name}")',
        'predictions = model.predictions([("name", image)])  # upright RGB images of Pillow',
        "```",
    ]
    rows = [
        [code(name), code(file.get("path")), number(file.get("bytes")), code(file.get("sha256"))]
        for name, file in facts.run.artifacts.items()
    ]
    files = ["Its files, in the lake's folder:", table(["file", "path", "bytes", "SHA-256"], rows)] if rows else []
    return ["\n".join(lines), *files]


def licences(facts: CardFacts) -> list[str]:
    """The licences of weights and data, as far as they are recorded."""
    base = facts.base
    if base is not None:
        weights = f"the weights of {code(base.name)} ({text(base.weights or 'origin not recorded')}): "
        weights += text(base.licence) if base.licence else "not recorded"
    elif facts.run.parent:
        weights = f"the weights it started from, {code(facts.name_of(facts.run.parent))}: see that card"
    elif facts.run.kind == "finetune" and not facts.run.settings.get("pretrained"):
        weights = "it started from random weights, so it contains no weights of others"
    else:
        weights = "the weights it started from: not recorded"
    lines = [
        f"- {weights[0].upper()}{weights[1:]}.",
        "- The images and labels it was trained on: not recorded in the lake.",
    ]
    return ["\n".join(lines), "The owner of the model decides its own licence."]


def history(facts: CardFacts) -> list[str]:
    """Its release events."""
    if not facts.history:
        return ["It was never registered."]
    rows = []
    for event in facts.history:
        reason = text(event.reason) if event.reason else "-"
        rows.append(
            [f"{event.timestamp:%Y-%m-%d %H:%M}", event.action.replace("_", " "), code(event.gate or ""), reason]
        )
    return [table(["time (UTC)", "event", "gate", "reason"], rows)]


def _counts(classes: dict[str, int]) -> str:
    shown = [f"{text(name)} {number(n)}" for name, n in [*classes.items()][:MOST_CLASSES]]
    return ", ".join(shown) + (", …" if len(classes) > MOST_CLASSES else "")
