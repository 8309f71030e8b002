"""The audit log: every write has its row, once, with who did it."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest

from lake.access import audit, keys
from lake.open_lake import OpenLake
from search_app.cli.main import main
from tests import pictures


def _rows(lake: OpenLake) -> list[dict[str, Any]]:
    return lake.sql("SELECT * FROM audit ORDER BY timestamp").to_pylist()


def test_an_event_drained_twice_has_one_row(lk: OpenLake) -> None:
    rows = [
        audit.entry(kind, "x", key_id="abc", event_id=audit.entry_id(kind, "1")) for kind in ("prediction", "image")
    ]
    assert lk.insert("audit", audit.rows_to_table(rows)) == 2
    assert lk.insert("audit", audit.rows_to_table(rows)) == 0
    assert [(row["action"], row["key_id"], row["user"]) for row in _rows(lk)] == [
        ("prediction", "abc", None),
        ("image", "abc", None),
    ]


def test_an_action_without_a_key_is_logged_under_the_user_of_the_process(
    lk: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit.record(lk, "forget", "x")
    audit.record(lk, "slice create", "y", key_id="abc")
    monkeypatch.setattr(getpass, "getuser", lambda: (_ for _ in ()).throw(KeyError("uid not found")))
    audit.record(lk, "forget", "z", detail={"why": "asked · to"})
    by = [(row["target"], row["user"], row["key_id"]) for row in _rows(lk)]
    assert by[:2] == [("x", by[0][1], None), ("y", None, "abc")]
    assert by[0][1]
    assert by[2][1].startswith("uid ")
    assert json.loads(_rows(lk)[2]["detail"]) == {"why": "asked · to"}


def test_creating_and_revoking_keys_is_audited(lk: OpenLake) -> None:
    record, token = keys.create(lk, "line 4", ["ingest"])
    keys.revoke(lk, record.key_id)
    keys.revoke(lk, record.key_id)
    rows = _rows(lk)
    assert [(row["action"], row["target"]) for row in rows] == [
        ("key create", record.key_id),
        ("key revoke", record.key_id),
    ]
    assert json.loads(rows[0]["detail"]) == {"name": "line 4", "scopes": ["ingest"], "expires_at": None}
    assert token.rpartition("_")[2] not in str(rows)


def test_each_command_that_writes_leaves_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lake import open_lake

    pictures.folder(tmp_path / "photos", 3)
    lake = str(tmp_path / "my.lake")
    for words in (
        ["init"],
        ["ingest", str(tmp_path / "photos")],
        ["slice", "create", "all", "--where", "true"],
        ["slice", "list"],
        ["sql", "SELECT * FROM audit"],
        ["status"],
    ):
        assert main([*words, "--lake", lake, "--json"]) == 0, capsys.readouterr().err
    rows = _rows(open_lake.open(lake))
    assert [(row["action"], row["target"]) for row in rows] == [
        ("init", lake),
        ("ingest", str(tmp_path / "photos")),
        ("slice create", "all@1"),
        ("sql", "SELECT * FROM audit"),
    ]
    assert {row["user"] for row in rows} == {audit.os_user()}
