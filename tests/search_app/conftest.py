"""What the tests of the app share: one small lake, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.search_app.browsing import PATIENCE, browser_context
from tests.search_app.shapes import Shapes, make_shapes

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Page


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """Twenty-four images, not embedded. Tests that write take a lake of their own."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), 24)


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    """One for a file: what a page has loaded of Streamlit the next need not load and compile again."""
    with browser_context() as opened:
        opened.set_default_timeout(PATIENCE)
        yield opened


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))

    def look(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            errors.append(message.text)

    opened.on("console", look)
    yield opened
    opened.close()
    assert errors == []
