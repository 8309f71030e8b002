"""Analysts read every table and view, and can do nothing else."""

import datetime as dt
import gc
import weakref
from pathlib import Path

import pyarrow as pa
import pytest

from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.sql.connections import idle
from lake.storage import schema, views
from tests.conftest import MakeLake
from tests.lake.prediction_rows import add, image, label


def moment(day: int) -> dt.datetime:
    return dt.datetime(2024, 5, day, tzinfo=dt.UTC)


@pytest.mark.parametrize("name", [*schema.TABLES, *views.VIEWS])
def test_every_table_and_view_can_be_selected(lk: OpenLake, name: str) -> None:
    assert isinstance(lk.sql(f"SELECT * FROM {name}"), pa.Table)


@pytest.mark.parametrize("name", views.VIEWS)
def test_the_columns_of_a_view_are_known_without_a_lake(lk: OpenLake, name: str) -> None:
    here = [name for name, _ in views.columns(name, lk.promoted())]
    assert here == [c for c in lk.sql(f"SELECT * FROM {name}").column_names if not c.startswith("emb_")]


def test_bytes_are_hidden(lk: OpenLake) -> None:
    names = {name: set(lk.sql(f"SELECT * FROM {name}").column_names) for name in ("images", "thumbnails")}
    assert names["images"] == {c.name for c in schema.IMAGES.columns} - {"data"}
    assert names["thumbnails"] == {c.name for c in schema.THUMBNAILS.columns} - {"jpeg"}


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO images SELECT * FROM images",
        "DELETE FROM samples",
        "UPDATE labels SET label = 'x'",
        "DROP VIEW answers",
        "CREATE TABLE t AS SELECT 1",
        "COPY (SELECT 1) TO '/tmp/lakeloop-leak.csv'",
        "ATTACH '/tmp/lakeloop-leak.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA database_list",
        "EXPORT DATABASE '/tmp/lakeloop-leak'",
        "CALL pragma_version()",
        "EXPLAIN SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW answers",
        "",
        "-- nothing",
    ],
)
def test_sql_takes_only_one_select(lk: OpenLake, text: str) -> None:
    with pytest.raises(BadInput, match="takes one SELECT"):
        lk.sql(text)


@pytest.mark.parametrize(
    "source",
    [
        "read_csv('/etc/passwd')",
        "read_text('/etc/passwd')",
        "read_blob('/etc/passwd')",
        "read_parquet('/tmp/x.parquet')",
        "read_json('/tmp/x.json')",
        "glob('/etc/*')",
        "'/etc/passwd'",
        "'https://example.com/x.csv'",
        "duckdb_secrets('x')",
        "rows",
    ],
)
def test_files_network_and_python_are_out_of_reach(lk: OpenLake, source: str) -> None:
    rows = pa.table({"secret": [1]})
    assert rows.num_rows == 1
    with pytest.raises(BadInput):
        lk.sql(f"SELECT * FROM {source}")


def test_settings_are_locked(lk: OpenLake) -> None:
    rows = lk.sql(
        "SELECT name, value FROM duckdb_settings()"
        " WHERE name IN ('enable_external_access', 'lock_configuration', 'TimeZone')"
    )
    values = dict(zip(rows["name"].to_pylist(), rows["value"].to_pylist(), strict=True))
    assert values == {"enable_external_access": "false", "lock_configuration": "true", "TimeZone": "UTC"}


def test_an_error_has_duckdbs_own_message(lk: OpenLake) -> None:
    with pytest.raises(BadInput, match="Candidate bindings"):
        lk.sql("SELECT lable FROM samples")
    with pytest.raises(BadInput, match="Conversion Error"):
        lk.sql("SELECT 'a'::INT AS n")


def test_parameters_are_not_part_of_the_text(lk: OpenLake) -> None:
    add(lk, [{"label": "it's"}, {"label": "b"}])
    assert lk.sql("SELECT label FROM predictions WHERE label = ?", ["it's"])["label"].to_pylist() == ["it's"]
    assert lk.sql("SELECT count(*) AS n FROM predictions WHERE label = $l", {"l": "b"})["n"].to_pylist() == [1]


def test_nested_columns_can_be_filtered(lk: OpenLake) -> None:
    """DuckDB pushes such filters down to Lance, which refuses them."""
    add(lk, [{"scores": [{"label": "cat", "score": 0.9}]}, {"boxes": [], "label": "b"}, {}])
    assert lk.sql("SELECT count(*) AS n FROM predictions WHERE scores[1].score > 0.5")["n"].to_pylist() == [1]
    assert lk.sql("SELECT label FROM predictions WHERE len(boxes) = 0")["label"].to_pylist() == ["b"]
    unnested = "SELECT s.label FROM (SELECT unnest(scores) AS s FROM predictions) WHERE s.score > 0.5"
    assert lk.sql(unnested)["label"].to_pylist() == ["cat"]


def test_a_long_filter_takes_no_longer_than_a_short_one(lk: OpenLake) -> None:
    """Pushed down to Lance, each OR doubled the time: fifty of them never ended."""
    add(lk, [{"confidence": i / 200, "latency_ms": i} for i in range(200)])
    text = " OR ".join(f"(label = 'x{i}' OR latency_ms = {i} AND image_id <> '{i}')" for i in range(60))
    assert lk.sql(f"SELECT count(*) AS n FROM predictions WHERE {text}")["n"].to_pylist() == [60]
    names = " OR ".join(f"image_id = '{image(i)}'" for i in range(60))
    assert lk.sql(f"SELECT count(*) AS n FROM predictions WHERE {names}")["n"].to_pylist() == [60]


def test_times_are_utc(lk: OpenLake) -> None:
    add(lk, [{"timestamp": moment(1)}, {"timestamp": moment(2)}])
    rows = lk.sql("SELECT timestamp FROM predictions WHERE timestamp >= '2024-05-02 00:00:00+00'")
    assert rows["timestamp"].to_pylist() == [moment(2)]
    assert lk.sql("SELECT timestamp::VARCHAR AS t FROM predictions ORDER BY 1 LIMIT 1")["t"].to_pylist() == [
        "2024-05-01 00:00:00+00"
    ]


def test_answers_leaves_out_images_without_a_prediction(lk: OpenLake) -> None:
    add(lk, [{"label": "a"}, {"model": None}])
    assert lk.sql("SELECT label FROM predictions")["label"].to_pylist() == ["a"]


def test_the_latest_label_is_current(lk: OpenLake) -> None:
    first, second = image("one"), image("two")
    label(
        lk, (first, "cat", moment(2)), (first, "dog", moment(3)), (first, "cow", moment(1)), (second, "cat", moment(1))
    )
    rows = lk.sql("SELECT image_id, label FROM labels_current ORDER BY label")
    assert list(zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True)) == [
        (second, "cat"),
        (first, "dog"),
    ]


def test_predictions_labelled_has_predictions_beside_labels(lk: OpenLake) -> None:
    add(lk, [{"image_id": image(n), "label": "cat"} for n in ("right", "wrong", "unknown")])
    label(lk, (image("right"), "cat", moment(1)), (image("wrong"), "dog", moment(1)))
    rows = lk.sql("SELECT image_id, true_label, correct FROM predictions_labelled")
    by_image = {row["image_id"]: (row["true_label"], row["correct"]) for row in rows.to_pylist()}
    assert by_image == {image("right"): ("cat", True), image("wrong"): ("dog", False), image("unknown"): (None, None)}


def test_a_query_leaves_no_file_behind(lk: OpenLake) -> None:
    before = sorted(Path(lk.uri).rglob("*"))
    lk.sql("SELECT * FROM range(100000) ORDER BY 1 DESC LIMIT 3")
    assert sorted(Path(lk.uri).rglob("*")) == before


def test_a_connection_is_kept_for_every_query_whose_tables_have_not_changed(lk: OpenLake) -> None:
    add(lk, [{"image_id": image(1), "label": "cat"}])
    lk.sql("SELECT count(*) FROM samples")
    lk.sql("SELECT count(*) FROM labels")
    for text in ("SELECT * FROM predictions", "SELECT * FROM labels", "SELECT * FROM predictions_labelled"):
        before = [connection for _, connection in idle(lk).connections]
        lk.sql(text)
        assert [connection for _, connection in idle(lk).connections if connection not in before] == []
    add(lk, [{"image_id": image(2), "label": "dog"}])
    assert lk.sql("SELECT count(*) AS n FROM predictions")["n"].to_pylist() == [2]


def test_the_connections_of_a_lake_end_with_it(make_lake: MakeLake) -> None:
    lk = make_lake()
    lk.sql("SELECT count(*) FROM samples")
    waiting, gone = weakref.ref(idle(lk)), weakref.ref(lk)
    assert waiting() is not None
    del lk
    gc.collect()
    assert gone() is None
    assert waiting() is None


def test_vectors_are_there_for_a_query_that_names_them_only(lk: OpenLake) -> None:
    lk.sql("SELECT count(*) AS emb_x FROM labels")
    assert "emb_x" not in lk.sql("SELECT * FROM samples").column_names
    with pytest.raises(BadInput, match="emb_x"):
        lk.sql("SELECT emb_x FROM samples")
