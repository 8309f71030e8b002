"""Filters and SQL whose parsing alone takes a server's memory or time: refused, and the server stays small."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from embeddings.search import near
from lake import open_lake, slices
from lake.errors import BadInput, QueryStopped
from lake.open_lake import OpenLake
from lake.sql import connections, where
from lake.sql.sandbox import filters, parsing
from lake.sql.sandbox.pool import shared
from search_app.security import filter_bounds
from search_app.ui.components import scope
from search_app.ui.components.filters import Filters
from tests.conftest import Say
from tests.hostile.conftest import Serve
from tests.hostile.watch import Watch
from tests.lake import prediction_rows

SMALL = 300 << 20
# Takes a parser hours, and no bracket is deep.
ENDLESS_TEXT = "(with a as " * 40
ENDLESS = "SELECT count(*) FROM range(100000000) a, range(1000000) b WHERE a.range + b.range < 0"
FILTERS = {
    "brackets that stay open": "(" * 20_000,
    "brackets that are closed": "(" * 9_900 + "true" + ")" * 9_900,
    "brackets behind a quotation": "'\\' = '" + "(" * 19_000,
    "brackets of every kind": "([{'a': " * 2_400,
    "common tables in common tables": ENDLESS_TEXT + ")" * 40,
    "a name of many parts": "a" + ".a" * 9_900 + " = 1",
    "many negations": "NOT " * 4_900 + "true",
    "cases in cases": "CASE WHEN " * 1_900,
    "many signs": "~" * 19_000 + "1 = 1",
    "comparisons of comparisons": "1" + "=1" * 9_900,
    "what leaves its scope": "true) OR (true",
    "what leaves its scope unseen": "true) OR ('(' = '('",
    "a quotation without end": "label = 'a",
}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenLake]:
    """One lake for all tests: none of them writes to it."""
    lake = open_lake.create(str(tmp_path_factory.mktemp("filters") / "asked"))
    prediction_rows.add(lake, [{"label": "abc"[i % 3], "confidence": i / 200} for i in range(200)])
    where.check_foreign(lake, "true")
    shared(lake).ready()
    yield lake
    shared(lake).close()
    filters.close(lake)


@contextmanager
def small(most_bytes: int = SMALL) -> Iterator[None]:
    """This process needs no more than `most_bytes` of memory above what it has, not even for a moment."""
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on, VmHWM is the peak
    yield
    assert _memory("VmHWM") - before < most_bytes


def _memory(name: str) -> int:
    facts = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert facts
    return int(facts[1]) << 10


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_refused_before_it_takes_memory_or_time_here(lake: OpenLake, name: str) -> None:
    before = time.process_time()
    with small(), pytest.raises(BadInput, match="filter"):
        filter_bounds.check(lake, FILTERS[name])
    assert time.process_time() - before < 1


def test_the_door_of_pages_and_that_of_slices_are_the_same(lake: OpenLake) -> None:
    with small():
        for name in ("brackets that stay open", "common tables in common tables", "what leaves its scope"):
            text = FILTERS[name]
            with pytest.raises(BadInput):
                filter_bounds.check_definition(lake, {"union": ["a", {"intersect": ["b", {"where": text}]}]})
            with pytest.raises(BadInput):
                scope.checked(lake, Filters(labels=("a", "b"), sql=text))
    assert scope.checked(lake, Filters(labels=("a",), sql="correct")) == "(label = 'a') AND (correct)"


@pytest.mark.parametrize("text", ["true) OR (true", "true) OR ('(' = '('", "true\n) OR (true --"])
def test_a_filter_does_not_leave_the_scope_it_is_joined_to(lake: OpenLake, text: str) -> None:
    with pytest.raises(BadInput, match="not one expression"):
        where.check(lake, text)
    with pytest.raises(BadInput, match="not one expression"):
        slices.create(lake, "all", where=text)
    with pytest.raises(BadInput, match="not one expression"):
        Filters(slice="night@1", sql=text).where()
    inside = Filters(labels=("b",), sql="label = 'a' OR label = 'b'").where()
    assert inside is not None
    assert lake.sql(f"SELECT DISTINCT label FROM samples WHERE {where.predicate(inside)}")["label"].to_pylist() == ["b"]


def test_the_longest_ordinary_filters_pass(lake: OpenLake) -> None:
    numbers = "confidence IN (" + ",".join(["0.5"] * 4_900) + ")"
    words = " OR ".join(["label = 'a'"] * 1_300)
    for text in (numbers, words, "(" * 150 + "correct" + ")" * 150, "metadata ->> 'hour' < '6' -- night (all of it"):
        filter_bounds.check(lake, text)
        assert where.check(lake, text).sql == text


def test_what_was_checked_is_known_but_only_as_what_it_was_checked_for(lake: OpenLake) -> None:
    trusted = "label IN (SELECT label FROM samples)"
    where.check(lake, trusted)
    with pytest.raises(BadInput, match="subquery"):
        filter_bounds.check(lake, trusted)
    assert where.check_foreign(lake, "label = 'a'") is where.check(lake, "label = 'a'")
    assert where.check_foreign(lake, f"({trusted}) AND label = 'b'", bounded=False).lance is None


def test_filters_do_not_wait_for_queries(lake: OpenLake) -> None:
    pool = shared(lake)
    with ThreadPoolExecutor(pool.slots) as aside:
        ids = [f"endless {number}" for number in range(pool.slots)]
        queries = [aside.submit(pool.run, ENDLESS, id=id) for id in ids]
        try:
            while sum(query.child is not None for query in pool.queries()) < pool.slots:
                time.sleep(0.01)
            filter_bounds.check(lake, "label = 'b' AND confidence > 0.25")
            assert not any(query.done() for query in queries)
        finally:
            assert [pool.cancel(id) for id in ids] == [True] * pool.slots
        for query in queries:
            with pytest.raises(QueryStopped, match="cancelled"):
                query.result(10)


def test_a_query_of_neighbours_keeps_its_time_and_can_be_cancelled(lake: OpenLake) -> None:
    pool = shared(lake)
    text = f"SELECT * FROM near('a'), {ENDLESS_TEXT}"
    prepare = near.preparation(lake, text)
    with small(), pytest.raises(QueryStopped) as stopped:
        pool.run(text, timeout=0.5, prepare=prepare)
    assert stopped.value.reason == "timeout"
    with ThreadPoolExecutor(1) as aside:
        future = aside.submit(pool.run, text, prepare=prepare, id="mine")
        while not any(query.id == "mine" and query.child for query in pool.queries()):
            time.sleep(0.01)
        assert pool.cancel("mine")
        with pytest.raises(QueryStopped, match="cancelled"):
            future.result(10)


def test_the_tree_of_a_long_query_of_neighbours_stays_in_its_process(lake: OpenLake) -> None:
    text = f"SELECT * FROM near('a') WHERE image_id IN ({','.join(['1'] * 100_000)})"
    with small(64 << 20), pytest.raises(BadInput, match=r"not an id|no embedder"):
        shared(lake).run(text, prepare=near.preparation(lake, text))
    deep = "SELECT * FROM near('a') WHERE " + "(" * 20_000
    with small(), pytest.raises(BadInput, match="nested too deeply"):
        shared(lake).run(deep, prepare=near.preparation(lake, deep))


SLOW_PATTERNS = [
    "(a{1,100}){1,9}b",
    ".*a" + "." * 190 + "c",
    "(a|b)*a" + "(a|b)" * 38 + "c",
    "\\pL" * 10 + "c",
    "a" * 101,
]


@pytest.mark.parametrize("pattern", SLOW_PATTERNS)
@pytest.mark.parametrize(
    "form", ["regexp_matches(label, '{}')", "label SIMILAR TO '{}'", "regexp_extract(label, '{}') = ''"]
)
def test_a_regular_expression_that_takes_long_for_each_row_is_refused(lake: OpenLake, form: str, pattern: str) -> None:
    with pytest.raises(BadInput, match="too complex"):
        filter_bounds.check(lake, form.format(pattern))


@pytest.mark.parametrize(
    "text",
    [
        "lower(" * 17 + "label" + ")" * 17 + " = 'a'",
        " OR ".join(f"lower(label) = '{i}'" for i in range(17)),
        " OR ".join(f"label COLLATE NOCASE = '{i}'" for i in range(17)),
        " OR ".join(f"metadata ->> '{i}' = 'a'" for i in range(17)),
        " OR ".join(f"metadata::VARCHAR = '{i}'" for i in range(17)),
    ],
)
def test_a_filter_makes_only_so_many_texts(lake: OpenLake, text: str) -> None:
    """Each takes memory for the texts of 2,048 rows: 8,100 times `lower`, which fit into a filter, took 5.3 GB."""
    with pytest.raises(BadInput, match="makes 17 texts for each row"):
        filter_bounds.check(lake, text)


def test_ordinary_regular_expressions_pass(lake: OpenLake) -> None:
    for text in ("regexp_matches(label, '^(cat|dog)[0-9]+$', 'i')", "label SIMILAR TO '[a-z]+'", "label ~ '^a.*b$'"):
        filter_bounds.check(lake, text)
    with pytest.raises(BadInput, match="a text in quotes"):
        filter_bounds.check(lake, "regexp_matches(label, label)")


def test_what_a_server_evaluates_itself_ends_in_time(lake: OpenLake) -> None:
    """The next query works, also with the same connection's tables."""
    connections.limits(lake).seconds = 0.3
    try:
        with pytest.raises(QueryStopped, match=r"longer than 0\.3 s") as stopped:
            lake.sql(ENDLESS)
    finally:
        connections.limits(lake).seconds = None
    assert stopped.value.reason == "timeout"
    assert lake.sql("SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 200}]


@pytest.mark.soak
def test_what_passes_costs_little_for_each_row(tmp_path: Path, say: Say) -> None:
    """The slowest allowed parts, over texts of the longest kind: seconds and memory of this process."""
    lake = open_lake.create(str(tmp_path / "long"))
    text = "ab" * 5_000
    prediction_rows.add(lake, [{"label": "a", "source": f"{text}{i}", "confidence": 0.5} for i in range(200)])
    # Each part is another one, or it would be evaluated once.
    pattern = ".*a" + "." * 9 + "c@"
    parts = {
        "a regular expression": f"regexp_matches(source, '{pattern}')",
        "a pattern": "source LIKE '" + "%a_" * 60 + "%c@%'",
        "a pattern without case": "source ILIKE '" + "%a_" * 60 + "%c@%'",
    }
    texts = {
        "functions of functions": "lower(" * parsing.MOST_TEXTS + "source" + ")" * parsing.MOST_TEXTS + " = 'x'",
        "casts": " OR ".join(f"TRY_CAST(source AS DOUBLE) = {i}" for i in range(parsing.MOST_TEXTS)),
    }
    for name, part in (parts | texts).items():
        whole = (
            part
            if name in texts
            else " OR ".join(part.replace("@", str(i)) for i in range(min(150, 19_000 // (len(part) + 8))))
        )
        filter_ = where.check_foreign(lake, whole)
        before = time.process_time()
        with small():
            assert where.row_ids(lake, filter_) == []
        seconds = time.process_time() - before
        milliseconds = 1000 * seconds / 200
        say(f"filter of {name}, {len(whole):,} characters: {milliseconds:.1f} ms of a processor for a text of 10,000")
        assert seconds < 60
    filters.close(lake)


@pytest.mark.soak
def test_a_server_stays_small_and_answers_while_filters_attack_it(lake: OpenLake, serve: Serve, say: Say) -> None:
    service = serve(lake)
    url = f"http://127.0.0.1:{service.port}"
    doors = {
        "search": lambda client, text: client.post("/v1/search", json={"ids": ["a" * 64], "where": text}),
        "slices": lambda client, text: client.post("/v1/slices", json={"name": "attack", "where": text}),
        "metrics": lambda client, text: client.get(f"/v1/metrics?{urlencode({'where': text[:5_000]})}"),
        "sql": lambda client, text: client.post("/v1/sql", json={"sql": f"SELECT * FROM near('a') WHERE {text}"}),
    }
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(8) as many:
        client.post("/v1/search", json={"ids": ["a" * 64], "where": "label = 'a'"})
        idle = service.rss()

        def ask(door: str, name: str) -> tuple[int, float, str]:
            text = "(" * 20_000 if door == "sql" and name.startswith("common") else FILTERS[name]
            started = time.monotonic()
            status = doors[door](client, text).status_code
            return status, time.monotonic() - started, f"{door}: {name}"

        pairs = [(door, name) for door in doors for name in FILTERS]
        with Watch(service) as watch:
            alone = [ask(*pair) for pair in pairs]
            at_once = [*many.map(lambda pair: ask(*pair), pairs * 2)]
    slowest, slowest_at_once = (max(answers, key=lambda answer: answer[1]) for answers in (alone, at_once))
    say(
        f"{len(alone)} hostile filters: slowest refusal {slowest[1]:.2f} s ({slowest[2]}); {len(at_once)} from 8 at "
        f"once: {slowest_at_once[1]:.2f} s; server {(watch.resident['server'] - idle) >> 20} MiB above idle, /healthz "
        f"{watch.slowest * 1000:.0f} ms at worst of {watch.asked}"
    )
    assert {status for status, _, _ in alone} <= {422}
    assert {status for status, _, _ in at_once} <= {422, 429}
    assert watch.unanswered == 0
    assert watch.resident["server"] - idle < SMALL
    assert slowest[1] < 10
