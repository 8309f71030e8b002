"""The commands of upkeep: their words, their JSON, their exit codes. One lake goes through its life."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import lake
from lake import slices
from lake.open_lake import OpenLake
from lake.storage import store
from search_app.backend import query_images
from search_app.cli.main import main
from tests.conftest import MakeLake
from tests.lake import stock


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("LAKELOOP_LAKE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run_(*words: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(w) for w in words])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Ran(code, printed.out, printed.err)

    return run_


@pytest.fixture
def used(make_lake: MakeLake) -> OpenLake:
    lk = make_lake()
    for number in range(4):
        stock.add(lk, [number], source=f"line {number}")
    return lk


def test_maintain_reports_what_it_did(run: Any, used: OpenLake) -> None:
    used.dataset("images").tags.create("kept", 3)
    done = run("maintain", "--lake", used.uri, "--older-than", 0, "--json")
    assert done.code == 0
    assert done.json["tables"]["images"]["fragments_after"] == 1
    assert done.json["tagged"] == ["images@kept"]
    assert "kept because of its tag: images@kept" in run("maintain", "--lake", used.uri).out


@pytest.mark.parametrize("span", ["2", "d", "2w", "-1d", "1.5h", ""])
def test_a_span_has_a_unit(run: Any, used: OpenLake, span: str) -> None:
    wrong = run("maintain", "--lake", used.uri, f"--older-than={span}")
    assert (wrong.code, "write 2d, 12h, 30m or 0" in wrong.err) == (2, True)


def test_forget_asks_first_and_then_erases(run: Any, used: OpenLake) -> None:
    image = stock.image_id(1)
    refused = run("forget", "--lake", used.uri, "--image-id", image)
    assert refused.code == 2
    assert "nothing was erased; add --yes to erase 1 images (1 in the lake) for good" in refused.err
    assert used.known("images", "image_id", [image])
    query_images.beside(used.uri).put(b"somebody's upload")
    done = run("forget", "--lake", used.uri, "--image-id", image, "--reason", "asked for", "--yes", "--json")
    assert done.code == 0
    assert (done.json["image_ids"], done.json["complete"], done.json["query_images"]) == ([image], True, 1)
    assert not list((Path(used.uri) / "queries").iterdir())
    assert not used.known("images", "image_id", [image])


def test_forget_by_source_names_what_still_holds_the_image_and_exits_1(
    run: Any, used: OpenLake, tmp_path: Path
) -> None:
    slices.create(used, "odd", ids=[stock.image_id(2), stock.image_id(3)])
    assert run("backup", tmp_path / "copy", "--lake", used.uri).code == 0
    used.dataset("samples").tags.create("training", used.version("samples"))
    done = run("forget", "--lake", used.uri, "--source", "line [2-9]", "--yes")
    assert done.code == 1
    assert "slice odd@1 had some of them" in done.out
    assert "STILL HELD by the tagged version samples@training" in done.out
    assert f"the backup {tmp_path / 'copy'}" in done.out
    none = run("forget", "--lake", used.uri, "--source", "nowhere*", "--yes")
    assert (none.code, "no image has a source that matches 'nowhere*'" in none.err) == (2, True)


@pytest.mark.parametrize("name", ["copy", "copy.tar"])
def test_backup_verify_restore(run: Any, used: OpenLake, tmp_path: Path, name: str) -> None:
    report = run("backup", tmp_path / name, "--lake", used.uri, "--json").json
    checked = run("backup", "--verify", tmp_path / name, "--json").json
    assert checked["sha256"] == report["sha256"]
    wrong = run("restore", tmp_path / name, "--lake", tmp_path / "new", "--sha256", "0" * 64)
    assert (wrong.code, (tmp_path / "new").exists()) == (2, False)
    done = run("restore", tmp_path / name, "--lake", tmp_path / "new", "--sha256", report["sha256"], "--json")
    assert done.json["bytes"] == report["bytes"]
    assert lake.open(str(tmp_path / "new")).dataset("images").count_rows() == 4
    assert run("backup", tmp_path / name, "--lake", used.uri).code == 2
    (tmp_path / "cut.tar").write_bytes(b"x" * 600)
    assert run("backup", "--verify", tmp_path / "cut.tar").code == 2


def test_restore_leaves_out_what_was_erased_since(run: Any, used: OpenLake, tmp_path: Path) -> None:
    run("backup", tmp_path / "copy", "--lake", used.uri)
    run("forget", "--lake", used.uri, "--image-id", stock.image_id(0), "--yes")
    words = ("restore", tmp_path / "copy", "--lake", tmp_path / "new", "--forgotten-from", used.uri, "--json")
    assert run(*words).json["erased"] == 1


def test_doctor_exits_1_when_something_is_wrong(run: Any, used: OpenLake) -> None:
    assert run("doctor", "--lake", used.uri, "--deep").code == 0
    used.delete("images", f"image_id = '{stock.image_id(0)}'")
    ill = run("doctor", "--lake", used.uri, "--json")
    assert (ill.code, ill.json["sound"]) == (1, False)
    assert "WRONG  1 predictions have no image" in run("doctor", "--lake", used.uri).out
    assert run("doctor", "--lake", used.uri + "x").code == 2


def test_every_command_reports_a_torn_manifest(run: Any, used: OpenLake) -> None:
    from lake.storage.lance_files import table_files

    table_files.manifests(Path(used.table_uri("labels")))[0][1].write_bytes(b"")
    status = run("status", "--lake", used.uri)
    assert status.code == 0
    assert "table labels: version" in status.err


def test_retain_reports_what_it_would_drop_and_drops_it(run: Any, used: OpenLake, tmp_path: Path) -> None:
    import datetime as dt

    stock.add(used, [9], at=store.now() - dt.timedelta(days=40))
    (tmp_path / "policy.toml").write_text("[images]\ndays = 30\n")
    words = ("retain", "--lake", used.uri, "--policy", tmp_path / "policy.toml")
    dry = run(*words, "--dry-run", "--json").json
    assert (dry["images"]["items"], dry["dry_run"]) == (1, True)
    assert used.dataset("images").count_rows() == 5
    assert "1 dropped" in run(*words).out
    assert used.dataset("images").count_rows() == 4
    (tmp_path / "policy.toml").write_text("[image]\ndays = 30\n")
    wrong = run(*words)
    assert (wrong.code, "no section 'image'" in wrong.err) == (2, True)
