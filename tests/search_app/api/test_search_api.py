"""POST /v1/search: by ids, by what they should not be, by an image, by text; filtered; as JSON and as Arrow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from embeddings.backfill.backfill import backfill
from lake.open_lake import OpenLake
from tests.embeddings.colour import MeanColour
from tests.embeddings.conftest import colours, installed
from tests.pictures import encoded, flat
from tests.search_app.api_client import ApiClient, api_client, event, in_base64, named, reason

__all__ = ["colours", "installed"]

RED, ORANGE, GREEN, BLUE = (200, 0, 0), (200, 100, 0), (0, 200, 0), (0, 0, 200)
PICTURES = {colour: encoded(flat(colour)) for colour in (RED, ORANGE, GREEN, BLUE)}


@pytest.fixture
def service(colours: OpenLake, tmp_path: Path) -> Iterator[ApiClient]:
    """Four images of one colour each, answered with their place in the list, and embedded."""
    with api_client(colours, tmp_path / "spool") as opened:
        for number, data in enumerate(PICTURES.values()):
            opened.predict(event(label=str(number), confidence=number / 4), data)
        opened.drain()
        backfill(colours, colours.embedders()[0], MeanColour(), workers=1)
        yield opened


def search(service: ApiClient, **query: Any) -> list[tuple[int, int, int]]:
    answer = service.client.post("/v1/search", json=query)
    assert answer.status_code == 200, answer.text
    names = {named(data): colour for colour, data in PICTURES.items()}
    return [names[row["image_id"]] for row in answer.json()["results"]]


def test_a_search_by_id_filter_example_and_counterexample(service: ApiClient) -> None:
    red, orange = named(PICTURES[RED]), named(PICTURES[ORANGE])
    assert search(service, ids=[red], k=2) == [RED, ORANGE]
    assert search(service, ids=[red, orange], k=2) in ([RED, ORANGE], [ORANGE, RED])
    assert search(service, ids=[red], k=4, where="label <> '1'")[0] == RED
    assert ORANGE not in search(service, ids=[red], where="confidence <> 0.25")
    assert search(service, ids=[orange], unlike=[red], k=4)[-1] != GREEN
    prediction = service.lake.sql("SELECT prediction_id FROM samples WHERE label = '2'").column(0)[0].as_py()
    assert search(service, ids=[prediction], k=1) == [GREEN]


def test_a_search_by_an_image_that_the_lake_does_not_have(service: ApiClient) -> None:
    almost = encoded(flat((10, 190, 5), 50, 50), "JPEG")
    assert search(service, image_base64=in_base64(almost), k=1) == [GREEN]


def test_a_search_responds_in_arrow_on_request(service: ApiClient) -> None:
    query = {"ids": [named(PICTURES[BLUE])], "k": 3, "columns": ["model", "timestamp"], "embedder": "mean-colour"}
    answer = service.client.post("/v1/search", json=query, headers={"Accept": "application/vnd.apache.arrow.stream"})
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    with pa.ipc.open_stream(answer.content) as reader:
        table = reader.read_all()
    rows = service.client.post("/v1/search", json=query).json()["results"]
    assert table.column("image_id").to_pylist() == [row["image_id"] for row in rows]
    assert table.column("similarity").to_pylist() == [row["similarity"] for row in rows]
    assert table.schema.names == [
        "prediction_id", "image_id", "similarity", "label", "confidence", "source", "model", "timestamp"
    ]  # fmt: skip


def test_a_wrong_search_has_a_clear_error(service: ApiClient) -> None:
    red = named(PICTURES[RED])
    wide = io.BytesIO()
    Image.new("1", (10_001, 10_000)).save(wide, "PNG")
    for query, words in (
        ({}, "exactly one"),
        ({"ids": [red], "text": "red"}, "exactly one"),
        ({"text": "a red thing"}, "text"),  # this embedder cannot
        ({"text": "\0"}, "text"),
        ({"unlike": [red]}, "exactly one"),
        ({"text": "x", "unlike": [red]}, "unlike needs ids"),
        ({"ids": ["0" * 64]}, "no image_id"),
        ({"ids": ["'; drop table"]}, "is not an id"),
        ({"ids": [red] * 1_001}, "ids"),
        ({"ids": [red], "k": 10**9}, "k"),
        ({"ids": [red], "k": 1.5}, "k"),
        ({"ids": [red], "k": True}, "k"),
        ({"ids": [red], "where": "colour = 'red'"}, "colour"),
        ({"ids": [red], "where": "1"}, "not true or false"),
        ({"ids": [red], "where": "true; DROP TABLE images"}, "syntax error"),
        ({"ids": [red], "where": "true) UNION SELECT key_id FROM keys WHERE (true"}, "not one expression"),
        ({"ids": [red], "where": "true) GROUP BY (prediction_id"}, "not one expression"),
        ({"ids": [red], "where": "(" * 5_000 + "true" + ")" * 5_000}, ""),
        ({"ids": [red], "where": "NOT " * 4_900 + "true"}, ""),
        ({"ids": [red], "where": "\0"}, "filter"),
        ({"ids": [red], "columns": ["emb_mean_colour; --"]}, "emb_mean_colour; --"),
        ({"ids": [red], "embedder": "clip"}, "clip"),
        ({"image_base64": "%"}, "Base64"),
        ({"image_base64": in_base64(b"GIF89a")}, "broken header"),
        ({"image_base64": in_base64(wide.getvalue())}, "100 megapixels"),
        ({"limit": 3}, "limit"),
    ):
        answer = service.client.post("/v1/search", json=query)
        assert answer.status_code == 422, (query, answer.text[:300])
        assert words in answer.json()["detail"], query


EXHAUSTING = (
    "len(repeat('a', 1000000000)) > 0",
    "len(range(300000000)) > 0",
    "len(generate_series(1, 2000000000)) > 0",
    "len(lpad('a', 1000000000, 'b')) > 0",
    "len(rpad(label, 1000000000, 'b')) > 0",
    "len(replace(label, '', 'aaaa')) > 0",
    "len(label || label) > 0",
    "len(concat(label, label)) > 0",
    "len(format('{:1000000000}', 1)) > 0",
    "len(printf('%1000000000d', 1)) > 0",
    "len(list_resize([1], 1000000000)) > 0",
    "len(bar(1, 0, 2, 1000000000)) > 0",
    "len(list_transform([1], lambda x: x)) > 0",
    "CAST(NULL AS INT[100000]) IS NULL",
    "length(CAST(7 AS BIT)) > 0",
    "10000! > 0",
    "EXISTS (SELECT * FROM range(1000000000000) a, range(1000000) b)",
    "label IN (SELECT secret_sha256 FROM keys)",
    "prediction_id = (SELECT max(key_id) FROM keys)",
    "EXISTS (SELECT * FROM duckdb_settings())",
    "current_setting('temp_directory') <> ''",
    "getvariable('a') IS NULL",
    "version() <> ''",
    "query('SELECT 1') IS NULL",
    "write_log('x') IS NULL",
    "random() < 0.5",
    "nextval('s') > 0",
    "row_number() OVER () > 0",
    "COLUMNS('label') = 'a'",
    "CASE WHEN true THEN len(repeat('a', 1000000000)) > 0 ELSE false END",
    "NOT (label = 'a' AND (1 = 2 OR repeat(label, 1000000000) = 'a'))",
    "label LIKE repeat('a', 1000000000)",
    "label = ANY(SELECT 'a')",
)
ORDINARY = (
    "label = '1' AND confidence < 0.5",
    "confidence BETWEEN 0.1 AND 0.9 OR label IN ('1', '2')",
    "NOT (label IS NULL) AND model IS NOT NULL",
    "timestamp > now() - INTERVAL 3 DAY",
    "timestamp >= TIMESTAMP '2026-01-01' AND timestamp::DATE < current_date + 7",
    "date_trunc('day', timestamp) = '2026-01-01' OR extract(hour FROM timestamp) = 3",
    "metadata->>'$.camera' = '3' AND CAST(metadata->'camera' AS INTEGER) > 2",
    "label LIKE '1%' OR label ILIKE '%A' OR label SIMILAR TO '[0-9]+' OR regexp_matches(label, '^a')",
    "lower(trim(label)) = 'x' OR starts_with(source, 's3://') OR len(boxes) > 3 OR boxes[1].label = 'a'",
    "list_contains(list_value(1, 2), 1) AND scores[1]['score'] > 0.5",
    "coalesce(confidence, 0) * 100 + 1 > round(latency_ms / 2)",
    "CASE WHEN label = '1' THEN true ELSE confidence > 0.5 END",
    "label IS DISTINCT FROM model",
    "image_status IS NOT NULL",
)


def test_a_filter_from_outside_is_bounded(service: ApiClient) -> None:
    ids = [named(PICTURES[RED])]
    for where in EXHAUSTING:
        answer = service.client.post("/v1/search", json={"ids": ids, "where": where})
        assert reason(answer) == (422, "invalid"), where
        assert "a filter may not" in answer.json()["detail"], (where, answer.json()["detail"])
    for where in ORDINARY:
        answer = service.client.post("/v1/search", json={"ids": ids, "where": where})
        assert answer.status_code == 200, (where, answer.text)
