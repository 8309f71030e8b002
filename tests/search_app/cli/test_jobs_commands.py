"""`lakeloop jobs` and --detach: what they print, their exit codes, and that a command is a job, too."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lake import slices
from lake.jobs import current, live_state
from lake.jobs.running_job import Work
from lake.open_lake import OpenLake
from search_app.cli.main import main
from search_app.jobs import data_kinds, supervisor
from tests.conftest import MakeLake
from tests.lake import stock
from tests.search_app.jobs import counting


@pytest.fixture
def lk(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> OpenLake:
    """Four images, all in the slice all. No supervisor runs unless a test runs it."""
    monkeypatch.setattr(supervisor, "ensure", lambda lake: None)
    lake = make_lake()
    stock.add(lake, range(4))
    slices.create(lake, "all", ids=[stock.image_id(n) for n in range(4)])
    return lake


def run(lk: OpenLake, *words: str) -> int:
    return main([*words, "--lake", lk.uri])


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_command_is_a_job_of_its_user(lk: OpenLake, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = lk.version("jobs")
    assert run(lk, "slice", "export", "all", "--format", "list", "--out", str(tmp_path / "out")) == 0
    assert lk.version("jobs") == before + 2
    (job,) = current.list(lk)
    assert (job.kind, job.state, job.detached, job.result and job.result["images"]) == ("export", "done", False, 4)
    assert job.user
    capsys.readouterr()
    assert run(lk, "slice", "export", "all", "--format", "yolo", "--out", str(tmp_path / "out")) == 2
    assert current.list(lk)[0].state == "failed"
    assert str(current.list(lk)[0].error) in capsys.readouterr().err
    assert run(lk, "slice", "export", "none", "--out", str(tmp_path / "out"), "--detach") == 2
    assert len(current.list(lk)) == 2  # what is refused at once is no job
    capsys.readouterr()
    assert run(lk, "jobs", "list", "--kind", "train") == 0
    assert capsys.readouterr().out == "no job of this kind and state\n"


def test_a_detached_job_is_listed_shown_waited_for_cancelled_and_retried(
    lk: OpenLake, tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = ("slice", "export", "all", "--format", "list", "--out", str(tmp_path / "out"), "--detach", "--json")
    assert run(lk, *export) == 0
    job = printed(capsys)["job"]
    assert run(lk, "jobs", "list", "--state", "waiting", "--json") == 0
    (listed,) = printed(capsys)
    assert (listed["id"], listed["kind"], listed["arguments"]["slice"]) == (job, "export", "all@1")
    assert run(lk, "jobs", "wait", job, "--timeout", "0.01") == 3
    assert "is still waiting" in capsys.readouterr().err
    assert run(lk, "jobs", "cancel", job[:6]) == 0
    assert capsys.readouterr().out == f"job {job} is cancelled\n"
    assert run(lk, "jobs", "cancel", job) == 2
    assert run(lk, "jobs", "wait", job) == 3
    assert f"job {job} is cancelled (cancelled by " in capsys.readouterr().err
    assert run(lk, "jobs", "retry", job) == 0
    assert capsys.readouterr().out == f"job {job} waits for attempt 2\n"

    def slow(lake: OpenLake, arguments: Any, work: Work) -> Any:
        work.progress(1, 4, "images", "writing")
        assert shown.wait(60)
        return original(lake, arguments, work)

    original, shown = data_kinds.export, threading.Event()
    monkeypatch.setattr(data_kinds, "export", slow)
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.02)
    with counting.supervised(lk, counting.InThread), ThreadPoolExecutor(1) as aside:
        waiting = aside.submit(run, lk, "jobs", "wait", job)
        while not (current.get(lk, job).progress or live_state.Progress()).stage:
            time.sleep(0.02)
        assert run(lk, "jobs", "show", job) == 0
        assert "export, running (writing, 25%" in capsys.readouterr().out
        shown.set()
        assert waiting.result() == 0
    assert f"job {job} is done: {{" in capsys.readouterr().out
    live_state.log_file(lk, job).write_text("a line\n")
    assert run(lk, "jobs", "log", job) == 0
    assert capsys.readouterr().out == "a line\n"
    assert run(lk, "jobs", "show", "zzz") == 2


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "--watch", "--detach"),
        ("map", "--list", "--detach"),
        ("duplicates", "--calibrate", "--detach"),
        ("discover", "--save", "--detach"),
        ("jobs", "work", "--most", "0"),
        ("jobs", "list", "--limit", "0"),
    ],
)
def test_what_cannot_be_is_refused(lk: OpenLake, words: tuple[str, ...]) -> None:
    assert run(lk, *words) == 2


def test_work_in_a_terminal_ends_when_idle(lk: OpenLake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lk, "jobs", "work", "--most", "3", "--memory-gb", "2", "--idle", "0") == 0
    live = live_state.of(lk)
    assert live.settings() == {"most": 3, "memory_gb": 2}
    assert not live.supervised()
    live.close()


@pytest.mark.parametrize("words", ["jobs wait x --timeout", "sql SELECT --timeout", "serve --max-rate"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "soon"])
def test_a_number_is_finite(words: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN seconds never pass: such a wait would have no end."""
    with pytest.raises(SystemExit) as ended:
        main([*words.split()[:-1], f"{words.split()[-1]}={value}"])
    assert ended.value.code == 2
    assert value in capsys.readouterr().err
