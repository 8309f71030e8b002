"""The page Slices in a real browser: a set is made from the filters, grows from the grid, is compared and tagged."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import lake
from lake import ids, slices
from tests.search_app.browsing import MISSING, serving
from tests.search_app.shapes import Shapes, make_shapes

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from lake.storage.store import Lake

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    return make_shapes(tmp_path_factory.mktemp("sliced"), 15)


@pytest.fixture(scope="module")
def url(shapes: Shapes) -> Iterator[str]:
    with serving(shapes.uri) as address:
        yield address


def members(lk: Lake, slice_: slices.Slice) -> set[str]:
    return {*slices.members(lk, slice_).to_pylist()}


def test_a_slice_is_created_grows_and_is_compared(page: Page, url: str, shapes: Shapes) -> None:
    page.goto(f"{url}/slices?label=circle")
    page.get_by_text("No slices yet").wait_for()
    page.get_by_role("button", name="New slice from the filters").click()
    page.get_by_label("Name").fill("circles")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("link", name="circles").wait_for()
    lk = lake.open(shapes.uri)
    first = slices.get(lk, "circles")
    assert first.kind == "where"
    assert "label = 'circle'" in first.definition

    # From the grid: the same name is the next version, with what it had.
    page.goto(f"{url}/search?label=square")
    page.locator(".tile").first.click()
    for key in ("Escape", "Space", "l"):
        page.keyboard.press(key)
    page.get_by_label("slice name").fill("circles")
    page.get_by_role("button", name="Add to slice").wait_for()
    page.get_by_label("role").select_option("evaluation")
    page.get_by_role("button", name="Add to slice").click()
    page.get_by_text("circles v2 saved").wait_for()
    second = slices.get(lk, "circles")
    assert (second.size, second.role, second.kind) == (first.size + 1, "evaluation", "union")

    page.goto(f"{url}/slices?set=circles&show=changes")
    page.get_by_text("1 added").wait_for()
    page.get_by_text("Added: 1 image").wait_for()
    assert page.locator(".tile").count() == 1
    page.get_by_role("button", name="Tags").click()
    page.get_by_label("Tag", exact=True).fill("gold")
    page.get_by_role("button", name="Tag this version").click()
    page.get_by_role("button", name="gold").first.wait_for()
    assert slices.get(lk, "circles@gold").version == 2

    page.goto(f"{url}/slices?set=circles&show=definition")
    page.get_by_role("button", name="Export", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("link", name=f"Download {second.size} images").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        assert (
            sum(ids.image_id(archive.read(name)) in members(lk, second) for name in archive.namelist()) == second.size
        )

    page.goto(f"{url}/slices?set=cirles")
    page.get_by_text("did you mean circles").wait_for()
