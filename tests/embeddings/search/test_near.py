"""Similarity inside SQL gives what a search gives, with SQL around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.embedder import bind, record_of
from embeddings.search import near
from embeddings.search.search import search
from lake import open_lake
from lake.errors import BadInput, QueryStopped
from lake.open_lake import OpenLake
from lake.sql.sandbox.pool import Pool
from tests.embeddings.colour import Random
from tests.lake.prediction_rows import add, image

IMAGES, DIM = 40, 8
A, B = image(3), image(7)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    lk = open_lake.create(
        str(tmp_path_factory.mktemp("near") / "lake"), embedders=["random"], columns={"camera": "int"}
    )
    add(
        lk,
        [{"image_id": image(i), "label": "ab"[i % 2], "confidence": i / 100, "camera": i % 4} for i in range(IMAGES)],
    )
    bind(lk, record_of(lk, None), Random())
    rng = np.random.default_rng(3)
    store_vectors(lk, "emb_random", {image(i): row for i, row in enumerate(rng.normal(size=(IMAGES, DIM)))})
    return lk


def searched(lk: OpenLake, **options: Any) -> list[tuple[str, float]]:
    table = search(lk, **options)
    return list(zip(table["image_id"].to_pylist(), table["similarity"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("call", "parameters", "options"),
    [
        (f"near('{A}')", None, {"ids": [A], "k": 100}),
        (f"near('{A}', k := 5)", None, {"ids": [A], "k": 5}),
        (f"near('{A}', 5)", None, {"ids": [A], "k": 5}),
        (f"near(['{A}', '{B}'], k := 9)", None, {"ids": [A, B], "k": 9}),
        ("near($example, k := $k)", {"example": A, "k": 4}, {"ids": [A], "k": 4}),
        ("near($both)", {"both": [A, B]}, {"ids": [A, B], "k": 100}),
        ("near(?, k := 3)", [B], {"ids": [B], "k": 3}),
        (f"near('{B}', embedder := 'random')", None, {"ids": [B], "k": 100}),
    ],
)
def test_near_gives_the_results_of_search(crowd: OpenLake, call: str, parameters: Any, options: dict[str, Any]) -> None:
    rows = near.query(crowd, f"SELECT * FROM {call} ORDER BY similarity DESC", parameters).to_pylist()
    assert [(row["image_id"], row["similarity"]) for row in rows] == searched(crowd, **options)


def test_it_joins_filters_and_groups_like_any_table(crowd: OpenLake) -> None:
    text = f"""
        SELECT camera, count(*) AS n FROM near('{A}', k := 20) n JOIN samples p USING (image_id)
        WHERE p.confidence < 0.3 AND n.similarity > -0.5 GROUP BY camera ORDER BY camera"""
    close = {name for name, similarity in searched(crowd, ids=[A], k=20) if similarity > -0.5}
    rows = crowd.sql("SELECT image_id, camera FROM samples WHERE confidence < 0.3").to_pylist()
    cameras = [row["camera"] for row in rows if row["image_id"] in close]
    assert near.query(crowd, text).to_pylist() == [{"camera": c, "n": cameras.count(c)} for c in sorted({*cameras})]


def test_two_calls_do_not_mix(crowd: OpenLake) -> None:
    text = f"""SELECT (SELECT count(*) FROM near('{A}', k := 3)) AS a, (SELECT count(*) FROM near('{A}', k := 8)) AS b,
               (SELECT count(*) FROM near('{B}', k := 3) JOIN near('{A}', k := 8) USING (image_id)) AS both"""
    common = {n for n, _ in searched(crowd, ids=[B], k=3)} & {n for n, _ in searched(crowd, ids=[A], k=8)}
    assert near.query(crowd, text).to_pylist() == [{"a": 3, "b": 8, "both": len(common)}]


def test_a_query_without_it_searches_nothing(crowd: OpenLake) -> None:
    assert near.query(crowd, "SELECT 'near' AS near FROM samples LIMIT 1")["near"].to_pylist() == ["near"]
    assert near.preparation(crowd, "SELECT * FROM samples") is None
    assert near.query(crowd, "SELECT count(*) AS n FROM samples")["n"].to_pylist() == [IMAGES]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("near()", "needs an image_id"),
        ("near(5)", "needs an image_id"),
        ("near('nobody')", "nobody"),
        (f"near('{image('unknown')}')", "has no image_id"),
        (f"near('{A}', k := 0)", "from 1 to"),
        (f"near('{A}', k := 'many')", "from 1 to"),
        (f"near('{A}', radius := 0.5)", "not radius"),
        (f"near('{A}', 5, 'random', 7)", "a fourth"),
        (f"near('{A}', embedder := 'clip')", "clip"),
        ("near($absent)", "no value for the parameter"),
        (f"near((SELECT '{A}'))", "constants and parameters"),
        ("near_text(['a', 'b'])", "one text"),
        (" UNION ALL FROM ".join(f"near('{image(i)}')" for i in range(21)), "21 examples"),
    ],
)
def test_bad_calls_are_refused(crowd: OpenLake, call: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        near.query(crowd, f"SELECT * FROM {call}")


def test_it_works_in_the_sandbox(crowd: OpenLake) -> None:
    pool = Pool(crowd)
    try:
        text, parameters = "SELECT * FROM near($example, k := 5) ORDER BY similarity DESC", {"example": A}
        result = pool.run(text, parameters, prepare=near.preparation(crowd, text, parameters))
        assert list(zip(*result.table.to_pydict().values(), strict=True)) == searched(crowd, ids=[A], k=5)
        with pytest.raises(BadInput, match="near"):  # not without its rows
            pool.run(text, parameters)
    finally:
        pool.close()


def test_duckdb_refuses_a_query_that_does_not_parse(crowd: OpenLake) -> None:
    with pytest.raises(BadInput, match="syntax error"):
        near.query(crowd, f"SELECT * FROM near('{A}' WHERE")


def test_a_search_ends_at_every_step(crowd: OpenLake) -> None:
    """What raises once the query is cancelled or late is called before each example, scan and thousand images."""
    examples = [image(i) for i in range(10)]
    text = "SELECT * FROM near($examples, k := 5)"
    prepared = near.preparation(crowd, text, {"examples": examples})
    assert prepared is not None
    call = {"function_name": "near", "arguments": [
        {"name": "", "expression": {"type": "VALUE_PARAMETER", "identifier": "examples"}},
        {"name": "k", "expression": {"type": "VALUE_CONSTANT", "literal": {"kind": "INTEGER", "text": "5"}}},
    ]}  # fmt: skip

    def steps_until(stop: int | None) -> int:
        taken = 0

        def go_on() -> None:
            nonlocal taken
            if taken == stop:
                raise QueryStopped("cancelled", "the query was cancelled")
            taken += 1

        prepared.make([call], go_on)
        return taken

    steps = steps_until(None)
    assert steps >= len(examples) + 3
    for stop in range(steps):
        with pytest.raises(QueryStopped, match="cancelled"):
            steps_until(stop)
