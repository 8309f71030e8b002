"""Events: what a live system may say, and what makes two of them the same."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from lake.errors import BadInput
from lake.spool import events
from lake.storage import schema

IMAGE = "a" * 64
ID = "5e1ab3c8-6f0e-5b7e-9c39-1a9c1f4f7a10"
KINDS = {f.name: f.type for f in schema.SAMPLES.arrow()}


def prediction(**fields: Any) -> events.Event:
    return events.prediction({"prediction_id": ID, "model": "m", "label": "cat", **fields}, {}, IMAGE, None, None)


def test_a_prediction_becomes_a_row_of_predictions() -> None:
    event = prediction(confidence=0.5, timestamp="2026-11-22T10:00:00+01:00", camera=7)
    row = events.as_row(event.row, KINDS)
    assert (event.kind, event.event_id, event.image_id) == ("prediction", ID, IMAGE)
    assert (row["label"], row["confidence"], row["metadata"]) == ("cat", 0.5, '{"camera": 7}')
    assert row["timestamp"] == dt.datetime(2026, 11, 22, 9, tzinfo=dt.UTC)


def test_promoted_columns_keep_their_types() -> None:
    kinds = {"shift": pa.timestamp("us", tz="UTC"), "camera": pa.int64()}
    fields = {"model": "m", "label": "cat", "shift": "2026-11-22", "camera": "9007199254740993"}
    event = events.prediction(fields, kinds, IMAGE, None, None)
    row = events.as_row(event.row, kinds)
    assert row["shift"] == dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
    assert row["camera"] == 9007199254740993


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"model": None}, "model is missing"),
        ({"model": ""}, "model is missing"),
        ({"label": None}, "the prediction is empty"),
        ({"prediction_id": "7"}, "prediction_id is '7', not a UUID"),
        ({"confidence": 1.5}, "confidence is 1.5"),
        ({"timestamp": "yesterday"}, "timestamp is 'yesterday'"),
        ({"masks": "mask.png"}, "the server does not read files"),
        ({"masks": [{"png": "/etc/passwd", "label": "x"}]}, "the server does not read files"),
    ],
)
def test_a_wrong_field_is_named_in_the_error(change: dict[str, Any], names: str) -> None:
    with pytest.raises(BadInput, match=names):
        prediction(**change)


@pytest.mark.parametrize(
    "answer", [{"label": "cat"}, {"scores": {"cat": 1}}, {"boxes": []}, {"masks": []}], ids=lambda a: next(iter(a))
)
def test_a_prediction_is_a_label_or_scores_or_boxes_or_masks(answer: dict[str, Any]) -> None:
    assert events.prediction({"model": "m", **answer}, {}, IMAGE, None, None).kind == "prediction"


def test_the_order_of_fields_makes_no_other_event() -> None:
    first = prediction(confidence=0.5, camera=7, site="a")
    other = events.prediction(
        {"site": "a", "camera": 7, "confidence": 0.5, "label": "cat", "model": "m", "prediction_id": ID.upper()},
        {}, IMAGE, None, None,
    )  # fmt: skip
    assert first.digest == other.digest


@pytest.mark.parametrize("change", [{"label": "dog"}, {"confidence": 0.25}, {"camera": 8}, {"timestamp": 0}])
def test_another_body_is_another_event(change: dict[str, Any]) -> None:
    assert prediction(camera=7).digest != prediction(**{"camera": 7, **change}).digest


def test_without_an_id_every_prediction_is_new() -> None:
    first, second = (events.prediction({"model": "m", "label": "c"}, {}, IMAGE, None, None) for _ in range(2))
    assert first.event_id != second.event_id


def test_the_same_image_is_the_same_event_wherever_it_came_from() -> None:
    assert events.image(IMAGE, b"x", "here", "k").digest == events.image(IMAGE, b"x", "there", None).digest


def feedback(**fields: Any) -> events.Event:
    return events.feedback({"prediction_id": ID, "verdict": "incorrect", **fields}, {ID: IMAGE}, "key")


def test_the_same_verdict_twice_is_one_event() -> None:
    assert feedback(comment="a bird").event_id == feedback(comment="a bird").event_id
    assert feedback(comment="a bird").event_id != feedback(comment="a plane").event_id


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"verdict": "wrong"}, "verdict is 'wrong'; it must be one of correct, incorrect, unsure"),
        ({"verdict": ["correct"]}, "verdict is"),
        ({"prediction_id": 7}, "prediction_id is 7, not a UUID"),
        ({"comment": "x" * 10_001}, "comment has 10,001 characters"),
        ({"ticket": {"a": 1}}, "ticket is"),
        ({"event_id": "x"}, "event_id is 'x'"),
        ({"label": "bird"}, "no field 'label'"),
    ],
)
def test_wrong_feedback_is_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises(BadInput, match=names):
        feedback(**change)
