"""One row of a log, in all the forms people write, is read as meant or refused by name."""

import datetime as dt
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lake.errors import BadInput, UnreadableImage
from lake.prediction_logs import prediction_rows
from lake.storage import schema

PROMOTED = {"n": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "s": pa.string(), "t": schema.UTC}
UTC_NOON = dt.datetime(2024, 5, 6, 12, 0, tzinfo=dt.UTC)


def no_file(path: str) -> bytes:
    raise UnreadableImage(f"no file {path}")


def read(**given: Any) -> prediction_rows.PredictionRow:
    return prediction_rows.read_row({"image": "a.png", **given}, PROMOTED, no_file)


@pytest.mark.parametrize("name", prediction_rows.IMAGE_NAMES)
def test_the_image_has_many_names(name: str) -> None:
    assert prediction_rows.read_row({name: "a.png"}, {}, no_file).image == "a.png"


def test_a_row_without_image_is_refused() -> None:
    with pytest.raises(BadInput, match="the row needs one of image, image_path"):
        prediction_rows.read_row({"label": "cat"}, {}, no_file)


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_empty_nan_and_null_are_not_given(nothing: Any) -> None:
    row = read(label=nothing, confidence=nothing, scores=nothing, model=nothing, n=nothing, other=nothing)
    assert row == prediction_rows.PredictionRow(image="a.png", promoted=dict.fromkeys(PROMOTED))
    assert not prediction_rows.has_prediction(row)


def test_an_answer_without_a_model_is_unknowns_answer() -> None:
    assert read(label="cat").model == "unknown"
    assert read(label="cat", model="m").model == "m"


@pytest.mark.parametrize(
    "scores",
    [
        {"cat": 0.9, "dog": 0.1},
        [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}],
        [{"label": "cat", "confidence": 0.9}, {"label": "dog", "confidence": 0.1}],
        [["cat", 0.9], ["dog", 0.1]],
        '{"cat": 0.9, "dog": 0.1}',
        '[["cat", 0.9], ["dog", 0.1]]',
    ],
)
def test_scores_have_many_forms_and_imply_label_and_confidence(scores: Any) -> None:
    row = read(scores=scores)
    assert row.scores == [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}]
    assert (row.label, row.confidence, row.task) == ("cat", 0.9, "classification")


def test_scores_without_labels_are_numbered() -> None:
    assert read(scores=[0.2, 0.8]).label == "1"


def test_a_given_label_keeps_its_own_score() -> None:
    assert read(scores={"cat": 0.9, "dog": 0.1}, label="dog").confidence == 0.1


@pytest.mark.parametrize(
    "boxes",
    [
        [{"label": "scratch", "score": 0.7, "x": 1, "y": 2, "width": 3, "height": 4}],
        [{"category": "scratch", "confidence": 0.7, "bbox": [1, 2, 3, 4]}],
        '[{"label": "scratch", "score": 0.7, "bbox": [1, 2, 3, 4]}]',
        {"label": "scratch", "score": 0.7, "bbox": [1, 2, 3, 4]},
    ],
)
def test_boxes_have_many_forms(boxes: Any) -> None:
    row = read(boxes=boxes)
    assert row.boxes == [{"label": "scratch", "score": 0.7, "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}]
    assert (row.label, row.confidence, row.task) == ("scratch", 0.7, "detection")


def test_no_box_found_is_an_answer_too() -> None:
    row = read(boxes=[], model="m")
    assert (row.boxes, row.task) == ([], "detection")


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [2, 3], "counts": [1, 3, 2]},
        {"size": [2, 3], "counts": "132"},
        {"segmentation": {"size": [2, 3], "counts": "132"}},
        {"height": 2, "width": 3, "counts": "132"},
    ],
)
def test_masks_have_many_forms(mask: dict[str, Any]) -> None:
    row = read(masks=[mask | {"label": "crack", "score": 0.5}])
    assert row.masks == [{"label": "crack", "score": 0.5, "height": 2, "width": 3, "counts": "132"}]
    assert row.task == "segmentation"


@pytest.mark.parametrize(
    "text",
    ["2024-05-06T12:00:00Z", "2024-05-06T12:00", "2024-05-06 14:00:00+02:00", "1714996800", 1714996800, 1714996800.0,
     1714996800000, dt.datetime(2024, 5, 6, 12),
     dt.datetime(2024, 5, 6, 14, tzinfo=dt.timezone(dt.timedelta(hours=2)))],
)  # fmt: skip
def test_a_moment_has_many_forms(text: Any) -> None:
    """ISO 8601 with a zone or in UTC, seconds or milliseconds since 1970."""
    assert read(timestamp=text).timestamp == UTC_NOON


def test_other_columns_are_metadata_beside_the_metadata_column() -> None:
    row = read(metadata='{"camera": "left", "run": 1}', run=2, moment=dt.date(2024, 5, 6), bad=[math.inf])
    assert row.metadata == {"camera": "left", "run": 2, "moment": "2024-05-06", "bad": [None]}


def test_promoted_columns_are_typed_not_metadata() -> None:
    row = read(n="9007199254740993", f="0.5", b="yes", s=7, t="2024-05-06T12:00:00Z", other=1)
    assert row.promoted == {"n": 9007199254740993, "f": 0.5, "b": True, "s": "7", "t": UTC_NOON}
    assert row.metadata == {"other": 1}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("confidence", 1.2, "confidence is 1.2, not between 0 and 1"),
        ("confidence", "high", "confidence is 'high', not a number"),
        ("confidence", "inf", "not a finite number"),
        ("confidence", 10**400, "not a number"),
        ("confidence", True, "confidence is True, not a number"),
        ("timestamp", "yesterday", "timestamp is 'yesterday', not an ISO 8601 time"),
        ("timestamp", "1e300", "not an ISO 8601 time"),
        ("label", ["cat"], r"label is \['cat'\], not text"),
        ("scores", "cat=0.9", "scores is 'cat=0.9', not JSON"),
        ("scores", {"cat": 2}, "scores of cat is 2, not between 0 and 1"),
        ("scores", [["cat", None]], "lacks its label or score"),
        ("scores", 5, "not an object or a list"),
        ("boxes", [{"bbox": [1, 2, 3]}], r"bbox is \[1, 2, 3\]"),
        ("boxes", [{"bbox": 5}], "bbox is 5"),
        ("boxes", [{"x": 1, "y": 2, "width": -3, "height": 4}], "not negative"),
        ("boxes", [1], "not a list of objects"),
        ("masks", [{"size": [2, 3], "counts": [1, 3]}], "do not add up to 2 x 3"),
        ("masks", [{"size": [0, 3], "counts": []}], "size is"),
        ("masks", [{"size": 5, "counts": []}], "size is 5"),
        ("masks", [{"size": [2, 3], "counts": None}], "not COCO RLE"),
        ("masks", [{"segmentation": [[0, 0, 1, 1]]}], "polygons are not supported"),
        ("masks", "gone.png", "no file gone.png"),
        ("metadata", "[1]", "metadata is not a JSON object"),
        ("n", "1.5", "n is '1.5', not a whole number"),
        ("n", 2**63, "beyond 64 bits"),
        ("n", "1e300", "beyond 64 bits"),
        ("b", "maybe", "b is 'maybe', not true or false"),
        ("t", "noon", "t is 'noon'"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_column_and_value(column: str, value: Any, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        read(**{column: value})


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("column", ["other", "label", "metadata", "scores"])
def test_a_row_nested_too_deeply_is_refused(column: str) -> None:
    with pytest.raises(BadInput):
        read(**{column: nested(950)})


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("\ud800"), st.binary(max_size=3),
    st.datetimes(), st.sampled_from(["0.5", "[1]", '{"a":1}', "1e999", "nan", "\0"]),
)  # fmt: skip
KEYS = st.sampled_from(
    ["label", "score", "bbox", "size", "counts", "segmentation", "height", "width", "x", "y", "\ud800"]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
COLUMNS = st.sampled_from(
    ["image_id", "id", "timestamp", "model", "model_version", "task", "label", "confidence", "scores", "boxes", "masks",
     "source", "latency_ms", "metadata", "other", "\ud800", *PROMOTED]
)  # fmt: skip


@given(st.dictionaries(COLUMNS, VALUES, max_size=5))
@example({"confidence": -0.0})
def test_any_row_is_storable_or_refused(given_row: dict[str, Any]) -> None:
    """Whatever a log says: a row that Arrow takes, or BadInput. Nothing else may stop an ingest."""
    try:
        row = prediction_rows.read_row({"image": "a.png", **given_row}, PROMOTED, no_file)
    except BadInput:
        return
    core = {name: getattr(row, name) for name in schema.SAMPLES.arrow().names if hasattr(row, name)}
    fields = {f.name: f for f in schema.SAMPLES.arrow()} | {k: pa.field(k, v) for k, v in PROMOTED.items()}
    for name, value in {**core, "metadata": None, **row.promoted}.items():
        pa.array([value], fields[name].type)
    pa.array([*map(str, row.metadata)], pa.string())
    if row.confidence is not None:
        assert math.copysign(1.0, row.confidence) == 1.0
