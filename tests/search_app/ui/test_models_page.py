"""The page Models in a real browser: a probe is trained, evaluated, judged and promoted; who may only read cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from embeddings.backfill.vector_columns import store_vectors
from lake import open_lake
from lake.access import keys
from lake.open_lake import OpenLake
from tests.search_app.browsing import MISSING, serving
from tests.training.conftest import striped
from training.evaluation import comparison, evaluate
from training.fit import train_model
from training.registry import promotion, runs, versions
from training.registry.recipe import Recipe

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@dataclass(frozen=True)
class Judged:
    """A server that asks for keys; its lake has a live version, trained on few images, and a slice of many."""

    url: str
    lake: OpenLake
    live: str
    admin: str
    reader: str


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    lk = open_lake.create(str(tmp_path_factory.mktemp("models") / "lake"), embedders=["random"])
    names = striped(lk, "few", 6, role="train") + striped(lk, "many", 60, 100, role="train")
    names += striped(lk, "held", 80, 300, role="evaluation")
    record = lk.register_embedder("random")
    lk.bind_embedder(replace(record, dim=64, weights_sha256="d" * 64))
    truth = {row["image_id"]: row["label"] for row in lk.scan("labels", ["image_id", "label"]).to_pylist()}
    rng, vectors = np.random.default_rng(0), {}
    for name in names:  # too far from each other to be near-duplicates; six do not show which way the classes lie
        vector = rng.normal(0, 1, 64) + 2.0 * np.eye(64)[0] * (1 if truth[name] == "upright" else -1)
        vectors[name] = (vector / np.linalg.norm(vector)).astype(np.float32)
    store_vectors(lk, record.column, vectors)
    first = train_model.train(lk, train=["few"], recipe=Recipe(kind="probe", validation=0.0), name="stripes")
    evaluate.evaluate(lk, first.id)
    promotion.promote(lk, first.id)
    (_, admin), (_, reader) = (keys.create(lk, scope, [scope]) for scope in ("admin", "read"))
    with serving(lk.uri, require_key=True) as url:
        yield Judged(url, lk, first.id, admin, reader)


def enter(page: Page, judged: Judged, key: str) -> None:
    page.context.clear_cookies()
    page.goto(f"{judged.url}/login?next=/models")
    page.locator("input[name=key]").fill(key)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Runs").wait_for()


def test_a_probe_is_trained_evaluated_and_promoted(page: Page, judged: Judged) -> None:
    enter(page, judged, judged.admin)
    page.get_by_role("button", name="Train a model").click()
    page.get_by_text("few v1 · 6").wait_for()
    page.get_by_role("button", name="Remove few").click()
    page.get_by_text("60 images in 1 slice.").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_text("Training stripes: done.").wait_for()
    probe = next(run for run in runs.list(judged.lake) if run.id != judged.live)
    assert (probe.status, probe.kind, [entry["id"] for entry in probe.data["slices"]]) == ("done", "probe", ["many@1"])
    page.get_by_role("link", name=probe.id).click()

    page.get_by_role("button", name="Evaluate").click()
    page.get_by_text(re.compile("No gate verdict against stripes@1")).wait_for()
    change = next(entry for entry in comparison.compare(judged.lake, judged.live, probe.id) if entry.slice == "held@1")
    assert len(change.newly_right) > len(change.newly_wrong)
    page.get_by_role("link", name=str(len(change.newly_right)), exact=True).click()
    page.get_by_text(f"Newly right: {len(change.newly_right)} images").wait_for()
    assert page.locator(".tile").count() == len(change.newly_right)

    # Without a verdict it is refused in words, and goes on only with a reason.
    page.get_by_role("button", name="Promote …").click()
    page.get_by_role("button", name="Promote", exact=True).click()
    page.get_by_text("has no gate verdict against").wait_for()
    assert page.get_by_role("button", name="Promote anyway").is_disabled()
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Gate …").click()
    page.get_by_role("button", name="Run the gate").click()
    page.get_by_text("it may replace stripes@1").wait_for()
    page.get_by_role("button", name="Promote …").click()
    page.get_by_role("slider").press("ArrowLeft")
    page.get_by_text("A canary: the other images go").wait_for()
    page.get_by_role("button", name="Promote", exact=True).click()
    page.get_by_text("stripes@2 is now canary, 50% of images.").wait_for()
    page.get_by_role("button", name="Roll back …").wait_for()
    canary = versions.canary(judged.lake, "stripes")
    assert canary is not None
    assert (canary.run, canary.share) == (probe.id, 0.5)
    page.get_by_role("button", name="Promote …").click()
    page.get_by_label("Reason").fill("better on held")
    page.get_by_role("button", name="Promote", exact=True).click()
    page.get_by_text("stripes@2 is now promoted.").wait_for()
    live = versions.promoted(judged.lake, "stripes")
    assert live is not None
    assert (live.id, live.run, live.reason) == ("stripes@2", probe.id, "better on held")
    assert live.gate is not None
    wrote = judged.lake.scan("audit", ["action", "key_id"]).to_pylist()
    assert {"train", "evaluate", "gate", "models promote"} <= {row["action"] for row in wrote if row["key_id"]}


@pytest.mark.soak
def test_a_reader_cannot_change_a_model(page: Page, judged: Judged) -> None:
    enter(page, judged, judged.reader)
    assert page.get_by_role("button", name="Train a model").is_disabled()
    page.goto(f"{judged.url}/models?run={judged.live}")
    page.get_by_text("took").wait_for()
    for name in ("Gate …", "Promote …", "Roll back …"):
        button = page.get_by_role("button", name=name)
        assert button.count() == 0 or button.is_disabled()
    page.goto(f"{judged.url}/models?run=ffffffff")
    page.get_by_text("Run not found").wait_for()
    page.goto(f"{judged.url}/models?make=1")
    page.get_by_role("heading", name="Runs").wait_for()
    assert page.get_by_role("button", name="Train", exact=True).count() == 0
