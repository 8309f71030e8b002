"""The app in a real browser over a real server and lake: what a user does, and what a reload keeps."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lake
from embeddings.backfill.backfill import backfill
from lake.client import Client
from lake.ids import image_id
from tests.embeddings.colour import MeanColour
from tests.embeddings.conftest import announced
from tests.pictures import damaged
from tests.search_app.browsing import MISSING, serving
from tests.search_app.shapes import Shapes, drawing, make_shapes

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """mean-colour, here and in processes started from here: pages do not care what made the vectors."""
    with pytest.MonkeyPatch.context() as patch:
        uri = str(announced(tmp_path_factory.mktemp("colours")))
        patch.syspath_prepend(uri)
        patch.setenv("PYTHONPATH", uri)
        yield


@pytest.fixture(scope="module")
def embedded(colours: None, tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """Forty images with their vectors."""
    shapes = make_shapes(tmp_path_factory.mktemp("embedded"), 40, "mean-colour")
    opened = lake.open(shapes.uri)
    backfill(opened, opened.embedders()[0], MeanColour(), workers=1)
    return shapes


@pytest.fixture(scope="module")
def url(embedded: Shapes) -> Iterator[str]:
    """A server that only reads."""
    with serving(embedded.uri) as answers:
        yield answers


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that accepts events, over twelve images and their predictions."""
    shapes = make_shapes(tmp_path_factory.mktemp("live"), 12)
    with serving(shapes.uri, takes_events=True) as address:
        yield address


def _tiles(page: Page) -> list[str]:
    """The ids of the images shown, in order."""
    image_ids: list[str] = page.eval_on_selector_all(".tile", "all => all.map(one => one.dataset.id)")
    return image_ids


def test_an_uploaded_image_is_found_opened_and_comes_back_after_a_reload(
    page: Page, url: str, embedded: Shapes
) -> None:
    page.goto(f"{url}/search")
    page.get_by_text("images, random sample").wait_for()

    page.set_input_files("input[type=file]", str(embedded.files[4]))
    page.get_by_text("most similar to this image").wait_for()
    tiles = _tiles(page)
    assert tiles[0] == embedded.ids[4]

    page.locator(f".tile[data-id='{tiles[1]}']").click()
    page.locator(".detail .facts").first.wait_for()
    page.wait_for_url("**open=**")
    assert tiles[1] in page.locator(".detail .body").inner_text()

    before = page.url
    page.reload()
    page.locator(".detail .facts").first.wait_for()
    assert page.url == before
    assert _tiles(page) == tiles
    assert tiles[1] in page.locator(".detail .body").inner_text()


def test_a_result_becomes_the_next_search_and_a_selection_a_slice(page: Page, url: str, embedded: Shapes) -> None:
    page.goto(f"{url}/search?label=circle")
    page.locator(".tile").nth(1).click()
    page.get_by_role("button", name="Find similar").first.click()
    page.get_by_text("most similar to this image").wait_for()
    assert "label=circle" in page.url  # the filters stay

    page.locator(".tile").first.click()
    for key in ("Escape", "Space", "Shift+ArrowRight", "Shift+ArrowRight"):
        page.keyboard.press(key)
    page.get_by_text("3 selected").wait_for()
    page.keyboard.press("l")
    page.get_by_label("slice name").fill("three-circles")
    page.keyboard.press("Enter")
    page.get_by_text("three-circles v1 saved").wait_for()
    saved = lake.open(embedded.uri).sql("SELECT name, size FROM slices").to_pylist()
    assert saved == [{"name": "three-circles", "size": 3}]


def test_clusters_are_made_opened_and_left_again(page: Page, url: str) -> None:
    page.goto(f"{url}/drilldown")
    page.get_by_role("button", name="Make clusters").click()
    page.locator(".card").first.wait_for()
    cards = page.locator(".card").count()
    assert cards >= 2

    page.locator(".card").first.click()
    page.get_by_text("in this cluster").wait_for()
    page.locator(".tile").first.wait_for()
    page.get_by_role("button", name="All", exact=True).click()
    page.locator(".card").first.wait_for()
    assert page.locator(".card").count() == cards


def test_an_invalid_filter_is_refused_with_the_message_of_duckdb(page: Page, url: str) -> None:
    page.goto(f"{url}/search?where=confidnce+%3C+0.5")
    page.get_by_text("confidnce").first.wait_for()
    page.get_by_text("The filter was not applied").wait_for()


def test_the_overview_shows_accuracy_and_the_number_of_labels(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_text("Where the model fails").wait_for()
    page.get_by_text("No group with at least 8 labelled predictions").wait_for()
    page.get_by_text("Balanced accuracy").wait_for()
    page.get_by_text("n 20").first.wait_for()

    # A group of the promoted column leads to its images; back again, the filter narrows the overview.
    page.get_by_role("heading", name="By camera").wait_for()
    page.get_by_role("link", name="2", exact=True).click()
    page.get_by_text("10 images, random sample").wait_for()
    assert "where=camera+%3D+2" in page.url
    page.get_by_role("button", name="Select all").click()
    page.get_by_text("10 selected").wait_for()
    page.wait_for_url("**sel=**")
    page.get_by_role("link", name="Overview").click()
    page.get_by_text("n 10").first.wait_for()


# The drainer is due within two seconds, a quiet page asks again within five; a loaded machine takes longer.
SOON = 60_000


def test_a_new_prediction_appears_without_a_reload(page: Page, live: str) -> None:
    page.goto(live)
    page.get_by_text("Where the model fails").wait_for()
    strip, faces = page.locator(".live"), page.locator(".live .faces a")
    assert strip.is_hidden()

    pictures = [drawing(seed)[0] for seed in (101, 102, 103)]
    with Client(live, spill=None) as client:
        for data in pictures[:2]:
            client.log(data, model="shapes", model_version="2", label="cross", confidence=0.5)
        page.get_by_text(re.compile("^2 predictions in the last minute, the newest \\d+ s ago")).wait_for(timeout=SOON)
        faces.nth(1).wait_for(timeout=SOON)
        client.log(pictures[2], model="shapes", model_version="2", label="square", confidence=0.75)
        faces.nth(2).wait_for(timeout=SOON)
    assert faces.first.get_attribute("title") == "square 0.75"
    page.wait_for_function("() => document.readyState === 'complete'")

    # The numbers below stay what they were until they are asked for.
    assert page.locator(".figure strong").nth(1).inner_text() == "12"
    page.get_by_role("button", name="Update this page").click()
    page.locator(".figure strong", has_text="15").first.wait_for()
    page.get_by_role("button", name="Update this page").wait_for(state="hidden")

    faces.first.click()
    page.locator(".detail .facts").first.wait_for()
    assert image_id(pictures[2]) in page.locator(".detail .body").inner_text()


def _drained(url: str) -> None:
    """Waits until what the server has accepted is in the lake."""
    while True:
        with urllib.request.urlopen(f"{url}/v1/arrivals", timeout=10) as answer:
            if json.load(answer)["waiting"] == 0:
                return
        time.sleep(0.1)


def test_a_complaint_becomes_a_card_with_its_text_and_a_link_to_the_image(page: Page, live: str) -> None:
    hostile = "<img src=x onerror=alert(1)> **not** a circle"
    data = drawing(201)[0]
    with Client(live, spill=None) as client:
        about = client.log(data, model="shapes", model_version="2", label="circle", confidence=0.625)
        client.feedback(about, "incorrect", comment=hostile, ticket="T-77")
    _drained(live)
    page.goto(live)
    page.get_by_text(re.compile("1 customer verdict")).wait_for(timeout=SOON)
    card = page.locator(".voice")
    card.get_by_text(f"“{hostile}”").wait_for()
    assert "confidence 0.62 · T-77" in card.inner_text()
    page.get_by_text("Verdicts: 1 incorrect.").wait_for()

    card.get_by_role("link", name="Predicted “circle”").click()
    page.get_by_text("reported as incorrect by a customer, latest first").wait_for()
    page.locator(".detail .history").wait_for()
    assert image_id(data) in page.locator(".detail .body").inner_text()
    assert f"customer reported incorrect (T-77): “{hostile}”" in page.locator(".detail .history").inner_text()
    assert page.locator(".tile").count() == 1


@pytest.mark.soak
def test_images_without_a_thumbnail_are_reported_and_listed(page: Page, live: str) -> None:
    with Client(live, spill=None) as client:
        client.log(damaged(drawing(301)[0]), model="shapes", model_version="2", label="cross", confidence=0.5)
    _drained(live)
    page.goto(live)
    page.get_by_role("link", name="1 image without a thumbnail").click()
    page.locator(".tile .bare").wait_for()
    assert "image_status+IS+NOT+NULL" in page.url
    page.locator(".tile").click()
    page.get_by_text(re.compile("No thumbnail: .*truncated")).wait_for()


def test_no_other_page_can_frame_the_app(context: BrowserContext, url: str, tmp_path: Path) -> None:
    page = context.new_page()
    (tmp_path / "frame.html").write_text(f'<p>bait</p><iframe src="{url}/slices" width=900 height=600></iframe>')
    with page.expect_console_message(lambda message: "frame-ancestors 'none'" in message.text):
        page.goto(f"file://{tmp_path}/frame.html")
    assert page.frames[1].locator(".stApp").count() == 0
    page.goto(f"{url}/slices")
    page.locator(".stApp").wait_for()
    page.close()
