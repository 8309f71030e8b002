"""The demo's failure, named unprompted: at the prompt, and on the page Analyse in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

import lake
from search_app.cli.main import main
from tests.search_app.browsing import serving
from tests.search_app.few_cells import LACKING, NEW_KIND, few_cells

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)}")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's story with a few cells, every one of them checked."""
    return few_cells(tmp_path_factory, tmp_path_factory.mktemp("analyse"))


@pytest.fixture(scope="module")
def url(uri: str) -> Iterator[str]:
    with serving(uri) as answers:
        yield answers


def test_the_commands_name_polycrystalline_and_compare_it(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run_command(*words: str) -> Any:
        assert main([*words, "--lake", uri, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    discovery = run_command("discover")
    (condition,) = discovery["findings"][0]["conditions"]
    assert (condition["dimension"], condition["value"]) == ("module_type", "polycrystalline")
    assert discovery["findings"][0]["predictions"] == NEW_KIND
    by = run_command("metrics", "--by", "module_type")
    error = {entry["module_type"]: entry["error"]["value"] for entry in by["cells"]}
    assert error["polycrystalline"] > 2 * error["monocrystalline"]
    assert by["all"]["predictions"] == sum(entry["predictions"] for entry in by["cells"])
    assert run_command("metrics", "--calibration")["n"] == by["all"]["judged"]
    assert sum(entry["predictions"] for entry in run_command("metrics", "--confusion")["cells"]) == by["all"]["judged"]
    assert [entry["size"] for entry in run_command("metrics", "--sizes")["boxes"]] == ["small", "medium", "large"]
    assert "module_type" in run_command("metrics", "--dimensions")["dimensions"]
    assert main(["metrics", "--by", "module_typ", "--lake", uri]) == 2
    assert "did you mean module_type" in capsys.readouterr().err
    assert main(["metrics", "--compare", "a", "b", "--lake", uri]) == 2
    assert main(["discover", "--where", "1 +", "--lake", uri]) == 2
    assert main(["metrics", "--confusion", "--by", "label", "--lake", uri]) == 2
    capsys.readouterr()
    assert main(["metrics", "--by", "module_type,label", "--lake", uri]) == 0
    assert "polycrystalline" in capsys.readouterr().out


def test_the_page_shows_where_the_model_fails_and_links_to_the_images(page: Page, url: str, uri: str) -> None:
    page.goto(f"{url}/analyse")
    first = page.locator(".finding").first
    first.wait_for()
    assert first.locator(".whole").inner_text() == "Module type polycrystalline"
    assert "% wrong" in first.locator(".lead").inner_text().replace("\N{NO-BREAK SPACE}", " ")
    assert first.locator("img").first.evaluate("one => one.decode().then(() => one.naturalWidth > 0)")
    table = page.locator("table.heat").inner_text()
    assert "polycrystalline" in table
    assert "monocrystalline" in table

    # Its images.
    first.locator(".whole").click()
    page.get_by_text(f"module type polycrystalline: {NEW_KIND} images").wait_for()
    assert page.locator(".tile").count() > 0

    # Saved as a slice, by a button and not by a link.
    first.get_by_role("link", name="Save as slice").click()
    page.get_by_role("button", name="Save slice", exact=True).click()
    page.get_by_text("Slice module-type-polycrystalline v1 saved").wait_for()
    size = lake.open(uri).sql("SELECT size FROM slices WHERE id = 'module-type-polycrystalline@1'")["size"]
    assert size.to_pylist() == [NEW_KIND]

    # The confusion matrix, and from a cell to its images.
    page.get_by_text("Classes", exact=True).click()
    cell = page.locator("td.tone-wrong a.cell").first
    cell.wait_for()
    n = int(cell.locator(".value").inner_text().replace(",", ""))
    cell.click()
    page.get_by_text("most confident first").wait_for()
    page.wait_for_url("**truth=*")
    assert page.locator(".tile").count() == n

    # Two dimensions, from the URL alone; the scope narrows it.
    page.goto(f"{url}/analyse?view=dimensions&dim=module_type,label&where=module_type+%3D+%27polycrystalline%27")
    page.get_by_text("Error by module type and predicted label").wait_for()
    assert "monocrystalline" not in page.locator("table.heat").inner_text()

    for view, words in (
        ("confidence", "Mean confidence"),
        ("time", "Predictions per"),
        ("models", "Only one model has predictions"),
    ):
        page.goto(f"{url}/analyse?view={view}")
        page.get_by_text(words).first.wait_for()
