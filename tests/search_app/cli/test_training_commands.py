"""train, runs, tune on the command line, and what they say when something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lake import open_lake
from lake.open_lake import OpenLake
from search_app.cli import main
from tests.training.conftest import striped

pytestmark = pytest.mark.slow

TINY = [
    "--architecture", "test_resnet", "--device", "cpu", "--workers", "0", "--set", "pretrained=false", "--set",
    "size=32", "--set", "epochs=1", "--set", "batch=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def _stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stocked") / "lake"
    lk = open_lake.create(str(folder))
    striped(lk, "first", 16)
    striped(lk, "held", 8, 200)
    return folder


@pytest.fixture
def stock(tmp_path: Path, _stocked: Path) -> OpenLake:
    shutil.copytree(_stocked, tmp_path / "stock")
    return open_lake.open(str(tmp_path / "stock"))


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert main.main([*words, "--json"]) == code, capsys.readouterr().err
    printed = capsys.readouterr()
    return json.loads(printed.out) if code == 0 else printed.err


def test_train_then_show_then_go_on(stock: OpenLake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = ["--lake", stock.uri]
    (tmp_path / "r.toml").write_text("rate = 0.005\nepochs = 7\n")
    trained = run(capsys, "train", "--train", "first", "--validation", "held", "--model", "lines",
               "--recipe", str(tmp_path / "r.toml"), *TINY, *lake)  # fmt: skip
    assert (trained["status"], trained["recipe"]["rate"], trained["recipe"]["epochs"]) == ("done", 0.005, 1)
    shown = run(capsys, "runs", "show", trained["id"][:5], *lake)
    assert {row["split"] for row in shown["metrics"]} == {"train", "validation"}
    assert main.main(["runs", "show", trained["id"], *lake]) == 0
    assert "16 images of train: lying 8, upright 8" in capsys.readouterr().out
    second = run(capsys, "train", "--train", "held", "--from", "lines", "--set", "epochs=1", "--set", "validation=0",
                 "--device", "cpu", "--workers", "0", "--model", "lines", *lake)  # fmt: skip
    assert second["parent"] == trained["id"]
    assert second["recipe"]["architecture"] == "test_resnet"
    assert [r["id"] for r in run(capsys, "runs", "list", *lake)] == [second["id"], trained["id"]]
    assert stock.sql("SELECT count(*) AS n FROM audit WHERE action = 'train'")["n"].to_pylist() == [2]
    assert "is done; to continue from it, run" in run(capsys, "train", "--resume", trained["id"], *lake, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "with --train SLICE"),
        (["train", "--train", "frist"], "first"),
        (["train", "--train", "first", "--set", "epoch=2"], "did you mean epochs"),
        (["train", "--train", "first", "--resume", "abc"], "--resume continues a run with its own slices"),
        (["train", "--resume", "abc"], "no run 'abc'"),
        (["train", "--train", "first", "--workers", "-1"], "--workers is -1"),
        (["runs", "show", "abc"], "no run 'abc'"),
        (["tune", "--train", "first"], "name what to try"),
    ],
)
def test_errors_name_the_remedy(
    stock: OpenLake, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in run(capsys, *words, "--lake", stock.uri, code=2)


def test_tune_compares(stock: OpenLake, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "--train", "first", "--validation", "held", "--try", "flip=none,both", "--trials", "2", *TINY]
    search = run(capsys, *words, "--lake", stock.uri)
    assert search["done"] == 2
    assert {trial["settings"]["flip"] for trial in search["best"]} == {"none", "both"}


def test_ctrl_c_names_the_command_that_resumes(
    stock: OpenLake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.tasks.classification.Classification.loss", pressed)
    lake = ["--lake", stock.uri]
    said = json.loads(run(capsys, "train", "--train", "first", *TINY, *lake, code=130))["detail"]
    (stopped,) = run(capsys, "runs", "list", *lake)
    assert stopped["status"] == "stopped"
    assert f"continue it with: lakeloop train --resume {stopped['id']} --lake {stock.uri}" in said
    monkeypatch.undo()
    assert run(capsys, "train", "--resume", stopped["id"], "--device", "cpu", *lake)["status"] == "done"
