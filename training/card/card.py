"""A model card in Hugging Face's format, rendered from the record and nothing else.

It can only say what was recorded: every number is a value of a table, in full or rounded, and what is missing is said
to be missing. The same record gives the same bytes. Where the facts come from is `card_facts.py`'s.
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
from training.card import plots as card_plots
from training.card import provenance
from training.card import results as card_results
from training.card.diff import diff
from training.card.facts import Facts, facts
from training.card.markdown import code, plain

if TYPE_CHECKING:
    from lake.storage.store import Lake

__all__ = ["Card", "diff", "facts", "of", "render", "write"]

FILE = "README.md"
PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
# As the Hub spells the licences that embedders have; any other is "other" with its name.
LICENCES = {"apache-2.0": "apache-2.0", "mit": "mit", "bsd-3-clause": "bsd-3-clause", "bsd-2-clause": "bsd-2-clause"}


@dataclass(frozen=True)
class Card:
    """`text`: Markdown with a YAML header, the file README.md; `plots`: PNG by the names that the text shows."""

    text: str
    plots: dict[str, bytes]


def render(lake: Lake, name: str) -> Card:
    """The card of NAME@V, of a run, or of a model's promoted, else newest, run.

    Raises BadInput when there is none or its run is not done, MissingExtra without matplotlib.
    """
    return of(facts(lake, name))


def of(found: Facts) -> Card:
    """The card that these facts make."""
    plots = card_plots.plots(found)
    return Card(text_of(found, [*plots]), plots)


def text_of(found: Facts, plots: Sequence[str] = ()) -> str:
    """Its text, which shows the plots of these names."""
    header = yaml.safe_dump(_header(found), sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{header}---\n\n" + "\n\n".join(_body(found, plots)) + "\n"


def write(card: Card, folder: Path) -> list[Path]:
    """Writes README.md and its plots; each appears whole or not at all. Raises BadInput when it cannot be written."""
    files = {FILE: card.text.encode()} | card.plots
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            half = folder / f"{name}.part"
            half.write_bytes(content)
            os.replace(half, folder / name)
    except OSError as error:
        raise BadInput(f"cannot write the card into {folder}: {error.strerror or error}") from error
    return [folder / name for name in files]


# The header ---------------------------------------------------------------------------------------------------


def _header(found: Facts) -> dict[str, Any]:
    run = found.run
    made: dict[str, Any] = _licence(found) | {"library_name": "lakeloop", "pipeline_tag": PIPELINES[run.task]}
    made["tags"] = ["lakeloop", run.kind, *([_tag(run.settings["architecture"])] if run.kind == "finetune" else [])]
    if base := _base_model(found):
        made["base_model"] = base
    measured = dict.fromkeys(name for some in found.figures.values() for name in some)
    if measured:
        made["metrics"] = [plain(name) for name in measured]
    results = [
        {
            "task": {"type": PIPELINES[run.task]},
            "dataset": {"type": "lakeloop-slice", "name": name},
            "metrics": [
                {"type": plain(metric), "value": one.value} for metric, one in some.items() if one.value is not None
            ],
        }
        for name, some in found.figures.items()
    ]
    results = [one for one in results if one["metrics"]]
    if results:
        made["model-index"] = [{"name": found.title, "results": results}]
    return made


def _licence(found: Facts) -> dict[str, Any]:
    said = found.base.licence if found.base else None
    if not said:
        return {"license": "unknown"}
    known = LICENCES.get(said.partition(" ")[0].lower())
    return {"license": known} if known else {"license": "other", "license_name": plain(said)}


def _base_model(found: Facts) -> str | None:
    """What the Hub would call it: its names have no @."""
    if found.run.parent:
        return found.called(found.run.parent).replace("@", "-")
    if found.base:
        return _tag(found.base.name)
    return None


def _tag(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain(value))


# The body ------------------------------------------------------------------------------------------------------


def _body(found: Facts, plots: Sequence[str]) -> list[str]:
    return [
        f"# {found.title}",
        _summary(found),
        *_section("What it is for", card_results.purpose(found)),
        *_section("What it was trained on", provenance.data(found)),
        *_section("How good it is", card_results.metrics(found, plots)),
        *_section("May it replace the model before it?", card_results.gate(found)),
        *_section("Calibration", card_results.calibration(found, plots)),
        *_section("Known weak slices", card_results.weak(found)),
        *_section("Forgetting", card_results.forgetting(found)),
        *_section("What changed", provenance.changed(found)),
        *_section("Training", provenance.training(found, plots)),
        *_section("Environment", provenance.environment(found)),
        *_section("How to load it", provenance.loading(found)),
        *_section("Licence", provenance.licences(found)),
        *_section("History", provenance.history(found)),
    ]


def _section(heading: str, parts: Sequence[str]) -> list[str]:
    return [f"## {heading}", *(part for part in parts if part)]


def _summary(found: Facts) -> str:
    run = found.run
    what = f"{run.task}, by {_made_of(found)}"
    status = f"Version {code(found.version.id)}, {found.version.status}." if found.version else "No registered version."
    return f"{what}. {status} Rendered from the record of run {code(run.id)}: what is not here was not recorded."


def _made_of(found: Facts) -> str:
    settings = found.run.settings
    if found.run.kind == "probe":
        name = found.run.data.get("result", {}).get("embedder") or settings.get("embedder")
        layer = "a probe with a hidden layer" if settings.get("hidden") else "a linear probe"
        return f"{layer} on the vectors of {code(name)}" if name else f"{layer} on an embedder's vectors"
    return f"a fine-tuned {code(settings['architecture'])}"
