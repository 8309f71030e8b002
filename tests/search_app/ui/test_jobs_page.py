"""Jobs in a real browser: the corner shows what anyone runs and stops it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import lake
from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.embedder import bind, record_of
from lake.jobs import current, live_state, record
from lake.jobs.job import Starter
from lake.open_lake import OpenLake
from tests.embeddings.colour import Random
from tests.embeddings.islands import islands
from tests.search_app.browsing import MISSING, serving
from tests.search_app.shapes import make_shapes

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def lk(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """Thirty drawings with vectors in three groups. No job is started before a test says so."""
    shapes = make_shapes(tmp_path_factory.mktemp("jobs"), 30)
    lake_ = lake.open(shapes.uri)
    bind(lake_, record_of(lake_, None), Random())
    vectors = islands([10, 10, 10])
    store_vectors(lake_, lake_.embedders()[0].column, dict(zip(shapes.ids, vectors, strict=True)))
    live = live_state.of(lake_)
    live.set_limits(0, None)
    live.close()
    return lake_


@pytest.fixture(scope="module")
def url(lk: OpenLake) -> Iterator[str]:
    with serving(lk.uri) as answers:
        yield answers


def test_the_corner_shows_and_stops_a_job_of_another_after_a_question(page: Page, url: str, lk: OpenLake) -> None:
    job = record.submit(lk, "maintain", {}, Starter(user="anna"))
    page.goto(f"{url}/sql")
    corner = page.locator(".st-key-job-corner")
    corner.get_by_text("Maintenance: waits for its turn").wait_for()
    corner.get_by_role("button", name="Stop").click()
    page.get_by_text("Started by anna. Stop it?").wait_for()
    page.reload()  # nothing is stopped without an answer
    corner.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Stop the job").click()
    page.get_by_text("Maintenance: cancelled").wait_for()
    assert current.get(lk, job.id).state == "cancelled"
    assert corner.count() == 0
