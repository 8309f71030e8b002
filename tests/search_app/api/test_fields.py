"""The fields of a prediction and of feedback have one declaration; the copies that cannot import it are equal to it."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from lake.client import Client, Predicted
from lake.client import events as client_events
from lake.client import predictions as client_predictions
from lake.prediction_logs import columns, prediction_rows
from lake.spool import events
from lake.storage import schema
from search_app.api import schemas
from search_app.api.routes.models import PredictionResponse

FIELDS = {*prediction_rows.FIELDS}


def parameters(method: object) -> set[str]:
    assert callable(method)
    return {*inspect.signature(method).parameters} - {"self"}


def test_the_fields_of_a_prediction_are_columns_of_the_table() -> None:
    assert {column.name for column in schema.SAMPLES.columns} >= FIELDS
    row = {field.name for field in dataclasses.fields(prediction_rows.PredictionRow)}
    assert row == FIELDS | {"row_id", "image", "image_id", "metadata", "promoted", "truth", "converted"}


def test_the_openapi_document_names_the_fields_of_a_prediction() -> None:
    assert {*schemas.EVENT["properties"]} == FIELDS | {"prediction_id", "image_id", "metadata"}


def test_the_client_logs_the_fields_of_a_prediction() -> None:
    assert parameters(Client.log) == FIELDS | {"prediction_id", "image", "metadata"}
    assert client_events.CONTENT == prediction_rows.CONTENT
    other_names = {field: columns.NAMES[field] for field in client_predictions.OTHER_NAMES}
    assert other_names == client_predictions.OTHER_NAMES
    returned = {*client_predictions.FIELDS}
    assert returned == FIELDS - {"model", "model_version", "latency_ms"} | {"prediction_id", "metadata"}


def test_the_server_responds_with_the_output_that_the_client_reads() -> None:
    assert {*PredictionResponse.model_fields} == {field.name for field in dataclasses.fields(Predicted)}
    assert {*PredictionResponse.model_fields} >= {*prediction_rows.OUTPUT}


def test_feedback_has_the_same_fields_at_the_server_and_at_the_client() -> None:
    properties: Any = schemas.FEEDBACK["properties"]
    assert {*properties} == events.FEEDBACK_FIELDS == parameters(Client.feedback)
