"""The tables say what they hold."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import open_lake
from lake.errors import BadInput
from lake.storage import schema
from tests.conftest import MakeLake


@pytest.mark.parametrize("table", schema.TABLES.values(), ids=list(schema.TABLES))
def test_every_table_and_column_is_documented(table: schema.Table) -> None:
    assert table.doc
    assert all(column.doc for column in table.columns)
    names = [column.name for column in table.columns]
    assert len(set(names)) == len(names)
    assert set(table.indexed) | ({table.key} - {""}) <= set(names)


@pytest.mark.parametrize("table", schema.TABLES.values(), ids=list(schema.TABLES))
def test_the_key_is_marked_and_never_null(table: schema.Table) -> None:
    """Lance refuses two writers of one key only for a field with this mark."""
    marked = [f.name for f in table.arrow() if b"lance-schema:unenforced-primary-key" in (f.metadata or {})]
    assert marked == ([table.key] if table.key else [])
    assert all(not table.arrow().field(name).nullable for name in marked)


@pytest.mark.parametrize(
    ("embedder", "column"),
    [
        ("efficientnet-lite0", "emb_efficientnet_lite0"),
        ("open_clip:ViT-B-16/laion2b", "emb_open_clip_ViT_B_16_laion2b"),
        ("resnet18@mine", "emb_resnet18_mine"),
        ("größe", "emb_gr__e"),
    ],
)
def test_a_vector_column_is_named_after_its_embedder(embedder: str, column: str) -> None:
    assert schema.vector_column(embedder) == column


@given(st.text(max_size=30))
def test_a_vector_columns_name_needs_no_quotes_in_sql(embedder: str) -> None:
    name = schema.vector_column(embedder)
    assert name.isascii()
    assert name.isidentifier()


def test_promoted_columns_are_typed_columns_of_predictions(make_lake: MakeLake) -> None:
    lk = make_lake(columns={"line": "string", "shift": "int", "heat": "float", "night": "bool", "shot_at": "timestamp"})
    utc = pa.timestamp("us", tz="UTC")
    expected = {"line": pa.string(), "shift": pa.int64(), "heat": pa.float64(), "night": pa.bool_(), "shot_at": utc}
    assert lk.promoted() == expected
    assert lk.sql("SELECT line, shift, heat, night, shot_at FROM samples").num_rows == 0


@pytest.mark.parametrize("name", ["", "two words", "a-b", "1st", "naïve", "x;y", "label", "prediction_id", "emb_mine"])
def test_a_promoted_column_needs_a_new_plain_name(tmp_path, name: str) -> None:
    with pytest.raises(BadInput, match="column name"):
        open_lake.create(str(tmp_path / "lake"), columns={name: "int"})
    assert not (tmp_path / "lake").exists()


def test_a_promoted_columns_type_is_one_of_five(tmp_path) -> None:
    with pytest.raises(BadInput, match="type 'json' is not one of string, int, float, bool, timestamp"):
        open_lake.create(str(tmp_path / "lake"), columns={"x": "json"})
