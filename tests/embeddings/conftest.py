"""An installed package that announces the tests' own embedder, and lakes that use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lake.open_lake import OpenLake
from tests.conftest import MakeLake


def announced(folder: Path) -> Path:
    """mean-colour, found as a user's embedder is found: the folder to put on the path, with an installed package."""
    package = folder / "site" / "colours-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[lakeloop.embedders]\nmean-colour = tests.embeddings.colour:MeanColour\n"
    )
    return package.parent


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(announced(tmp_path)))


@pytest.fixture
def colours(make_lake: MakeLake, installed: None) -> OpenLake:
    """An empty lake whose embedder is mean-colour."""
    return make_lake("colours", embedders=["mean-colour"])
