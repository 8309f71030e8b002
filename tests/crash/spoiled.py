"""Spoils a data file of a lake between the lives of its server, and repairs the lake: the other rows must stay."""

from __future__ import annotations

import random
from pathlib import Path

from lake.open_lake import OpenLake
from lake.storage import schema
from lake.upkeep import doctor

TABLES = ("samples", "reviews", "images", "thumbnails", "audit")

# A table, and the key of a row.
Key = tuple[str, str]


def spoil(lake: Path, rng: random.Random) -> set[Key]:
    """Deletes a data file or cuts it short, runs the doctor, and returns the rows that were in it."""
    opened = OpenLake(str(lake))
    name = rng.choice([name for name in TABLES if opened.dataset(name).get_fragments()] or ["audit"])
    fragments = opened.dataset(name).get_fragments()
    if not fragments:
        return set()
    fragment = rng.choice(fragments)
    key = schema.TABLES[name].key
    rows = {(name, str(value)) for value in fragment.to_table(columns=[key])[key].to_pylist()}
    file = lake / f"{name}.lance" / "data" / fragment.metadata.files[0].path
    if rng.random() < 0.5:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: rng.randrange(1, file.stat().st_size)])
    report = doctor.examine(str(lake), repair=True)
    wrong = [f.what for f in report.findings if f.check in ("files", "opens", "keys")]
    assert not wrong, wrong
    return rows
