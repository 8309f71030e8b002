"""The part of a model card that says where a model comes from: Markdown paragraphs from facts."""

from __future__ import annotations

from collections.abc import Sequence

from training.card import diff
from training.card.facts import Facts
from training.card.markdown import block, code, number, table, text

MOST_CLASSES = 50


def data(found: Facts) -> list[str]:
    """Slices and splits with their counts and hashes, and what was left out."""
    data = found.run.data
    head = ["slice", "used for", "images", "SHA-256 of image ids", "SHA-256 of label events"]
    rows = [
        [
            code(one["id"]),
            one["use"],
            number(one["images"]),
            code(one["images_sha256"]),
            code(one["label_events_sha256"]),
        ]
        for one in data.get("slices", [])
    ]
    parts = [table(head, rows) if rows else "No slice is recorded."]
    splits = [
        [use, number(one["images"]), code(one["images_sha256"]), _counts(one["classes"])]
        for use, one in data.get("splits", {}).items()
        if one["images"]
    ]
    if splits:
        parts.append("Splits, no image of which is in two:")
        parts.append(table(["split", "images", "SHA-256 of image ids", "classes"], splits))
    left = [f"- {text(reason)}: {number(count)} images" for reason, count in data.get("left_out", {}).items()]
    if left:
        parts += ["Left out:", "\n".join(left)]
    compared = data.get("compared", {})
    if compared.get("by") == "likeness":
        from_ = f"cosine {number(compared.get('threshold'))} of {code(compared.get('embedder'))} vectors"
        parts.append(f"Near-duplicates were kept out of two splits from {from_} on.")
    elif compared:
        parts.append("Near-duplicates were not looked for: the lake had no vectors. Equal files are in one split only.")
    if data.get("result", {}).get("without_vector"):
        parts.append(f"{number(data['result']['without_vector'])} images had no vector and were not learned from.")
    return parts


def changed(found: Facts) -> list[str]:
    """What is different from the baseline."""
    if found.baseline is None:
        return ["It is the first: there is no model before it to compare with."]
    return [f"Since {code(found.called(found.baseline.id))}:", *diff.changes(found.baseline, found.run)]


def training(found: Facts, plots: Sequence[str]) -> list[str]:
    """When, from what, how it ended, and the recipe."""
    run = found.run
    began = f", from the weights of {code(found.called(run.parent))}" if run.parent else ""
    ended = f", ended {run.ended_at:%Y-%m-%d %H:%M} UTC" if run.ended_at else ""
    parts = [f"Run {code(run.id)}, begun {run.started_at:%Y-%m-%d %H:%M} UTC{ended}{began}, seed {number(run.seed)}."]
    if run.search:
        parts.append(f"It is a trial of the search {code(run.search)}.")
    result = run.data.get("result", {})
    if "ended" in result:
        parts.append(
            f"Its weights are of epoch {number(result.get('best_epoch'))}; it ended by: {text(result['ended'])}."
        )
    rows = [
        [code(row["split"]), code(row["metric"]), number(row["value"]), number(row["n"])]
        for row in found.training
        if row["split"] == "test" or (row["split"] and run.kind == "probe")
    ]
    if not any(row["split"] == "validation" and run.kind == "probe" for row in found.training):
        n = run.data.get("splits", {}).get("validation", {}).get("images")
        rows += [[code("validation"), code(name), number(float(value)), number(n)]
                 for name, value in result.get("validation", {}).items()]  # fmt: skip
    if rows:
        parts.append(table(["split", "metric", "value", "n"], rows))
    if "curves.png" in plots:
        parts.append("![Loss and metrics by epoch](curves.png)")
    return [*parts, "The recipe, whole:", block(run.settings)]


def environment(found: Facts) -> list[str]:
    """Software and machine."""
    environment = dict(found.run.environment)
    packages = environment.pop("packages", None) or {}
    rows = [[code(key), code(value)] for key, value in [*environment.items(), *packages.items()] if value is not None]
    return [table(["what", "version or value"], rows) if rows else "Not recorded."]


def loading(found: Facts) -> list[str]:
    """How it is loaded, and its files."""
    lines = [
        "```python",
        "import lake",
        "from training.models import trained_model as model",
        "",
        f'loaded = model.load(lake.open("my.lake"), "{found.name}")',
        'answers = loaded.predictions([("name", image)])  # upright RGB images of Pillow',
        "```",
    ]
    rows = [
        [code(name), code(one.get("path")), number(one.get("bytes")), code(one.get("sha256"))]
        for name, one in found.run.artifacts.items()
    ]
    files = ["Its files, in the lake's folder:", table(["file", "path", "bytes", "SHA-256"], rows)] if rows else []
    return ["\n".join(lines), *files]


def licences(found: Facts) -> list[str]:
    """Of weights and data, as far as they are recorded."""
    base = found.base
    if base is not None:
        weights = f"the weights of {code(base.name)} ({text(base.weights or 'origin not recorded')}): "
        weights += text(base.licence) if base.licence else "not recorded"
    elif found.run.parent:
        weights = f"the weights it began from, {code(found.called(found.run.parent))}: see that card"
    elif found.run.kind == "finetune" and not found.run.settings.get("pretrained"):
        weights = "it began at random: there are no weights of others in it"
    else:
        weights = "the weights it began from: not recorded"
    lines = [
        f"- {weights[0].upper()}{weights[1:]}.",
        "- The images and labels it was trained on: not recorded in the lake.",
    ]
    return ["\n".join(lines), "Which licence the model itself has is its owner's to say."]


def history(found: Facts) -> list[str]:
    """Its entries in the registry."""
    if not found.history:
        return ["It was never registered."]
    rows = []
    for one in found.history:
        why = text(one.reason) if one.reason else "-"
        rows.append([f"{one.timestamp:%Y-%m-%d %H:%M}", one.action.replace("_", " "), code(one.gate or ""), why])
    return [table(["when (UTC)", "what", "gate", "why"], rows)]


def _counts(classes: dict[str, int]) -> str:
    shown = [f"{text(name)} {number(n)}" for name, n in [*classes.items()][:MOST_CLASSES]]
    return ", ".join(shown) + (", …" if len(classes) > MOST_CLASSES else "")
