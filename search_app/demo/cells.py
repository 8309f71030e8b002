"""The demo's data: photographs of solar cells (`elpv-dataset`), split into training, production and held-out cells.

The split is seeded, so every machine gets the same one. This module knows no model and no lake.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lake.extras import require

SEED = 0
NEW_KIND_IN_PRODUCTION = 60
START = dt.datetime(2026, 9, 7, 6, 0, tzinfo=dt.UTC)
WEEKS = 6
NEW_KIND_FROM_WEEK = 4
# Different cells look as similar as copies (docs/benchmarks.md, near-duplicates): only identical images count.
COPIES_FROM = 0.999


@dataclass(frozen=True)
class SolarCell:
    """A photograph. `truth` is the label by the authors of the data set; `path` is relative to `folder()`."""

    path: str
    truth: str
    kind: str

    @property
    def name(self) -> str:
        """The source of the image in the lake."""
        return f"elpv/{self.path}"


@dataclass(frozen=True)
class Story:
    """The cells of each part. Production is ordered by time."""

    training: list[SolarCell]
    production: list[tuple[SolarCell, dt.datetime]]
    held_out: list[SolarCell]


def folder() -> Path:
    """The folder of the photographs. Raises MissingExtra if the data set is not installed."""
    return Path(require("elpv_dataset", "elpv-dataset", "demo").__file__).parent / "data"


def cells() -> list[SolarCell]:
    """All cells in the order of the data set. A cell is a defect if its defect probability is at least one half."""
    rows = []
    for line in (folder() / "labels.csv").read_text().splitlines():
        path, probability, kind = line.split()
        rows.append(SolarCell(path, "defect" if float(probability) >= 0.5 else "functional", f"{kind}crystalline"))
    return rows


def make_story(all_cells: list[SolarCell]) -> Story:
    """Splits the cells into the parts of the demo. The new kind arrives only in the last weeks."""
    rng = np.random.default_rng(SEED)
    mono = [c for c in all_cells if c.kind == "monocrystalline"]
    poly = [c for c in all_cells if c.kind == "polycrystalline"]
    mono = [mono[i] for i in rng.permutation(len(mono))]
    poly = [poly[i] for i in rng.permutation(len(poly))]
    half = len(mono) // 2
    stream = [(c, START + dt.timedelta(weeks=WEEKS) * float(rng.random())) for c in mono[half:]]
    late = START + dt.timedelta(weeks=NEW_KIND_FROM_WEEK)
    span = dt.timedelta(weeks=WEEKS - NEW_KIND_FROM_WEEK)
    stream += [(c, late + span * float(rng.random())) for c in poly[:NEW_KIND_IN_PRODUCTION]]
    stream = [(c, moment.replace(microsecond=0)) for c, moment in stream]
    return Story(mono[:half], sorted(stream, key=lambda s: (s[1], s[0].name)), poly[NEW_KIND_IN_PRODUCTION:])
