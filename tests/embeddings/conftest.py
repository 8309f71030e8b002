"""An installed package that announces the tests' own embedder, and lakes that use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lake.store import Lake
from tests.conftest import MakeLake


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mean-colour, found as a user's embedder is found: through the entry point of an installed package."""
    package = tmp_path / "site" / "colours-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[lakeloop.embedders]\nmean-colour = tests.embeddings.colour:MeanColour\n"
    )
    monkeypatch.syspath_prepend(str(package.parent))


@pytest.fixture
def colours(make_lake: MakeLake, installed: None) -> Lake:
    """An empty lake whose embedder is mean-colour."""
    return make_lake("colours", embedders=["mean-colour"])
