"""SQL over HTTP and on the command line: results, refusals, caps, cancelling, saved queries, the audit log."""

from __future__ import annotations

import base64
import datetime as dt
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from lake import open_lake
from lake.access import audit
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.sql import saved_queries
from lake.sql.sandbox.pool import shared
from search_app.api import paging
from search_app.api.app import Api
from search_app.api.routes.batch import ARROW
from search_app.cli.main import main
from tests.conftest import MakeLake
from tests.lake import prediction_rows

ENDLESS = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range + b.range < 0"


def add_ten(lk: OpenLake) -> OpenLake:
    prediction_rows.add(lk, [{"label": "ab"[i % 2], "confidence": i / 10} for i in range(10)])
    return lk


@pytest.fixture
def queried(make_lake: MakeLake) -> OpenLake:
    return add_ten(make_lake("asked"))


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """One lake, and one pool of processes, for the tests that leave nothing behind."""
    return add_ten(open_lake.create(str(tmp_path_factory.mktemp("common") / "lake")))


@pytest.fixture(scope="module")
def client(common: OpenLake) -> Iterator[TestClient]:
    with TestClient(Api(common)) as opened:
        yield opened


def ask(client: TestClient, sql: str, **more: Any) -> Any:
    return client.post("/v1/sql", json={"sql": sql, **more})


def test_columns_rows_and_what_was_left_out(client: TestClient) -> None:
    response = ask(
        client, "SELECT label, count(*) AS n, sum(confidence::INT) AS s FROM predictions GROUP BY 1 ORDER BY 1"
    )
    assert response.json() | {"seconds": 0} == {
        "columns": [
            {"name": "label", "type": "VARCHAR"},
            {"name": "n", "type": "BIGINT"},
            {"name": "s", "type": "HUGEINT"},
        ],
        "rows": [["a", 5, 2], ["b", 5, 2]],
        "truncated": False,
        "seconds": 0,
    }
    cut = ask(client, "SELECT * FROM range(5)", max_rows=3).json()
    assert (cut["rows"], cut["truncated"]) == ([[0], [1], [2]], True)
    assert ask(client, "SELECT * FROM range(3)", max_rows=3).json()["truncated"] is False
    named = ask(client, "SELECT $a + 1 AS b, $c AS c", parameters={"a": 1, "c": "it's"}).json()
    assert named["rows"] == [[2, "it's"]]
    assert ask(client, "SELECT ? || 'x'", parameters=["y"]).json()["rows"] == [["yx"]]
    odd = ask(client, "SELECT 'nan'::DOUBLE, [1, NULL], {'a': DATE '2024-05-01'}, 1 AS x, 2 AS x").json()["rows"]
    assert odd == [[None, [1, None], {"a": "2024-05-01"}, 1, 2]]


def test_arrow_and_long_results_come_as_a_stream(client: TestClient) -> None:
    sql, headers = "SELECT i, i * 2 AS j FROM range(60000) t(i)", {"Accept": ARROW}
    response = client.post("/v1/sql", json={"sql": sql}, headers=headers)
    assert response.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(response.content).read_all()
    assert (table.num_rows, table["j"][59_999].as_py()) == (60_000, 119_998)
    rows = ask(client, sql).json()["rows"]
    assert (len(rows), rows[-1]) == (60_000, [59_999, 119_998])
    short = client.post("/v1/sql", json={"sql": sql, "max_rows": 2}, headers=headers)
    assert short.headers["lakeloop-truncated"] == "true"


def test_an_error_after_the_first_rows_ends_the_result_with_the_error(client: TestClient) -> None:
    late = "SELECT CASE WHEN i < 30000 THEN repeat('x', 1000) ELSE error('too late') END FROM range(40000) t(i)"
    response = ask(client, late, max_rows=1_000_000)
    assert response.status_code == 200
    assert response.json()["truncated"] is True
    assert "too late" in response.json()["error"]["detail"]


@pytest.mark.parametrize(
    ("body", "status", "reason", "words"),
    [
        ({"sql": "SELECT lable FROM predictions"}, 422, "invalid", 'Candidate bindings: "label"'),
        ({"sql": "SELECT 1,\n  lable FROM predictions"}, 422, "invalid", "LINE 2:   lable"),
        ({"sql": "SELECT * FROM prediction"}, 422, "invalid", 'Did you mean "predictions"?'),
        ({"sql": "DELETE FROM predictions"}, 422, "invalid", "takes one SELECT"),
        ({"sql": "SELECT getenv('HOME')"}, 422, "invalid", "getenv() cannot be used"),
        ({"sql": ENDLESS, "timeout": 0.3}, 422, "timeout", "longer than 0.3 s"),
        ({"sql": "SELECT len(range(2000000000))"}, 422, "memory", "MiB"),
        ({"sql": "SELECT $a"}, 422, "invalid", "parameters: a"),
        ({"sql": "SELECT 1", "timeout": 0}, 422, "invalid", "timeout"),
        ({"sql": "SELECT 1", "max_rows": -1}, 422, "invalid", "max_rows"),
        ({"sql": "SELECT 1", "rows": 1}, 422, "invalid", "rows"),
        ({"sql": ""}, 422, "invalid", "sql"),
        ({}, 422, "invalid", "sql"),
    ],
)
def test_a_refusal_is_a_problem(client: TestClient, body: Any, status: int, reason: str, words: str) -> None:
    response = client.post("/v1/sql", json=body)
    assert (response.status_code, response.json()["reason"]) == (status, reason)
    assert words in response.json()["detail"]


def test_a_query_is_cancelled_by_its_id(client: TestClient, common: OpenLake) -> None:
    def cancel() -> None:
        while not shared(common).queries():
            time.sleep(0.02)
        assert client.delete("/v1/sql/mine").json() == {"id": "mine", "status": "cancelled"}

    canceller = threading.Thread(target=cancel)
    canceller.start()
    response = ask(client, ENDLESS, id="mine")
    canceller.join()
    assert (response.status_code, response.json()["reason"]) == (409, "cancelled")
    assert client.delete("/v1/sql/mine").status_code == 404


def test_queries_are_saved_run_and_deleted(client: TestClient) -> None:
    put = client.put("/v1/saved-queries/low", json={"sql": "SELECT $x AS x", "parameters": {"x": 3}})
    assert (put.status_code, put.json()["parameters"]) == (200, {"x": 3})
    assert [query["name"] for query in client.get("/v1/saved-queries").json()["queries"]] == ["low"]
    assert client.get("/v1/saved-queries/low").json()["sql"] == "SELECT $x AS x"
    assert client.put("/v1/saved-queries/a b", json={"sql": "SELECT 1"}).status_code == 422
    assert client.delete("/v1/saved-queries/low").json() == {"name": "low", "status": "deleted"}
    assert client.get("/v1/saved-queries/low").status_code == 404


def test_a_number_that_json_cannot_hold_is_logged_as_text_and_not_saved(queried: OpenLake) -> None:
    """Python's json writes NaN, and reads it."""
    with TestClient(Api(queried)) as client:
        sent: dict[str, Any] = {
            "content": '{"sql": "SELECT isnan($x::DOUBLE) AS n", "parameters": {"x": NaN}}',
            "headers": {"Content-Type": "application/json"},
        }
        assert client.post("/v1/sql", **sent).json()["rows"] == [[True]]
        saved = client.put("/v1/saved-queries/nan", **sent)
        assert (saved.status_code, saved.json()["reason"]) == (422, "invalid")
        assert client.get("/v1/sql-history").json()["queries"][0]["parameters"] == {"x": "NaN"}


def test_every_query_is_in_the_audit_log(queried: OpenLake) -> None:
    with TestClient(Api(queried)) as client:
        ask(client, "SELECT 1 AS  n", parameters={})
        ask(client, "SELECT lable FROM predictions WHERE label = $l", parameters={"l": "a"})
        newest, before = client.get("/v1/sql-history").json()["queries"]
    assert (before["sql"], before["rows"], before["error"]) == ("SELECT 1 AS  n", 1, None)
    assert newest["parameters"] == {"l": "a"}
    assert "Candidate bindings" in newest["error"]
    rows = queried.sql("SELECT target FROM audit WHERE action = 'sql' ORDER BY timestamp")["target"].to_pylist()
    assert rows[0] == "SELECT 1 AS n"


def log(lk: OpenLake, texts: Sequence[str], first: int = 0) -> None:
    """Queries in the log, one a second, and as many other entries."""
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    times = [start + dt.timedelta(seconds=first + i) for i in range(len(texts))]
    rows = [saved_queries.entry(text) | {"timestamp": moment} for text, moment in zip(texts, times, strict=True)]
    rows += [audit.entry("ingest", "x", timestamp=moment, detail={"files": 1}) for moment in times]
    lk.insert("audit", audit.rows_to_table(rows))


def pages(client: TestClient, limit: int) -> Iterator[list[str]]:
    cursor: dict[str, str] = {}
    while True:
        body = client.get("/v1/sql-history", params={"limit": str(limit)} | cursor).json()
        yield [query["sql"] for query in body["queries"]]
        if body["next"] is None:
            return
        cursor = {"cursor": body["next"]}


def test_the_history_comes_in_pages(make_lake: MakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which entries were added: a slower process adds its entries a little later."""
    lk = make_lake("remembering")
    monkeypatch.setattr(audit, "WINDOW_ROWS", 1)
    for first in (0, 6, 3, 9):
        log(lk, [f"SELECT {first + i}" for i in range(3)], first)
    newest = [f"SELECT {n}" for n in reversed(range(12))]
    with TestClient(Api(lk)) as client:
        assert [*pages(client, 5)] == [newest[:5], newest[5:10], newest[10:]]
        assert [*pages(client, 4)] == [newest[:4], newest[4:8], newest[8:]]
        assert [*pages(client, 12)] == [newest]
        for cursor in ("x", paging.make_cursor(("a", 1)), paging.make_cursor((10**30, "x")), paging.make_cursor((1,))):
            refused = client.get("/v1/sql-history", params={"cursor": cursor})
            assert (refused.status_code, refused.json()["reason"]) == (422, "bad_cursor")
        quoting = paging.newest_first(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "' or 'a' = 'a")
        assert client.get("/v1/sql-history", params={"cursor": paging.make_cursor(quoting)}).status_code == 200


@pytest.mark.soak
def test_the_history_of_a_log_of_a_gigabyte(make_lake: MakeLake, say: Any) -> None:
    lk = make_lake("talkative")
    rng = random.Random(0)
    for part in range(14):
        log(lk, [base64.b85encode(rng.randbytes(15_900)).decode() for _ in range(5_000)], part * 5_000)
    size = sum(file.stat().st_size for file in Path(lk.uri, "audit.lance").rglob("*") if file.is_file())
    with TestClient(Api(lk)) as client:
        client.get("/v1/sql-history")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, started = peak_memory(), time.monotonic()
        assert len(client.get("/v1/sql-history").json()["queries"]) == 100
        seconds, grown = time.monotonic() - started, peak_memory() - before
    say(f"history of a log of {size >> 20} MiB: {1000 * seconds:.0f} ms, {grown >> 20} MiB of memory")
    assert size > 1 << 30
    assert seconds < 1
    assert grown < 64 << 20


def peak_memory() -> int:
    """Of this process, in bytes."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.soak
def test_the_command_prints_cuts_saves_and_remembers(
    queried: OpenLake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_command(*words: str, code: int = 0) -> tuple[Any, str]:
        assert main([*words, "--lake", queried.uri, "--json"]) == code
        out = capsys.readouterr()
        return json.loads(out.out) if out.out else None, out.err

    assert run_command("sql", "SELECT count(*) AS n FROM predictions") == ([{"n": 10}], "")
    rows, message = run_command("sql", "SELECT label FROM predictions", "--max-rows", "2")
    assert len(rows) == 2
    assert message == "the result is cut after 2 rows: raise --max-rows or select less (at most 256 MiB)\n"
    low = "SELECT count(*) AS n FROM predictions WHERE confidence < $most AND label = $l"
    run_command("query", "save", "low", low, "--param", "most=0.35", "--param", "l=a")
    assert run_command("sql", "--saved", "low")[0] == [{"n": 2}]
    assert run_command("sql", "--saved", "low", "--param", "most=1")[0] == [{"n": 5}]
    assert "taken" not in run_command("query", "save", "low", low, "--replace")[1]
    assert "is saved already" in run_command("query", "save", "low", low, code=2)[1]
    assert [query["name"] for query in run_command("query", "list")[0]] == ["low"]
    assert "there is low" in run_command("query", "show", "lwo", code=2)[1]
    assert run_command("query", "delete", "low")[0] == {"name": "low"}
    assert run_command("query", "history", "--most", "1")[0][0]["rows"] == 1
    assert "longer than 0.5 s" in run_command("sql", ENDLESS, "--timeout", "0.5", code=3)[1]
    out = tmp_path / "all.parquet"
    words = ["sql", "SELECT * FROM range(150000)", "--format", "parquet", "--out", str(out), "--lake", queried.uri]
    assert main(words) == 0
    assert pq.read_metadata(out).num_rows == 150_000


def test_saved_queries_are_named_like_slices(queried: OpenLake) -> None:
    for wrong in ("", "a b", "../a", "-a", "x" * 101):
        with pytest.raises(BadInput, match="use up to 100 letters"):
            saved_queries.save(queried, wrong, "SELECT 1")
    with pytest.raises(BadInput, match="empty"):
        saved_queries.save(queried, "a", "  ")
