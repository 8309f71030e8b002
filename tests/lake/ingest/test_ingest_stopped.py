"""An ingest that is killed or interrupted leaves a lake that a second run completes: nothing lost, nothing twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lake import open_lake
from lake.ingest import ingest
from lake.open_lake import OpenLake
from tests import pictures
from tests.conftest import MakeLake
from tests.lake.ingest.test_ingest import content

IMAGES = 40
# Small steps, so that a kill falls between commits of the four tables; a pause makes the moment predictable.
SCRIPT = """
import sys, time
from lake.ingest import ingest; from lake import open_lake
ingest.COMMIT_ROWS, ingest.GROUP_ITEMS, ingest.TASK_ITEMS = 5, 8, 4
lake = open_lake.open(sys.argv[1])
insert = lake.insert
def slowly(name, rows):
    print(name, flush=True)
    time.sleep(0.02)
    return insert(name, rows)
lake.insert = slowly
ingest.ingest(lake, sys.argv[2], workers=1)
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    pictures.folder(root / "cat", IMAGES // 2, seed=1)
    pictures.folder(root / "dog", IMAGES // 2, seed=2)
    return root


@pytest.fixture
def undisturbed(make_lake: MakeLake, images: Path) -> dict[str, list[str]]:
    lk = make_lake("undisturbed")
    ingest.ingest(lk, images, workers=1)
    return content(lk)


def stop(lk: OpenLake, images: Path, commits: int, signum: int) -> subprocess.Popen[str]:
    """Ingests in a process of its own and stops it when it begins its n-th commit of a table."""
    command = [sys.executable, "-c", SCRIPT, lk.uri, str(images)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert process.stdout is not None
    for _ in range(commits):
        assert process.stdout.readline()
    time.sleep(0.02)
    process.send_signal(signum)
    process.communicate(timeout=30)
    return process


# In each step: thumbnails, images, labels, predictions.
@pytest.mark.parametrize(
    "commits", [2, 7, 12, pytest.param(16, marks=pytest.mark.soak), pytest.param(25, marks=pytest.mark.soak)]
)
def test_after_a_kill_a_second_run_gives_the_lake_of_an_undisturbed_one(
    lk: OpenLake, images: Path, undisturbed: dict[str, list[str]], commits: int
) -> None:
    assert stop(lk, images, commits, signal.SIGKILL).returncode == -signal.SIGKILL
    half = open_lake.open(lk.uri)
    assert content(half) != undisturbed
    report = ingest.ingest(half, images, workers=1)
    assert content(half) == undisturbed
    assert report.images_new + report.images_known == IMAGES
    assert report.rejected == []


def test_after_ctrl_c_a_second_run_completes_the_lake(
    lk: OpenLake, images: Path, undisturbed: dict[str, list[str]]
) -> None:
    process = stop(lk, images, 9, signal.SIGINT)
    assert process.returncode != 0
    half = open_lake.open(lk.uri)
    count = half.dataset("samples").count_rows()
    assert 0 < count < IMAGES
    report = ingest.ingest(half, images, workers=1)
    assert report.predictions_new == IMAGES - count
    assert content(half) == undisturbed


@pytest.mark.parametrize("table", ["images", "labels", "samples"])
def test_an_interrupted_ingest_is_completed_by_the_next(
    lk: OpenLake, images: Path, undisturbed: dict[str, list[str]], monkeypatch, table: str
) -> None:
    """Stopped exactly before a table's first commit."""
    insert = OpenLake.insert

    def stopping(self, name, rows):
        if name == table:
            raise KeyboardInterrupt
        return insert(self, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(OpenLake, "insert", stopping)
        with pytest.raises(KeyboardInterrupt):
            ingest.ingest(lk, images, workers=1)
    ingest.ingest(lk, images, workers=1)
    assert content(lk) == undisturbed
