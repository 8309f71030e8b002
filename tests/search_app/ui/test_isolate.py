"""From a failure to a slice, in a real browser: the cluster that is most wrong, one odd cell, all of its kind.

A few of the real cells with the real embedder and the real model's answers; the person in front knows the new kind
when they see it. Once with the mouse, then with the keyboard alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lake
from tests.search_app.browsing import serving
from tests.search_app.few_cells import LACKING, NEW_KIND, few_cells
from tests.search_app.shapes import make_shapes

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)}")

PAGES = 6  # of 24: more than enough, and fewer than the lake has


@dataclass(frozen=True)
class Demo:
    """A server, its lake, and the ids of the new kind."""

    url: str
    uri: str
    new: frozenset[str]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    uri = few_cells(tmp_path_factory, tmp_path_factory.mktemp("isolate"))
    rows = lake.open(uri).sql("SELECT image_id FROM samples WHERE module_type = 'polycrystalline'")
    with serving(uri) as url:
        yield Demo(url, uri, frozenset(rows["image_id"].to_pylist()))


def _shown(page: Page) -> list[str]:
    """The ids of the page to mark, in order."""
    image_ids: list[str] = page.eval_on_selector_all(".mark", "all => all.map(one => one.dataset.id)")
    return image_ids


def _turned(page: Page, before: list[str]) -> None:
    """Waits for another page than `before`, or for none."""
    page.wait_for_function(
        """before => {
            const all = [document, ...[...document.querySelectorAll('*')].map(one => one.shadowRoot).filter(Boolean)];
            const marks = all.flatMap(one => [...one.querySelectorAll('.mark')]).map(one => one.dataset.id);
            return marks.join() !== before;
        }""",
        arg=",".join(before),
    )


def _found(page: Page) -> int:
    return int(page.locator(".numbers strong").nth(1).inner_text())


def _saved(demo: Demo, name: str) -> frozenset[str]:
    rows = lake.open(demo.uri).sql("SELECT image_id FROM slice_members WHERE name = ?", [name])
    return frozenset(rows["image_id"].to_pylist())


def test_from_the_failure_to_its_slice_with_the_mouse(page: Page, demo: Demo) -> None:
    page.goto(demo.url)
    page.get_by_role("link", name="All clusters, highest error first").click()
    page.locator(".card .open").first.click()
    page.get_by_text("in this cluster").wait_for()
    odd = next(image_id for image_id in demo.new if page.locator(f".tile[data-id='{image_id}']").count())
    page.locator(f".tile[data-id='{odd}']").click()
    page.get_by_role("button", name="Find all like it").click()

    page.locator(".mark").first.wait_for()
    for _ in range(PAGES):
        shown = _shown(page)
        assert odd not in shown  # an example is not asked about
        for image_id in [image_id for image_id in shown if image_id in demo.new]:
            page.locator(f".mark[data-id='{image_id}']").click()
        yes = len(demo.new & {*shown})
        button_text = page.locator("button.send").inner_text()
        assert button_text.startswith(
            f"These {yes} yes, the other {len(shown) - yes} no" if 1 < yes < len(shown) else ""
        )
        page.locator("button.send").click()
        _turned(page, shown)
        if page.locator(".advice.stop").count():
            break
    assert _found(page) >= 0.9 * NEW_KIND

    before, shown = _found(page), _shown(page)
    page.get_by_role("button", name="Undo").click()
    _turned(page, shown)
    assert _found(page) == before - yes
    assert page.locator("button.send").inner_text() == button_text  # with the marks it was sent with
    shown = _shown(page)
    page.locator("button.send").click()
    _turned(page, shown)
    assert _found(page) == before

    # A slip is found by looking back over what was found.
    page.get_by_text(f"Found {before}").click()
    page.locator(".tile").last.click(modifiers=["Control"])
    page.get_by_role("button", name="Mark 1 image no").click()
    page.get_by_role("button", name=f"Save {before - 1} as slice").wait_for()
    before -= 1

    page.get_by_label("Name", exact=True).fill("new line")
    page.keyboard.press("Enter")
    page.get_by_role("button", name=f"Save {before} as slice").click()
    page.get_by_text("new-line v1 saved").wait_for()
    assert _saved(demo, "new-line") <= demo.new
    assert len(_saved(demo, "new-line")) == before

    # Whoever comes back finds the search where it was left.
    page.goto(f"{demo.url}/isolate")
    page.get_by_role("link", name="new line").click()
    page.locator(".mark").first.wait_for()
    assert _found(page) == before


# What has the focus, through shadow roots.
FOCUS = """() => {
    let one = document.activeElement;
    while (one.shadowRoot?.activeElement) one = one.shadowRoot.activeElement;
    return one === document.body ? "" : (one.getAttribute("aria-label") ?? one.textContent).trim();
}"""


def _tab_to(page: Page, text: str) -> None:
    """Presses Tab until something that begins with `text` has the focus."""
    for _ in range(120):
        if page.evaluate(FOCUS).startswith(text):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never came to {text!r}")


@pytest.mark.soak
def test_from_the_failure_to_its_slice_with_the_keyboard_alone(page: Page, demo: Demo) -> None:
    page.goto(demo.url)
    page.get_by_role("link", name="All clusters, highest error first").wait_for()
    _tab_to(page, "All clusters, highest error first")
    page.keyboard.press("Enter")
    page.locator(".card").first.wait_for()
    _tab_to(page, "Open ")  # the first card
    page.keyboard.press("m")
    page.locator(".tile").first.wait_for()
    _tab_to(page, "images")
    tiles: list[str] = page.eval_on_selector_all(".tile", "all => all.map(one => one.dataset.id)")
    at = next(index for index, image_id in enumerate(tiles) if image_id in demo.new)
    for _ in range(at + 1):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("f")

    page.locator(".mark").first.wait_for()
    for _ in range(PAGES):
        shown = _shown(page)
        for image_id in shown:
            page.keyboard.press("y" if image_id in demo.new else "ArrowRight")  # unmarked counts as no
        page.keyboard.press("Enter")
        _turned(page, shown)
        if page.locator(".advice.stop").count():
            break
    count = _found(page)
    assert count >= 0.9 * NEW_KIND
    page.keyboard.press("l")
    page.get_by_text("v1 saved").wait_for()
    name = page.get_by_text("v1 saved").inner_text().split()[1]
    assert _saved(demo, name) <= demo.new
    assert len(_saved(demo, name)) == count


def test_marks_of_a_page_before_it_is_sent(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.url}/search?show=newest")
    page.locator(".tile").first.click()
    page.keyboard.press("f")
    page.locator(".mark").first.wait_for()
    send, marks = page.locator("button.send"), page.locator(".mark")
    assert send.inner_text().startswith("None of these 24")

    page.keyboard.press("n")
    page.keyboard.press("y")
    assert send.inner_text().startswith("This 1 yes, the other 23 no")
    page.keyboard.press("a")  # all but the one that was said to be none
    assert send.inner_text().startswith("These 23 yes, the other 1 no")
    page.keyboard.press("Escape")
    marks.nth(4).click()
    marks.nth(6).click()
    page.keyboard.press("a")  # nothing was said to be none, so the picked ones are the exceptions
    assert send.inner_text().startswith("These 22 yes, the other 2 no")
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    assert page.locator(".mark.no").count() == 24
    page.keyboard.press("o")
    page.locator(".detail .facts").first.wait_for()
    page.keyboard.press("Escape")
    assert page.locator(".detail").is_hidden()


@pytest.mark.soak
def test_a_cluster_is_accepted_whole_and_taken_back(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.url}/search?show=newest")
    page.locator(".tile").first.click()
    page.keyboard.press("f")
    page.locator(".mark").first.wait_for()
    assert _found(page) == 1
    page.get_by_role("button", name="Whole clusters").click()
    card = page.locator(".card").first
    size = int(card.locator(".size").inner_text().split()[0])
    card.get_by_role("button", name="Accept all").click()
    page.get_by_text("more. You can undo this on the page Isolate").wait_for()
    page.get_by_role("button", name="Back to marking").click()
    page.locator(".mark").first.wait_for()
    assert size <= _found(page) <= size + 1
    shown = _shown(page)
    page.keyboard.press("u")
    _turned(page, shown)
    assert _found(page) == 1


@pytest.mark.soak
def test_a_cluster_is_named_split_and_put_together_again(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.url}/drilldown")
    page.locator(".card .open").first.click()
    page.get_by_text("in this cluster").wait_for()
    page.get_by_role("button", name="More").click()
    page.get_by_text("Rename", exact=True).click()
    page.get_by_label("Name", exact=True).fill("the usual line")
    page.keyboard.press("Enter")
    page.get_by_text("the usual line").first.wait_for()

    page.get_by_text("Other cuts").click()
    page.get_by_role("button", name="Sweep the smallest cluster").click()
    page.get_by_text("min_cluster_size").first.wait_for()
    page.get_by_label("Method").click()
    page.get_by_text("k-means", exact=True).click()
    page.get_by_role("spinbutton", name="Number of clusters").fill("3")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Split", exact=True).click()
    page.locator(".card").nth(2).wait_for()
    assert page.locator(".card").count() == 3

    page.get_by_role("button", name="More").click()
    page.get_by_text("Undo this split").click()
    page.locator(".card").first.wait_for(
        state="detached"
    )  # until then the tabs of before and after may both stand there
    page.get_by_role("radio", name="Over time").click()
    page.get_by_text("Predictions per").wait_for()


def test_a_missing_search_or_cluster_is_reported_with_a_way_back(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.url}/isolate?search=00000000")
    page.get_by_text("This search cannot be shown").wait_for()
    page.get_by_role("button", name="All searches").click()
    page.get_by_text("Saved searches").or_(page.get_by_text("No searches yet")).first.wait_for()
    page.goto(f"{demo.url}/drilldown?at=7.7.7")
    page.get_by_text("Cluster not found").wait_for()


@pytest.mark.soak
@pytest.mark.parametrize("count", [0, 3])
def test_a_lake_without_images_or_vectors(page: Page, tmp_path: Path, count: int) -> None:
    uri = make_shapes(tmp_path, count).uri if count else str(tmp_path / "empty")
    if not count:
        lake.create(uri, embedders=["efficientnet-lite0"])
    with serving(uri) as url:
        page.goto(f"{url}/isolate")
        page.get_by_text("No image has an embedding yet" if count else "This lake has no images yet").wait_for()
