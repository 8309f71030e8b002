"""models on the command line: what it prints, what it writes down, and what it says when something is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lake.open_lake import OpenLake
from search_app.cli import main
from tests.training.registry.test_promotion import done, judge


def run(capsys: pytest.CaptureFixture[str], lake: OpenLake, *words: str, code: int = 0) -> Any:
    assert main.main(["models", *words, "--lake", lake.uri, "--json"]) == code
    printed = capsys.readouterr()
    return json.loads(printed.out) if code == 0 else printed.err


def test_from_a_run_to_production_and_back(lk: OpenLake, capsys: pytest.CaptureFixture[str]) -> None:
    data: dict[str, object] = {"slices": [{"id": "night@1", "use": "train"}]}
    first_run = done(lk)
    second_run = done(lk, data=data, parent=first_run)
    assert run(capsys, lk, "list") == []
    assert run(capsys, lk, "register", first_run, "--reason", "the first")["status"] == "registered"
    assert run(capsys, lk, "promote", "turns@1")["status"] == "promoted"
    assert f"lakeloop gate --candidate {second_run}" in run(capsys, lk, "promote", second_run, code=1)
    verdict = judge(lk, second_run, first_run, blocks=True)
    assert "--force --reason WHY" in run(capsys, lk, "promote", second_run, code=1)
    version = run(capsys, lk, "promote", second_run, "--gate", verdict, "--force", "--reason", "dusk matters more")
    assert (version["id"], version["gate"], version["reason"]) == ("turns@2", verdict, "forced: dusk matters more")
    assert run(capsys, lk, "rollback", "turns", "--reason", "no")["id"] == "turns@1"
    assert run(capsys, lk, "shadow", "turns@2")["status"] == "shadow"
    assert [version["status"] for version in run(capsys, lk, "list", "--model", "turns")] == ["promoted", "shadow"]
    shown = run(capsys, lk, "show", "turns")
    assert [step["action"] for step in shown["history"]] == [
        *("registered", "promoted", "registered", "promoted", "rolled_back", "shadowed"),
    ]
    assert shown["versions"][1]["slices"] == data["slices"]
    only = run(capsys, lk, "show", second_run[:6])
    assert [version["id"] for version in only["versions"]] == ["turns@2"]
    assert len(only["history"]) == 4
    assert run(capsys, lk, "retire", "turns@2", "--reason", "slow")["status"] == "retired"

    assert main.main(["models", "list", "--lake", lk.uri]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[:4] == ["turns@1", "promoted", "run", first_run]
    assert second.endswith("(slow)")
    assert main.main(["models", "show", "turns@2", "--lake", lk.uri]) == 0
    text = capsys.readouterr().out
    assert f"turns@2 is retired: run {second_run}, classification, probe, from run {first_run}" in text
    assert "train      night@1" in text
    assert "turns@2 rolled back  (no)" in text

    rows = lk.sql(
        "SELECT action, target, detail FROM audit WHERE action LIKE 'models %' ORDER BY timestamp"
    ).to_pylist()
    assert [(row["action"], row["target"]) for row in rows] == [
        ("models register", "turns@1"),
        ("models promote", "turns@1"),
        ("models promote", "turns@2"),
        ("models rollback", "turns@1"),
        ("models shadow", "turns@2"),
        ("models retire", "turns@2"),
    ]
    assert json.loads(rows[2]["detail"]) == {
        "run": second_run, "reason": "dusk matters more", "force": True, "gate": verdict,
    }  # fmt: skip
    assert json.loads(rows[3]["detail"])["taken_back"] == "turns@2"


def test_a_canary_is_promoted_shown_and_taken_back(lk: OpenLake, capsys: pytest.CaptureFixture[str]) -> None:
    first_run, second_run = done(lk), done(lk)
    run(capsys, lk, "promote", first_run)
    judge(lk, second_run, first_run)
    version = run(
        capsys, lk, "promote", second_run, "--share", "10%", "--limit", "errors=0.02", "--limit", "minimum=50"
    )
    assert (version["status"], version["share"]) == ("canary", 0.1)
    assert version["limits"] == {"disagreement": 0.3, "latency": 2.0, "errors": 0.02, "minimum": 50}
    assert main.main(["models", "show", "turns", "--lake", lk.uri]) == 0
    text = capsys.readouterr().out
    assert f"turns@2 is canary for 10% of the images: run {second_run}" in text
    assert "rolled back beyond disagreement 30.0%, latency 2 times, errors 2.0%, after 50 observations" in text
    assert "turns@2 canary 10%" in text
    assert run(capsys, lk, "promote", "turns@2", "--share", "0.5")["share"] == 0.5
    assert "write a percentage such as 10%" in run(capsys, lk, "promote", "turns@2", "--share", "some", code=2)
    assert "it must be between 0 and 1" in run(capsys, lk, "promote", "turns@2", "--share", "100%", code=2)
    assert "no limit 'speed'" in run(capsys, lk, "promote", "turns@2", "--share", "1%", "--limit", "speed=1", code=2)
    assert "give a share, too" in run(capsys, lk, "promote", "turns@2", "--limit", "errors=0.1", code=2)
    assert run(capsys, lk, "rollback", "turns", "--reason", "no")["id"] == "turns@1"
    details = lk.sql("SELECT detail FROM audit WHERE action = 'models promote' ORDER BY timestamp")["detail"]
    assert json.loads(details[1].as_py())["share"] == 0.1


WRONG = [
    (["show", "turn"], "no version or run 'turn'; did you mean turns@1"),
    (["list", "--model", "turn"], "no model 'turn'; did you mean turns? the lake has turns"),
    (["promote", "turns@4"], "no version 'turns@4'; did you mean turns@1? model turns has turns@1"),
    (["promote", "tuns@1"], "did you mean turns@1"),
    (["rollback", "tuns"], "no model 'tuns'; did you mean turns"),
    (["rollback", "turns@1"], "no model 'turns@1'; did you mean turns?"),
    (["retire", "turns"], "name a version of 'turns'; its newest is turns@1"),
    (["register", "xyz"], "no run 'xyz'"),
    (["register", "turns@1"], "no run 'turns@1'"),
]


def test_an_unknown_name_is_reported_with_the_nearest(lk: OpenLake, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, lk, "register", done(lk))
    for words, message in WRONG:
        assert message in run(capsys, lk, *words, code=2)
    assert lk.dataset("releases").count_rows() == 1
    assert lk.dataset("audit").count_rows() == 1
