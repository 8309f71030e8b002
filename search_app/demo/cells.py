"""The demo's data: photographs of solar cells (`elpv-dataset`), and which of them play which part.

Everything is drawn with a seed: two machines deal the same parts. It knows no model and no lake.
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
# Different cells look as alike as copies do (docs/benchmarks.md, near-duplicates): only identical ones count as such.
COPIES_FROM = 0.999


@dataclass(frozen=True)
class Cell:
    """One photograph. `truth` is what the data set's authors judged it to be; `path` is relative to `folder()`."""

    path: str
    truth: str
    kind: str

    @property
    def name(self) -> str:
        """What the lake calls its source."""
        return f"elpv/{self.path}"


@dataclass(frozen=True)
class Story:
    """Who plays which part. Production is in the order of its time."""

    training: list[Cell]
    production: list[tuple[Cell, dt.datetime]]
    held_out: list[Cell]


def folder() -> Path:
    """Where the photographs are. Raises MissingExtra when the data set is not installed."""
    return Path(require("elpv_dataset", "elpv-dataset", "demo").__file__).parent / "data"


def cells() -> list[Cell]:
    """The data set, in its own order. A defect is a probability of one half or more."""
    out = []
    for line in (folder() / "labels.csv").read_text().splitlines():
        path, probability, kind = line.split()
        out.append(Cell(path, "defect" if float(probability) >= 0.5 else "functional", f"{kind}crystalline"))
    return out


def cast(everything: list[Cell]) -> Story:
    """Deals the parts. The new kind arrives only in the last weeks."""
    rng = np.random.default_rng(SEED)
    mono = [c for c in everything if c.kind == "monocrystalline"]
    poly = [c for c in everything if c.kind == "polycrystalline"]
    mono = [mono[i] for i in rng.permutation(len(mono))]
    poly = [poly[i] for i in rng.permutation(len(poly))]
    half = len(mono) // 2
    stream = [(c, START + dt.timedelta(weeks=WEEKS) * float(rng.random())) for c in mono[half:]]
    late = START + dt.timedelta(weeks=NEW_KIND_FROM_WEEK)
    span = dt.timedelta(weeks=WEEKS - NEW_KIND_FROM_WEEK)
    stream += [(c, late + span * float(rng.random())) for c in poly[:NEW_KIND_IN_PRODUCTION]]
    stream = [(c, moment.replace(microsecond=0)) for c, moment in stream]
    return Story(mono[:half], sorted(stream, key=lambda s: (s[1], s[0].name)), poly[NEW_KIND_IN_PRODUCTION:])
