"""Folders on a disk: there a write takes its time to be synced, and a kill can fall between the two."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import temporary


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """As pytest's own, which lies in memory here. Stays if the test fails."""
    folder = tempfile.mkdtemp(prefix="lakeloop-crash-", dir=temporary.disk())
    failures = request.session.testsfailed
    yield Path(folder)
    if request.session.testsfailed == failures:
        shutil.rmtree(folder, ignore_errors=True)
