"""Checks one row of a prediction log and converts it to the form of the table samples.

File formats and the HTTP API pass a plain mapping to `read_row`. What a column's name means is in `columns.py`, the
forms of values in `texts.py`, `numbers.py`, `times.py` and `instances.py`; no module of this room knows images or
storage.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.prediction_logs import columns as names
from lake.prediction_logs.instances import parsed, read_boxes, read_masks, read_scores
from lake.prediction_logs.numbers import Numbers, whole
from lake.prediction_logs.texts import class_name, shown, sound, text
from lake.prediction_logs.times import parse_time

if TYPE_CHECKING:
    import pyarrow as pa

# json.dumps would create an encoder on every call with these options.
_as_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
# The fields of one prediction, in the order of their columns: those that a model returns, and all of them.
OUTPUT = ("label", "confidence", "scores", "boxes", "masks")
FIELDS = ("timestamp", "model", "model_version", "task", *OUTPUT, "latency_ms", "source")
# A prediction has at least one of these.
CONTENT = ("label", "scores", "boxes", "masks")
TASKS = ("classification", "detection", "segmentation")
IMAGE_NAMES = ("image", *names.NAMES["image"])
# JSON writers fail on nesting of a few hundred levels, and metadata is written as JSON again.
METADATA_DEPTH = 64


@dataclass
class PredictionRow:
    """One prediction. `image` is a path as written in the row; `image_id` takes precedence if both are there.

    `truth`: the true class that a log has beside the prediction. `converted`: what was read in another form than it
    was written, each as one fixed sentence, which reports count.
    """

    image: str | None = None
    image_id: str | None = None
    row_id: str | None = None
    timestamp: dt.datetime | None = None
    model: str | None = None
    model_version: str | None = None
    task: str | None = None
    label: str | None = None
    confidence: float | None = None
    scores: list[dict[str, Any]] | None = None
    boxes: list[dict[str, Any]] | None = None
    masks: list[dict[str, Any]] | None = None
    source: str | None = None
    latency_ms: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    promoted: dict[str, Any] = field(default_factory=dict)
    truth: str | None = None
    converted: list[str] = field(default_factory=list)


def read_row(
    values: Mapping[str, Any],
    promoted: Mapping[str, pa.DataType],
    read_file: Callable[[str], bytes],
    fields: Mapping[str, str | None] | None = None,
    numbers: Numbers | None = None,
) -> PredictionRow:
    """The checked row. Raises BadInput with the column, its value and what is expected.

    `promoted`: the lake's typed metadata columns. `read_file`: reads a mask's PNG by the path in the row. `fields`: the
    field of each column, as `columns.fields` gives it; by default that of an event. `numbers`: how they are written.
    Empty text, NaN and null mean that the column has no value.
    """
    try:
        return _read(values, promoted, read_file, fields, numbers or Numbers())
    except RecursionError as error:
        raise BadInput("the row is nested too deeply") from error


def _read(
    values: Mapping[str, Any],
    promoted: Mapping[str, pa.DataType],
    read_file: Callable[[str], bytes],
    fields: Mapping[str, str | None] | None,
    numbers: Numbers,
) -> PredictionRow:
    if fields is None:
        fields = names.fields(values, promoted)
    given: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == "" or value != value:  # NaN
            continue
        field_ = fields.get(name)
        if field_ is None:
            rest[name] = value
        else:
            given[field_] = value
    take = given.pop
    row = PredictionRow(
        image=text("image", take("image", None)),
        image_id=text("image_id", take("image_id", None)),
        row_id=text("prediction_id", take("prediction_id", None)),
        timestamp=parse_time("timestamp", take("timestamp", None)),
        model=text("model", take("model", None)),
        model_version=text("model_version", take("model_version", None)),
        task=_task(take("task", None)),
        label=class_name("label", take("label", None)),
        truth=class_name("truth", take("truth", None)),
        confidence=numbers.fraction("confidence", take("confidence", None)),
        scores=read_scores(take("scores", None), numbers),
        boxes=read_boxes(take("boxes", None), numbers),
        source=text("source", take("source", None)),
        latency_ms=_duration(take("latency_ms", None), numbers),
    )
    masks = [value for value in (take("masks", None), take("mask", None)) if value is not None]
    if len(masks) > 1:
        raise BadInput("the row has both masks and mask; give one of them")
    row.masks = read_masks(masks[0] if masks else None, row.label, read_file, numbers)
    if row.image is None and row.image_id is None:
        raise BadInput(f"no image: the row needs one of {', '.join(IMAGE_NAMES)} or image_id")
    _complete(row)
    extra = take("metadata", None)
    if extra is not None:
        extra = parsed("metadata", extra)
        if not isinstance(extra, dict):
            raise BadInput("metadata is not a JSON object")
        rest = extra | rest
    for name, kind in promoted.items():
        value = given[name] if name in given else rest.pop(name, None)
        row.promoted[name] = _promoted(name, value, kind, numbers)
    for name, value in rest.items():
        simple = type(value) is str and value.isascii()
        row.metadata[sound("the name of metadata", str(name))] = (
            value if simple else _plain(name, value, METADATA_DEPTH)
        )
    row.converted = numbers.converted
    return row


def columns(row: PredictionRow) -> dict[str, Any]:
    """The row as columns of the table samples, without ids and `ingested_at`."""
    return {
        **{name: getattr(row, name) for name in FIELDS},
        "source": row.source or row.image,
        "metadata": _as_json(row.metadata) if row.metadata else None,
        **row.promoted,
    }


def has_prediction(row: PredictionRow) -> bool:
    """Whether the row has a model's prediction, not only an image and metadata."""
    return row.model is not None or row.confidence is not None or has_content(row)


def has_content(row: PredictionRow) -> bool:
    """Whether the row says what was predicted: a label, scores, boxes or masks."""
    return not (row.label is None and row.scores is None and row.boxes is None and row.masks is None)


def _complete(row: PredictionRow) -> None:
    """Fills columns that others imply: the label and confidence of the highest score, the task, the model."""
    if row.scores:
        best = max(row.scores, key=lambda s: s["score"])
        if row.label is None:
            row.label = best["label"]
        if row.confidence is None:
            row.confidence = next((s["score"] for s in row.scores if s["label"] == row.label), None)
    instances = row.masks or row.boxes
    if instances and row.label is None and row.confidence is None:
        scored = [i for i in instances if i["score"] is not None]
        if scored:
            best = max(scored, key=lambda i: i["score"])
            row.label, row.confidence = best["label"], best["score"]
    if row.task is None and has_prediction(row):
        row.task = "segmentation" if row.masks else "detection" if row.boxes is not None else "classification"
    if row.model is None and has_prediction(row):
        row.model = "unknown"  # a null model means that there is no prediction


def _task(value: Any) -> str | None:
    task = text("task", value)
    if task is None or task in TASKS:
        return task
    if task.strip().lower() in TASKS:
        return task.strip().lower()
    raise BadInput(f"task is {shown(value)}; it must be one of {', '.join(TASKS)}")


def _duration(value: Any, numbers: Numbers) -> float | None:
    number = numbers.number("latency_ms", value)
    if number is not None and number < 0:
        raise BadInput(f"latency_ms is {shown(value)}; it must not be negative")
    return number


def _promoted(name: str, value: Any, kind: pa.DataType, numbers: Numbers) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_timestamp(kind):
        return parse_time(name, value)
    if pa.types.is_string(kind):
        return sound(name, str(value))
    if pa.types.is_boolean(kind):
        written = str(value).strip().lower()
        if written not in ("true", "false", "1", "0", "yes", "no"):
            raise BadInput(f"{name} is {shown(value)}, not true or false")
        return written in ("true", "1", "yes")
    return whole(name, value) if pa.types.is_integer(kind) else numbers.number(name, value)


def _plain(name: Any, value: Any, depth: int) -> Any:
    """The value as JSON types. Raises BadInput if it is nested deeper than `depth`."""
    if isinstance(value, Mapping | list | tuple):
        if not depth:
            raise BadInput(f"metadata is nested too deeply; the limit is {METADATA_DEPTH} levels")
        if isinstance(value, Mapping):
            return {sound("the name of metadata", str(k)): _plain(k, v, depth - 1) for k, v in value.items()}
        return [_plain(name, v, depth - 1) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, int | float) or value is None:
        return value
    return sound(f"metadata {name}", str(value))
