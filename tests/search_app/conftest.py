"""What the tests of the app share: one small lake."""

from __future__ import annotations

import pytest

from tests.search_app.shapes import Shapes, make_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """Twenty-four images, not embedded. Tests that write take a lake of their own."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), 24)
