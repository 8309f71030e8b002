"""The SQL page in a browser: run, cancel, an error, saving, the images of a result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import lake
from lake.sql import saved_queries
from tests.search_app.browsing import MISSING, serving
from tests.search_app.shapes import Shapes, make_shapes

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

ENDLESS = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range + b.range < 0"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    return make_shapes(tmp_path_factory.mktemp("asked"), 24)


@pytest.fixture(scope="module")
def url(shapes: Shapes) -> Iterator[str]:
    with serving(shapes.uri) as address:
        yield address


def write(page: Page, sql: str) -> None:
    editor = page.get_by_role("textbox", name="SELECT")
    editor.fill(sql)
    editor.press("Control+Enter")


def test_a_query_is_run_cancelled_corrected_saved_and_its_images_are_shown(
    page: Page, url: str, shapes: Shapes
) -> None:
    page.goto(f"{url}/sql")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("rows ·").first.wait_for()

    write(page, ENDLESS)
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("running for").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()

    write(page, "SELECT imageid FROM images")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text('Referenced column "imageid" not found').wait_for()
    page.get_by_text("^^^^^^^").wait_for()

    write(page, "SELECT image_id, width FROM images WHERE width >= $least")
    page.get_by_label("$least").fill("1")
    page.get_by_label("$least").press("Enter")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("24 rows ·").wait_for()
    page.get_by_role("tab", name="Images").click()
    page.locator(".grid img").first.wait_for()

    page.get_by_role("button", name="Save", exact=True).first.click()
    page.get_by_label("Name").fill("wide")
    page.get_by_label("Name").press("Enter")
    page.get_by_test_id("stPopoverBody").get_by_role("button", name="Save").click()
    page.get_by_text("Saved as wide").wait_for()
    opened = lake.open(shapes.uri)
    assert [(query.name, query.parameters) for query in saved_queries.list(opened)] == [("wide", {"least": 1})]
    ends = [(query.error, query.rows) for query in saved_queries.history(opened)]
    assert ends[0] == (None, 24)
    assert ends[2][0] == "Cancelled."
