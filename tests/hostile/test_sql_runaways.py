"""Every SQL query ends in time and within its memory, and other requests are served meanwhile."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from lake import open_lake
from lake.errors import BadInput, QueryStopped
from lake.open_lake import OpenLake
from lake.sql import columnar
from lake.sql.sandbox import pool as pool_module
from lake.sql.sandbox.pool import Pool
from tests.conftest import Say
from tests.hostile.conftest import Serve
from tests.lake import prediction_rows

MEMORY = 1 << 30
LATE = 0.5
# On a loaded machine a process waits for its turn to be ended.
LATE_UNDER_LOAD = 10.0

# Only counts, and for years. A join keeps its smaller side in memory, here 8 MB: with 800 MB for the other, it runs out
# of memory as soon as it has had 0.6 s of a processor.
ENDLESS = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range + b.range < 0"
RUNAWAYS = {
    "a list of 300 million": "SELECT len(range(300000000))",
    "two texts of a gigabyte": "SELECT len(repeat('a', 1000000000) || repeat('b', 1000000000))",
    "a series of two billion unnested": "SELECT count(*) FROM (SELECT unnest(generate_series(1, 2000000000)))",
    "a cross join": "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range + b.range < 0",
    "a cross join of the table": "SELECT count(*) FROM samples a, predictions b, predictions c, predictions d, predictions e, predictions f WHERE a.confidence + b.confidence * c.confidence < d.confidence - e.confidence * f.confidence",  # noqa: E501
    "a recursion without end": "WITH RECURSIVE t AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM t) SELECT sum(i) FROM t",
    "a recursion that doubles": "WITH RECURSIVE t AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM t, range(2)) SELECT count(*) FROM t",  # noqa: E501
    "groups without number": "SELECT i, count(*) FROM range(1000000000) t(i) GROUP BY i",
    "a sort of a billion": "SELECT i FROM range(1000000000) t(i) ORDER BY hash(i) LIMIT 3 OFFSET 900000000",
    "a regular expression": "SELECT count(*) FROM range(100000000) t(i) WHERE regexp_matches(repeat('a', 500) || i, '(a|aa|a.*)*b$')",  # noqa: E501
    "edit distances": "SELECT max(levenshtein(repeat('ab', 20000), repeat('ba', 20000) || i)) FROM range(10000) t(i)",
    "a list that grows": "SELECT len(list_reduce(range(1000000), lambda a, b: a + b)::VARCHAR), len(list(i)) FROM range(500000000) t(i)",  # noqa: E501
    "texts gathered": "SELECT len(string_agg(repeat('x', 1000), ',')) FROM range(100000000)",
    "a map of everything": "SELECT histogram(i) FROM range(300000000) t(i)",
    "padding": "SELECT len(lpad('a', 2000000000, 'b'))",
    "a window over a billion": "SELECT max(s) FROM (SELECT sum(i) OVER (ORDER BY -i) AS s FROM range(1000000000) t(i))",
    "an answer without end": "SELECT repeat('x', 100000) AS x FROM range(1000000000)",
    "a literal of a megabyte": "SELECT len('" + "x" * 900_000 + "'), sum(1) FROM range(100000000) a, range(1000000) b",
    "a long list of values": "SELECT count(*) FROM range(100000000) a, range(10000000) b WHERE a.range IN (" + ",".join(map(str, range(60_000))) + ") AND b.range % 7 = a.range % 11",  # noqa: E501
    "parentheses": "SELECT " + "(" * 20_000 + "1" + ")" * 20_000,
    "a sum of many terms": "SELECT " + "1 + " * 20_000 + "1",
    "subqueries in subqueries": "SELECT * FROM " + "(SELECT * FROM " * 900 + "range(3)" + ")" * 900,
    "common tables that double": "WITH " + ", ".join(["t0 AS (SELECT * FROM range(2))", *(f"t{i} AS (SELECT a.* FROM t{i - 1} a, t{i - 1} b)" for i in range(1, 9))]) + " SELECT count(*) FROM t8",  # noqa: E501
}  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """One lake for all tests: none of them writes to it."""
    lake = open_lake.create(str(tmp_path_factory.mktemp("runaways") / "asked"))
    prediction_rows.add(
        lake, [{"label": "abc"[i % 3], "confidence": i / 2000, "latency_ms": float(i)} for i in range(2000)]
    )
    columnar.pin(lake)
    return lake


@pytest.fixture
def pool(lake: OpenLake) -> Iterator[Pool]:
    opened = Pool(lake, memory_bytes=MEMORY)
    opened.run("SELECT count(*) FROM samples")
    yield opened
    opened.close()


def end(pool: Pool, sql: str, limit: float) -> tuple[str, float]:
    """The outcome of a query, and its seconds."""
    started = time.monotonic()
    try:
        pool.run(sql, timeout=limit, max_bytes=64 << 20)
        outcome = "answered"
    except QueryStopped as error:
        outcome = error.reason
    except BadInput:
        outcome = "refused"
    return outcome, time.monotonic() - started


def _run(pool: Pool, say: Say, limit: float, every: int = 1, late: float = LATE) -> None:
    ends: Counter[str] = Counter()
    slowest = ("", 0.0)
    tried = dict([*RUNAWAYS.items()][::every])
    for name, sql in tried.items():
        assert pool.ready()
        outcome, seconds = end(pool, sql, limit)
        assert seconds <= limit + late, f"{name}: {outcome} after {seconds:.2f} s"
        assert outcome != "died", name
        ends[outcome] += 1
        slowest = max(slowest, (name, seconds), key=lambda pair: pair[1])
    assert pool.peak <= MEMORY * 1.1
    assert pool.run("SELECT 42 AS n").table["n"].to_pylist() == [42]
    say(
        f"SQL: {len(tried)} runaway queries with a limit of {limit:g} s: {dict(ends)}, the last after "
        f"{slowest[1]:.2f} s; at most {pool.peak >> 20} MiB of {MEMORY >> 20} in memory"
    )


def test_a_runaway_ends_in_time_and_memory(pool: Pool, say: Say) -> None:
    _run(pool, say, 0.3, every=3, late=LATE_UNDER_LOAD)


def test_a_query_that_would_spill_to_disk_reports_that_memory_ran_out(
    lake: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "ATTEMPTS", 1)  # a file that cannot be written looks like a deleted one
    opened = Pool(lake, memory_bytes=768 << 20)
    outcome, _ = end(
        opened, "SELECT max(s) FROM (SELECT sum(i) OVER (ORDER BY -i) AS s FROM range(100000000) t(i))", 30.0
    )
    opened.close()
    assert outcome == "memory"


@pytest.mark.soak
@pytest.mark.parametrize("limit", [2.0, 8.0])
def test_a_runaway_with_more_time_ends_in_time_and_memory(pool: Pool, say: Say, limit: float) -> None:
    _run(pool, say, limit)


def test_one_query_per_core_runs_and_the_rest_wait_or_must_come_back(lake: OpenLake, say: Say) -> None:
    pool = Pool(lake, memory_bytes=MEMORY, queue=24)
    pool.run("SELECT 1")
    cores = len(os.sched_getaffinity(0))
    limit, at_once = 1.8, 0
    idle = threading.Event()
    ending = threading.Event()

    def watch() -> None:
        nonlocal at_once
        while not ending.wait(0.02):
            running = [query for query in pool.queries() if query.started is not None]
            at_once = max(at_once, len(running))
            for query in running:
                child = query.child
                if child is not None and child.demoted and _policies(child.pid) == {os.SCHED_IDLE}:
                    idle.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(32) as many:
        ends = list(many.map(lambda i: end(pool, f"{ENDLESS} AND {i} = {i}", limit), range(32)))
    ending.set()
    watcher.join()
    slowest = max(seconds for _, seconds in ends)
    counts = Counter(outcome for outcome, _ in ends)
    pool.close()
    assert slowest <= limit + LATE_UNDER_LOAD
    assert at_once == cores
    assert idle.is_set()
    assert set(counts) == {"timeout", "busy"}
    assert counts["timeout"] >= cores
    assert sum(1 for outcome, seconds in ends if outcome == "busy" and seconds < limit) >= 32 - 24 - cores
    say(f"SQL: 32 runaways at once: {at_once} ran, idle after a second; {dict(counts)}, all in {slowest:.2f} s")


def _policies(pid: int) -> set[int]:
    """The scheduling policies of a process's threads; none if one ends meanwhile."""
    try:
        return {os.sched_getscheduler(int(thread)) for thread in _threads(pid)}
    except ProcessLookupError:
        return set()


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []


def test_a_running_query_can_be_cancelled(pool: Pool) -> None:
    with ThreadPoolExecutor(1) as aside:
        future = aside.submit(pool.run, ENDLESS, id="mine")
        while not any(query.id == "mine" and query.child for query in pool.queries()):
            time.sleep(0.01)
        assert not pool.cancel("another")
        started = time.monotonic()
        assert pool.cancel("mine")
        with pytest.raises(QueryStopped, match="cancelled"):
            future.result(5)
    assert time.monotonic() - started < LATE_UNDER_LOAD
    assert pool.queries() == []


def test_children_end_with_their_parent(lake: OpenLake) -> None:
    import subprocess
    import sys

    code = (
        "import sys, time, threading, lake; from lake.sql.sandbox.pool import Pool\n"
        "pool = Pool(lake.open(sys.argv[1]))\n"
        f"threading.Thread(target=pool.run, args=({ENDLESS!r},), daemon=True).start()\n"
        "while not any(q.child for q in pool.queries()): time.sleep(0.01)\n"
        "time.sleep(0.5); print(*pool.processes(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, lake.uri], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 3
    while any(_threads(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in children if _threads(pid)] == []


def _beside_runaways(lake: OpenLake, serve: Serve, requests: int) -> tuple[list[float], list[float], Counter[int]]:
    """Milliseconds of another route without and with runaways beside it, and the statuses of the runaways."""
    service = serve(lake)
    url = f"http://127.0.0.1:{service.port}"
    with httpx.Client(base_url=url, timeout=30) as client:
        client.post("/v1/sql", json={"sql": "SELECT 1"}).raise_for_status()

        def latencies(seconds: float, beside: Sequence[Future[Any]] = ()) -> list[float]:
            took: list[float] = []
            until = time.monotonic() + seconds
            while len(took) < requests and time.monotonic() < until and not (beside and all(f.done() for f in beside)):
                started = time.perf_counter()
                client.get("/v1/saved-queries").raise_for_status()
                took.append(1000 * (time.perf_counter() - started))
            return took

        latencies(30)
        quiet = latencies(30)
        with ThreadPoolExecutor(8) as many:
            body = {"sql": ENDLESS, "timeout": 4}
            queries = [many.submit(httpx.post, f"{url}/v1/sql", json=body, timeout=30) for _ in range(8)]
            time.sleep(1.3)
            busy = latencies(2.5, queries)
            ends = Counter(query.result().status_code for query in queries)
        return quiet + latencies(30), busy, ends


def test_a_server_answers_others_while_runaways_run(lake: OpenLake, serve: Serve) -> None:
    _, busy, ends = _beside_runaways(lake, serve, 20)
    assert busy
    assert set(ends) <= {422, 429}
    assert ends[422] >= 1


@pytest.mark.soak
def test_others_wait_at_most_twice_as_long_beside_runaways(lake: OpenLake, serve: Serve, say: Say) -> None:
    quiet, busy, ends = _beside_runaways(lake, serve, 500)
    before, during = (statistics.quantiles(took, n=100)[98] for took in (quiet, busy))
    say(f"SQL: p99 of another route {before:.1f} ms, {during:.1f} ms beside runaways, answered {dict(ends)}")
    assert during <= 2 * before
