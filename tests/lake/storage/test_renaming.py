"""An older lake keeps every row and every member list when its table predictions is named samples.

`lake_at_step_5.tar.xz` was made by the release before: 40 images, 48 rows, and slices, a tree, a search, a map and
saved queries whose SQL names the old table and views in many ways. `lake.json` has what that release returned.
"""

import ctypes
import fcntl
import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import lake
from lake import slices
from lake.errors import BadInput, CouldNot, LakeBusy
from lake.open_lake import OpenLake
from lake.sql import saved_queries, where
from lake.storage import migrations, renaming, schema, store
from tests.conftest import Say
from tests.forks import Forked
from tests.lake.storage.killed_open import killed_open

ARCHIVE = Path(__file__).with_name("lake_at_step_5.tar.xz")


def unpacked(folder: Path) -> tuple[str, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return str(folder / "lake"), json.loads((folder / "lake.json").read_text())


def digest(image_ids: Sequence[str]) -> list[Any]:
    return [len(image_ids), hashlib.sha256("\n".join(sorted(image_ids)).encode()).hexdigest()]


def assert_as_before(lk: OpenLake, before: dict[str, Any]) -> None:
    """Slices have the members, filters the images, and saved queries the rows that they had."""
    assert {name: digest(slices.members(lk, slices.get(lk, name)).to_pylist()) for name in before["slices"]} == before[
        "slices"
    ]
    for name in before["filters"]:
        definition = slices.get(lk, name).definition
        assert definition is not None
        assert digest(where.images(lk, definition)) == before["filters"][name], name
        resolved = slices.create(lk, f"{name}-again", **slices.spec(lk, slices.get(lk, name)))
        assert digest(slices.members(lk, resolved).to_pylist()) == before["filters"][name], name
    nested = slices.create(lk, "nested-again", **slices.spec(lk, slices.get(lk, "nested")))
    assert digest(slices.members(lk, nested).to_pylist()) == before["slices"]["nested@1"]
    for name in ("count", "views", "cte", "commas", "describe"):
        rows = lk.sql(saved_queries.get(lk, name).sql).to_pylist()
        assert json.loads(json.dumps(rows)) == before["queries"][name], name
    for table in ("clusters", "searches", "maps"):
        for text in {row["where"] for row in lk.scan(table, ["where"]).to_pylist()} - {None}:
            where.check(lk, text)
            assert "answers" not in text


def test_every_member_list_and_query_is_as_before(tmp_path: Path) -> None:
    uri, before = unpacked(tmp_path)
    lk = lake.open(uri)
    assert migrations.applied(lk) == [number for number, _, _ in migrations.STEPS]
    assert {"share", "limits"} <= {*lk.dataset("releases").schema.names}
    assert lk.dataset("labels").schema.names == [column.name for column in schema.LABELS.columns]
    assert lk.dataset("samples").count_rows() == 48
    assert lk.sql("SELECT count(*) AS n FROM predictions")["n"].to_pylist() == [40]
    assert_as_before(lk, before)
    assert "main.predictions" in saved_queries.get(lk, "pivot").sql


def test_what_an_older_lakeloop_writes_after_the_renaming_fails(tmp_path: Path) -> None:
    """Its dataset is open at the old place: without the file there, its commit would go where nobody reads it."""
    import lance

    uri, _ = unpacked(tmp_path)
    older = lance.dataset(f"{uri}/predictions.lance")
    row = older.to_table(limit=1)
    lk = lake.open(uri)
    with pytest.raises(OSError, match="Not a directory"):
        older.insert(row)
    assert lk.dataset("samples").count_rows() == 48
    assert "upgrade lakeloop" in (Path(uri) / "predictions.lance").read_text()


def test_a_lake_with_a_running_server_is_not_renamed(tmp_path: Path) -> None:
    uri, _ = unpacked(tmp_path)
    lock = Path(uri, "spool", "serving.lock")
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(LakeBusy, match="stop it"):
            lake.open(uri)
    assert Path(uri, "predictions.lance").is_dir()
    assert lake.open(uri).dataset("samples").count_rows() == 48


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    uri, _ = unpacked(tmp_path)
    monkeypatch.setattr(renaming, "_exchange", refuse)
    with pytest.raises(CouldNot, match=r"cannot be written to .*Permission denied"):
        lake.open(uri)


def test_without_an_exchange_of_names_there_are_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, before = unpacked(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert_as_before(lake.open(uri), before)


def test_copies_and_quarantined_versions_get_the_new_name(tmp_path: Path) -> None:
    uri, _ = unpacked(tmp_path)
    for file in ("columnar/predictions-1.duckdb", "columnar/predictions.json", "quarantine/predictions/7.manifest"):
        Path(uri, file).parent.mkdir(parents=True, exist_ok=True)
        Path(uri, file).write_text("x")
    lake.open(uri)
    assert [path.name for path in Path(uri, "columnar").iterdir()] == []
    assert [str(path.relative_to(uri)) for path in Path(uri).rglob("7.manifest")] == ["quarantine/samples/7.manifest"]


def test_repeating_the_step_changes_nothing(tmp_path: Path) -> None:
    uri, before = unpacked(tmp_path)
    lk = lake.open(uri)
    versions = {name: lk.version(name) for name in schema.TABLES}
    renaming.rename_table(lk)
    renaming.rewrite_saved_sql(lk)
    assert {name: lk.version(name) for name in schema.TABLES} == versions
    assert_as_before(lk, before)


def saved_sql(lk: OpenLake) -> dict[str, list[dict[str, Any]]]:
    """All text that the renaming may rewrite, and the number of samples."""
    columns = {"saved_queries": ["name", "sql"], "slices": ["id", "definition", "spec"]}
    columns |= {name: ["id", "where"] for name in ("clusters", "searches", "maps")}
    texts = {table: lk.scan(table, names).sort_by(names[0]).to_pylist() for table, names in columns.items()}
    return texts | {"samples": [{"n": lk.dataset("samples").count_rows()}]}


def kills(tmp_path: Path, stride: int) -> tuple[int, int]:
    """Opens the old lake in processes killed before every `stride`-th step; (how many died, how many steps)."""
    whole = tmp_path / "whole"
    uri, _ = unpacked(whole)
    process = Forked(killed_open, (uri, 0), whole / "log")
    process.wait()
    steps, expected, died = int((whole / "log").read_text()), saved_sql(lake.open(uri)), 0
    for fatal in range(1, steps + 1, stride):
        folder = tmp_path / str(fatal)
        uri, _ = unpacked(folder)
        process = Forked(killed_open, (uri, fatal), folder / "log")
        process.wait()
        died += process.returncode == -9
        lk = lake.open(uri)
        assert migrations.applied(lk) == [number for number, _, _ in migrations.STEPS]
        assert lk.notices == []
        assert saved_sql(lk) == expected
    return died, steps


def test_a_kill_before_any_step_leaves_a_lake_that_opens_renamed(tmp_path: Path, say: Say) -> None:
    stride = 36
    died, steps = kills(tmp_path, stride)
    assert died == len(range(1, steps + 1, stride))
    say(f"renaming: killed before {died} of {steps} steps, every lake opened as before")


@pytest.mark.soak
def test_a_kill_before_each_step_leaves_a_lake_that_opens_renamed(tmp_path: Path, say: Say) -> None:
    died, steps = kills(tmp_path, stride=1)
    assert died == steps
    say(f"renaming: killed before each of {steps} steps, every lake opened as before")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SELECT * FROM predictions", "SELECT * FROM samples"),
        ("SELECT predictions.label FROM Predictions", "SELECT samples.label FROM samples"),
        ('SELECT * FROM "answers" a', "SELECT * FROM main.predictions a"),
        ("SELECT answers.* FROM answers", "SELECT predictions.* FROM main.predictions"),
        ("SELECT 'answers' -- FROM answers", "SELECT 'answers' -- FROM answers"),
        ("SELECT count(*) AS predictions FROM labels", "SELECT count(*) AS predictions FROM labels"),
        ("SELECT predictions.id FROM labels AS predictions", "SELECT predictions.id FROM labels AS predictions"),
        (
            "WITH answers AS (SELECT * FROM answers) SELECT answers.x FROM answers",
            "WITH answers AS (SELECT * FROM main.predictions) SELECT answers.x FROM answers",
        ),
        ("SELECT 'é' FROM answers_judged", "SELECT 'é' FROM main.predictions_reviewed"),
        ("PIVOT answers ON label USING count(*)", "PIVOT main.predictions ON label USING count(*)"),
        ("DESCRIBE predictions", "DESCRIBE samples"),
        ("this is no SQL FROM answers", "this is no SQL FROM main.predictions"),
    ],
)
def test_saved_queries_are_rewritten_once(saved: renaming.SavedSql, old: str, new: str) -> None:
    assert saved.query(old) == new
    assert saved.query(new) == new


@pytest.fixture(scope="module")
def saved() -> Iterator[renaming.SavedSql]:
    with renaming.SavedSql() as sql:
        yield sql


def test_the_former_name_of_a_view_is_answered_with_its_new_one(lk: OpenLake) -> None:
    with pytest.raises(BadInput, match="view answers_judged is named predictions_reviewed now"):
        lk.sql("SELECT * FROM answers_judged")
    with pytest.raises(BadInput, match="view answers is named predictions now"):
        where.check(lk, "image_id IN (SELECT image_id FROM answers)")
    with pytest.raises(BadInput, match="did you mean predictions_labelled"):
        lk.frame("answers_labelled")


def stated(lk: OpenLake) -> None:
    """Three predictions of cat, of images labelled cat and dog, and one with a verdict; and a labelled image alone."""
    moment = store.now()
    names = [f"{i:064x}" for i in range(4)]
    samples = [
        {"prediction_id": str(i), "image_id": names[i], "model": "m", "label": "cat", "ingested_at": moment}
        for i in range(3)
    ] + [{"prediction_id": "3", "image_id": names[3], "ingested_at": moment}]
    lk.insert("samples", pa.Table.from_pylist(samples, schema=schema.SAMPLES.arrow()))
    labels = [
        {"event_id": f"l{i}", "image_id": names[i], "task": "classification", "label": label, "origin": "human",
         "timestamp": moment, "ingested_at": moment}
        for i, label in ((0, "cat"), (1, "dog"), (3, "dog"))
    ]  # fmt: skip
    lk.insert("labels", pa.Table.from_pylist(labels, schema=lk.dataset("labels").schema))
    review = {
        "event_id": "r", "prediction_id": "2", "image_id": names[2], "origin": "customer", "timestamp": moment,
        "verdict": "incorrect", "ingested_at": moment,
    }  # fmt: skip
    lk.insert("reviews", pa.Table.from_pylist([review], schema=lk.dataset("reviews").schema))


@pytest.mark.parametrize(
    ("filter", "passing"),
    [
        ("correct", [0]),
        ("NOT correct", [1, 2]),
        ("true_label = 'dog'", [1, 3]),
        ("samples.true_label = 'dog' AND model IS NOT NULL", [1]),
        ("judged_by = 'verdict'", [2]),
        ("label = 'correct'", []),
    ],
)
def test_every_filter_may_name_the_ground_truth(lk: OpenLake, filter: str, passing: list[int]) -> None:
    stated(lk)
    names = [f"{i:064x}" for i in passing]
    assert where.images(lk, filter) == names
    checked = where.check(lk, filter)
    assert checked.lance is None or "label" in filter
    assert len(where.row_ids(lk, checked)) == len(passing)
    assert slices.members(lk, slices.create(lk, "s", where=filter)).to_pylist() == names if passing else True
    text = f"SELECT count(*) AS n FROM predictions_labelled WHERE {where.predicate(filter)}"
    assert lk.sql(text)["n"].to_pylist() == [len([i for i in passing if i != 3])]


def test_a_frame_of_a_view_is_its_rows_now(lk: OpenLake) -> None:
    stated(lk)
    assert lk.frame("predictions").collect().height == 3
    assert lk.frame("predictions_reviewed").collect()["correct"].to_list().count(False) == 2
    with pytest.raises(BadInput, match="is a view, which has no versions"):
        lk.frame("predictions", version=1)


def test_a_metadata_column_may_not_hide_the_ground_truth(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'correct' is taken"):
        lake.create(str(tmp_path / "lake"), columns={"correct": "bool"})


def test_a_saved_query_that_cannot_be_parsed_takes_nothing_here(saved: renaming.SavedSql) -> None:
    """No bracket of the second is deep, and it takes gigabytes to parse."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_memory()
    deep = "SELECT " + "(" * 100_000 + " FROM answers"
    assert saved.query(deep) == deep
    saved.query("SELECT * FROM answers WHERE " + "(with a as " * 40)
    assert saved.query("SELECT * FROM predictions") == "SELECT * FROM samples"
    assert peak_memory() - before < 200 << 20


def peak_memory() -> int:
    """Of this process, in bytes."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10
