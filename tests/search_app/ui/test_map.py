"""The map: its points by HTTP, its colours, and in a browser what a hover, a colour and a lasso do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import lake
from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.embedder import bind, record_of
from embeddings.maps import maps
from lake.jobs import current, record
from lake.jobs.job import Starter
from lake.open_lake import OpenLake
from lake.storage import store
from search_app.api.app import Api
from search_app.cli.main import main
from search_app.security.scopes import scope_of
from search_app.ui import session
from tests.conftest import MakeLake
from tests.embeddings.colour import Random
from tests.embeddings.islands import islands, lake_of
from tests.lake.prediction_rows import image, label
from tests.search_app.browsing import MISSING, serving
from tests.search_app.jobs import counting
from tests.search_app.shapes import Shapes, make_shapes

if TYPE_CHECKING:
    from playwright.sync_api import Page

needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


def test_points_are_sent_in_order_once_and_only_to_readers(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([20, 10]))
    map_ = maps.make(lk)
    client = TestClient(Api(lk))
    answer = client.get(f"/v1/map-points/{map_.id}")
    assert answer.status_code == 200
    assert len(answer.content) == 30 * 40
    names, places = maps.points(lk, map_.id)
    assert names.to_pylist() == sorted(image(i) for i in range(30))
    assert np.frombuffer(answer.content[: 30 * 8], "<f4").reshape(-1, 2).tolist() == places.tolist()
    assert answer.content[30 * 8 :].hex() == "".join(names.to_pylist())
    again = {"If-None-Match": answer.headers["ETag"]}
    assert client.get(f"/v1/map-points/{map_.id}", headers=again).status_code == 304
    assert client.get("/v1/map-points/00000000").json()["reason"] == "unknown_map"
    for wrong in ("x", "0" * 9, "' or true --"):
        assert client.get(f"/v1/map-points/{wrong}").json()["reason"] == "bad_id"
    assert scope_of("GET", f"/v1/map-points/{map_.id}") == "read"


def test_the_commands_create_list_and_fill_a_map_and_rank_outliers(
    make_lake: MakeLake, capsys: pytest.CaptureFixture[str]
) -> None:
    points = islands([20, 10])
    points[17] = np.eye(8)[5]
    lk = lake_of(make_lake, points)

    def run_command(*words: str) -> Any:
        assert main([*words, "--lake", lk.uri, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    map_ = run_command("map", "--where", "label = 'b'", "--seed", "2")
    assert (map_["size"], map_["fitted"], map_["seed"], map_["where"]) == (15, 15, 2, "label = 'b'")
    assert [entry["map"] for entry in run_command("map", "--list")] == [map_["map"]]
    assert run_command("map", "--place", map_["map"]) == {"map": map_["map"], "placed": 0}
    outliers = run_command("outliers", "--limit", "2", "--method", "density")["results"]
    assert outliers[0]["image_id"] == image(17)
    assert len(outliers) == 2
    assert main(["map", "--place", "none", "--lake", lk.uri]) == 2
    assert main(["map", "--list", "--seed", "3", "--lake", lk.uri]) == 2


@pytest.fixture
def bound(make_lake: MakeLake) -> OpenLake:
    """Twelve images answered a and b in turn; the first is labelled as answered, the fourth otherwise."""
    lk = lake_of(make_lake, islands([7, 5]))
    label(lk, (image(0), "a", store.now()), (image(3), "a", store.now()))
    session.bind(lk)
    return lk


def test_colours_are_in_the_order_of_the_points(bound: OpenLake) -> None:
    from search_app.ui.components.map.colours import NONE, OUTSIDE, colours

    map_ = maps.make(bound)
    index = {name: i for i, name in enumerate(maps.points(bound, map_.id)[0].to_pylist())}

    by_label = colours(map_.id, "1", "label", None, None)
    assert [(entry.name, entry.n) for entry in by_label.legend.entries] == [("a", 6), ("b", 6)]
    assert [by_label.codes[index[image(i)]] for i in range(4)] == [0, 1, 0, 1]

    only = colours(map_.id, "1", "label", "label = 'a'", None)
    assert [(entry.name, entry.n) for entry in only.legend.entries] == [("a", 6), ("outside the filters", 6)]
    assert [only.codes[index[image(i)]] for i in range(2)] == [0, OUTSIDE]

    errors = colours(map_.id, "1", "error", None, None)
    assert [(entry.name, entry.n) for entry in errors.legend.entries] == [
        ("right", 1),
        ("wrong", 1),
        ("not labelled", 10),
    ]
    assert [errors.codes[index[image(i)]] for i in (0, 3, 5)] == [0, 1, NONE]

    unsure = colours(map_.id, "1", "confidence", None, None)
    assert [(entry.name, entry.n) for entry in unsure.legend.entries] == [("no confidence", 12)]
    assert set(unsure.codes.tolist()) == {NONE}


def test_clusters_colour_a_map_and_the_thirteenth_class_is_another(bound: OpenLake) -> None:
    from embeddings.clusters.drilldown import cluster
    from search_app.ui.components.map.colours import MOST_CLASSES, OTHER, _classes, colours

    map_ = maps.make(bound)
    tree = cluster(bound, method="kmeans", k=2)
    coloured = colours(map_.id, "1", "cluster", None, f"{tree.tree}/")
    assert [(entry.name, entry.n) for entry in coloured.legend.entries] == [("Cluster 0", 7), ("Cluster 1", 5)]

    import pyarrow as pa

    many = pa.chunked_array([[f"{i:02}" for i in range(MOST_CLASSES + 2)]])
    coded = _classes(many, np.zeros(MOST_CLASSES + 2, bool), "label")
    assert coded.codes.tolist() == [*range(MOST_CLASSES), OTHER, OTHER]
    assert (coded.legend.entries[-1].name, coded.legend.entries[-1].n) == ("2 more", 2)


def test_a_lasso_of_the_url_is_numbers_or_nothing() -> None:
    from search_app.ui.components.map import corners

    drawn = corners("0.0.100000.0.50000.-100000")
    assert drawn is not None
    assert drawn.tolist() == [[0, 0], [1, 0], [0.5, -1]]
    for wrong in (
        "",
        "0.0.1.1",
        "0.0.1.1.2",
        "0.0.1.1.2.2.",
        "a",
        "1e3.0.1.1.2.2",
        ".".join("0" * 130),
        "1.1.1.1.1.99999999",
    ):
        assert corners(wrong) is None, wrong


@pytest.mark.parametrize(("options", "said"), [({"seed": 1}, None), ({"where": "label = 'z'"}, "none of these images")])
def test_a_map_is_a_job(make_lake: MakeLake, options: dict[str, Any], said: str | None) -> None:
    lk = lake_of(make_lake, islands([12]))
    job = record.submit(lk, "map", options, Starter())
    with counting.supervised(lk, counting.InThread):
        while not (ended := current.get(lk, job.id)).finished:
            time.sleep(0.05)
    if said is None:
        assert ended.result is not None
        assert [entry.id for entry in maps.list(lk)] == [ended.result["map"]]
    else:
        assert said in str(ended.error)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """Forty drawings and a map on which the circles stand apart."""
    shapes = make_shapes(tmp_path_factory.mktemp("mapped"), 40)
    lk = lake.open(shapes.uri)
    kinds = np.array([["circle", "square", "cross"].index(kind) for kind in shapes.kinds])
    vectors = np.eye(8)[kinds] + np.random.default_rng(0).normal(0, 0.05, (40, 8))
    bind(lk, record_of(lk, None), Random())
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    store_vectors(lk, lk.embedders()[0].column, dict(zip(shapes.ids, unit, strict=True)))
    maps.make(lk)
    return shapes


@pytest.fixture(scope="module")
def url(drawn: Shapes) -> Iterator[str]:
    with serving(drawn.uri) as answers:
        yield answers


def _on_screen(page: Page, places: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Where places stand in the window, when the whole map is shown (as map.js's home() shows it)."""
    box = page.locator(".stage").bounding_box()
    assert box is not None
    low, high = every.min(axis=0), every.max(axis=0)
    width, height = box["width"] - 2, box["height"] - 2  # without its border
    scale = min((width - 40) / (high - low)[0], (height - 64) / (high - low)[1])
    middle = (low + high) / 2 + [0, 10 / scale]
    pixels = (places - middle) * [scale, -scale] + [box["x"] + 1 + width / 2, box["y"] + 1 + height / 2]
    return np.asarray(pixels)


@needs_browser
def test_hover_shows_the_image_colours_change_and_a_lasso_chooses(page: Page, url: str, drawn: Shapes) -> None:
    lk = lake.open(drawn.uri)
    image_ids, places = maps.points(lk, maps.list(lk)[0].id)
    names = image_ids.to_pylist()
    kind = dict(zip(drawn.ids, drawn.kinds, strict=True))
    circles = np.array([kind[name] == "circle" for name in names])

    page.goto(f"{url}/map")
    page.locator(".map[data-ready='40']").wait_for()
    screen = _on_screen(page, places, places)

    page.mouse.move(*screen[5])
    page.locator(".tip img").wait_for()
    assert page.locator(".tip").get_attribute("data-id") == names[5]
    assert page.locator(".tip img").evaluate("one => one.naturalWidth") > 0
    assert page.locator(".tip span").inner_text() in ("circle", "square", "cross")

    def shown() -> bytes:
        page.mouse.move(5, 5)
        page.locator(".tip").wait_for(state="hidden")
        return page.locator(".stage").screenshot()

    before = shown()
    page.get_by_text("Error", exact=True).click()
    page.locator(".map .legend[data-kind=verdict]").wait_for()
    assert shown() != before
    assert "colour=error" in page.url

    # Around the circles, which are an island of their own.
    low, high = screen[circles].min(axis=0) - 9, screen[circles].max(axis=0) + 9
    page.get_by_role("button", name="Lasso", exact=True).click()
    page.mouse.move(*low)
    page.mouse.down()
    for corner in ((high[0], low[1]), tuple(high), (low[0], high[1])):
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    page.get_by_text(f"{circles.sum()} images inside the lasso").wait_for()
    assert page.locator(".map").get_attribute("data-chosen") == str(circles.sum())
    tiles = page.locator(".tile")
    tiles.first.wait_for()
    assert {kind[image_id] for image_id in tiles.evaluate_all("all => all.map(one => one.dataset.id)")} == {"circle"}

    # The URL brings it back; filters narrow it; Escape takes it away.
    page.wait_for_url("**lasso=*")
    page.reload()
    page.get_by_text(f"{circles.sum()} images inside the lasso").wait_for()
    page.locator(".stage").focus()
    page.keyboard.press("Escape")
    page.get_by_text("inside the lasso").wait_for(state="hidden")
    assert "lasso" not in page.url


@needs_browser
@pytest.mark.soak
def test_a_browser_without_webgl_draws_and_says_so(page: Page, url: str) -> None:
    page.add_init_script(
        "const real = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        " return kind === 'webgl2' ? null : real.call(this, kind, ...rest); };"
    )
    page.goto(f"{url}/map")
    page.locator(".map[data-painter='2d'][data-ready='40']").wait_for()
    page.get_by_text("without WebGL").wait_for()
    page.locator(".map[data-drawn]").wait_for()
    inked = page.locator(".stage canvas.points").evaluate(
        "one => one.getContext('2d').getImageData(0, 0, one.width, one.height).data"
        ".filter((value, at) => at % 4 === 3 && value).length"
    )
    assert inked > 40
