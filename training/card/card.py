"""Renders a model card in Hugging Face's format from recorded facts.

Every number is a recorded value, in full or rounded, and the card says what is missing. The same record gives the same
bytes. `facts.py` gathers the facts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lake.errors import BadInput
from training.card import facts as card_facts
from training.card import plots as card_plots
from training.card import provenance, results
from training.card.facts import CardFacts
from training.card.markdown import code, plain

if TYPE_CHECKING:
    from lake.storage.store import Lake

FILE = "README.md"
PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
# The Hub's names of the licences that embedders have. Any other licence is "other" with its name.
LICENCES = {"apache-2.0": "apache-2.0", "mit": "mit", "bsd-3-clause": "bsd-3-clause", "bsd-2-clause": "bsd-2-clause"}


@dataclass(frozen=True)
class Card:
    """`text`: Markdown with a YAML header, the file README.md; `plots`: PNG files by the names in the text."""

    text: str
    plots: dict[str, bytes]


def render(lake: Lake, name: str) -> Card:
    """The card of NAME@V, of a run, or of a model's promoted, else newest, run.

    Raises BadInput if there is none or its run is not done, MissingExtra without matplotlib.
    """
    return from_facts(card_facts.gather(lake, name))


def from_facts(facts: CardFacts) -> Card:
    """The card of these facts."""
    plots = card_plots.plots(facts)
    return Card(text_of(facts, [*plots]), plots)


def text_of(facts: CardFacts, plots: Sequence[str] = ()) -> str:
    """The text of the card. `plots`: the names of the plots to show."""
    header = yaml.safe_dump(_header(facts), sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{header}---\n\n" + "\n\n".join(_body(facts, plots)) + "\n"


def write(card: Card, folder: Path) -> list[Path]:
    """Writes README.md and its plots; each file appears only when it is complete. Raises BadInput if it cannot."""
    files = {FILE: card.text.encode()} | card.plots
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            partial = folder / f"{name}.part"
            partial.write_bytes(content)
            os.replace(partial, folder / name)
    except OSError as error:
        raise BadInput(f"cannot write the card into {folder}: {error.strerror or error}") from error
    return [folder / name for name in files]


# The header ---------------------------------------------------------------------------------------------------


def _header(facts: CardFacts) -> dict[str, Any]:
    run = facts.run
    header: dict[str, Any] = _licence(facts) | {"library_name": "lakeloop", "pipeline_tag": PIPELINES[run.task]}
    header["tags"] = ["lakeloop", run.kind, *([_tag(run.settings["architecture"])] if run.kind == "finetune" else [])]
    if base := _base_model(facts):
        header["base_model"] = base
    measured = dict.fromkeys(name for metrics in facts.values.values() for name in metrics)
    if measured:
        header["metrics"] = [plain(name) for name in measured]
    by_slice = [
        {
            "task": {"type": PIPELINES[run.task]},
            "dataset": {"type": "lakeloop-slice", "name": name},
            "metrics": [
                {"type": plain(metric), "value": value.value}
                for metric, value in metrics.items()
                if value.value is not None
            ],
        }
        for name, metrics in facts.values.items()
    ]
    by_slice = [row for row in by_slice if row["metrics"]]
    if by_slice:
        header["model-index"] = [{"name": facts.title, "results": by_slice}]
    return header


def _licence(facts: CardFacts) -> dict[str, Any]:
    licence = facts.base.licence if facts.base else None
    if not licence:
        return {"license": "unknown"}
    known = LICENCES.get(licence.partition(" ")[0].lower())
    return {"license": known} if known else {"license": "other", "license_name": plain(licence)}


def _base_model(facts: CardFacts) -> str | None:
    """The name for the Hub, whose names have no @."""
    if facts.run.parent:
        return facts.name_of(facts.run.parent).replace("@", "-")
    if facts.base:
        return _tag(facts.base.name)
    return None


def _tag(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain(value))


# The body ------------------------------------------------------------------------------------------------------


def _body(facts: CardFacts, plots: Sequence[str]) -> list[str]:
    return [
        f"# {facts.title}",
        _summary(facts),
        *_section("Intended use", results.intended_use(facts)),
        *_section("Training data", provenance.data(facts)),
        *_section("Metrics", results.metrics(facts, plots)),
        *_section("Gate", results.gate(facts)),
        *_section("Calibration", results.calibration(facts, plots)),
        *_section("Weak slices", results.weak(facts)),
        *_section("Forgetting", results.forgetting(facts)),
        *_section("Changes", provenance.changes(facts)),
        *_section("Training", provenance.training(facts, plots)),
        *_section("Environment", provenance.environment(facts)),
        *_section("How to load it", provenance.loading(facts)),
        *_section("Licence", provenance.licences(facts)),
        *_section("History", provenance.history(facts)),
    ]


def _section(heading: str, parts: Sequence[str]) -> list[str]:
    return [f"## {heading}", *(part for part in parts if part)]


def _summary(facts: CardFacts) -> str:
    run = facts.run
    kind = f"{run.task}, by {_architecture(facts)}"
    status = f"Version {code(facts.version.id)}, {facts.version.status}." if facts.version else "Not registered."
    return f"{kind}. {status} Rendered from the record of run {code(run.id)}: what is missing here was not recorded."


def _architecture(facts: CardFacts) -> str:
    settings = facts.run.settings
    if facts.run.kind == "probe":
        name = facts.run.data.get("result", {}).get("embedder") or settings.get("embedder")
        layer = "a probe with a hidden layer" if settings.get("hidden") else "a linear probe"
        return f"{layer} on the vectors of {code(name)}" if name else f"{layer} on the vectors of an embedder"
    return f"a fine-tuned {code(settings['architecture'])}"
