"""Real servers, workers and browsers: a job outlives the server that took it, and a killed training ends the same."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from safetensors.numpy import load_file

from lake import open_lake, slices
from lake.jobs import current, live_state, record
from lake.jobs.job import Job, Starter
from lake.open_lake import OpenLake
from search_app.cli.main import main
from search_app.jobs import supervisor
from tests.conftest import MakeLake
from tests.crash.service import Service
from tests.lake import stock
from tests.search_app.browsing import MISSING, browser_context
from tests.search_app.jobs import counting
from tests.training.conftest import striped
from training.registry import runs

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE = 120.0
NOTICED = 15.0


def until(lk: OpenLake, job: str, reached: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + PATIENCE
    while not reached(found := current.get(lk, job)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def worker_of(lk: OpenLake, job: str) -> int:
    live = live_state.of(lk)
    try:
        return live.jobs()[job].process.pid
    finally:
        live.close()


def start(folder: str, *options: str, ui: bool = False) -> Service:
    service = Service(Path(folder), options, ui=ui)
    return asyncio.run(service.ready())


def test_a_job_that_waited_for_a_killed_server_is_done_by_the_next(make_lake: MakeLake) -> None:
    lk = make_lake()
    stock.add(lk, range(3))
    slices.create(lk, "few", ids=[stock.image_id(n) for n in range(3)])
    first = start(lk.uri, "--jobs", "0")
    body = {"kind": "export", "arguments": {"slice": "few", "format": "list"}}
    job = httpx.post(f"http://127.0.0.1:{first.port}/v1/jobs", json=body).json()["id"]
    first.kill()
    assert current.get(lk, job).state == "waiting"
    second = start(lk.uri)
    try:
        done = until(lk, job, lambda job: job.finished)
        assert (done.state, done.result and done.result["images"]) == ("done", 3)
        assert httpx.get(f"http://127.0.0.1:{second.port}/v1/exports/few@1.list").status_code == 200
    finally:
        second.kill()


# The smallest of timm's residual networks: a step takes some 20 ms.
RECIPE = {"architecture": "test_resnet", "pretrained": False, "size": 32, "epochs": 60, "batch": 8, "validation": 0.0}


def trainable(lk: OpenLake) -> None:
    striped(lk, "many", 24, 100, role="train")


@pytest.mark.soak
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_a_killed_training_ends_with_the_same_weights(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    lk = make_lake()
    trainable(lk)
    weights = []
    with counting.supervised(lk, supervisor.start_worker):
        for killed in (False, True):
            arguments = {"train": ["many"], "recipe": RECIPE, "workers": 0, "device": "cpu"}
            job = record.submit(lk, "train", arguments, Starter()).id
            if killed:
                until(lk, job, lambda job: bool(job.progress and job.progress.done >= 90))
                os.killpg(worker_of(lk, job), signal.SIGKILL)
                at = time.monotonic()
                until(lk, job, lambda job: job.died or job.attempt == 2)
                assert time.monotonic() - at < NOTICED
            done = until(lk, job, lambda job: job.finished and not job.died)
            assert (done.state, done.attempt) == ("done", 2 if killed else 1), done.error
            assert done.result is not None
            weights.append(load_file(runs.model_file(lk, runs.get(lk, done.result["run"]))))
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


@pytest.mark.soak
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_a_training_goes_on_through_a_restart_shows_in_a_second_browser_and_is_cancelled_at_a_terminal(
    page: Page, tmp_path: Path
) -> None:
    lk = open_lake.create(str(tmp_path / "lake"), embedders=["efficientnet-lite0"])
    trainable(lk)
    server = _aside(lk.uri)
    try:
        page.goto(f"http://127.0.0.1:{server.port}/models?make=1")
        page.get_by_text("Fine-tune: minutes to hours").click()
        page.get_by_text("Replay, validation, test and other settings").click()
        lines = ["architecture=test_resnet", "pretrained=false", "epochs=1000", "size=32", "batch=8", "validation=0"]
        page.get_by_role("textbox", name="Other settings").fill("\n".join(lines))
        page.keyboard.press("Control+Enter")
        page.get_by_role("button", name="Train", exact=True).click()
        corner = re.compile(r"Training model: .*epoch \d+ of 1000")
        page.get_by_text(corner).wait_for()
        (job,) = current.list(lk, kinds=["train"])
        server.kill(whole_group=False)
        before = until(lk, job.id, lambda job: job.progress is not None).progress
        assert before is not None
        server = _aside(lk.uri)
        after = until(lk, job.id, lambda job: bool(job.progress and job.progress.done > before.done + 3))
        assert (after.state, after.attempt) == ("running", 1)
        with browser_context() as second:
            other = second.new_page()
            other.goto(f"http://127.0.0.1:{server.port}/search")
            other.get_by_text(corner).wait_for()
            assert main(["jobs", "cancel", job.id[:8], "--lake", lk.uri]) == 0
            until(lk, job.id, lambda job: job.state == "cancelled")
            other.get_by_text("Training model: cancelled").wait_for()
        assert [run.status for run in runs.list(lk)] == ["stopped"]
    finally:
        server.kill()


def _aside(uri: str) -> Service:
    """A server with its app, awaited on a thread: the browser has the loop of this one."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(start, uri, ui=True).result()
