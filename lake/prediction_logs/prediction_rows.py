"""Checks one row of a prediction log and converts it to the form of the table samples.

File formats and the HTTP API pass a plain mapping to `read_row`. This module knows the accepted column names and value
forms; it does not know files, images' bytes or storage.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.regions import masks

if TYPE_CHECKING:
    import pyarrow as pa

# json.dumps would create an encoder on every call with these options.
_as_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
# The fields of one prediction, in the order of their columns: those that a model returns, and all of them.
OUTPUT = ("label", "confidence", "scores", "boxes", "masks")
FIELDS = ("timestamp", "model", "model_version", "task", *OUTPUT, "latency_ms", "source")
# A prediction has at least one of these.
CONTENT = ("label", "scores", "boxes", "masks")
# Accepted names of the columns; the first of an alias list is the stored name.
IMAGE_NAMES = ("image", "image_path", "path", "file_name", "filename", "file")
_ALIASES = {
    "label": ("label", "prediction", "predicted_label"),
    "confidence": ("confidence", "score", "probability"),
    "timestamp": ("timestamp", "time", "ts"),
    "row_id": ("prediction_id", "id", "row_id"),
}
# JSON writers fail on nesting of a few hundred levels, and metadata is written as JSON again.
METADATA_DEPTH = 64
MOST_SCORES = 100_000
MOST_COUNTS = 1 << 20  # characters of one mask's RLE: two seconds to read


@dataclass
class PredictionRow:
    """One prediction. `image` is a path as written in the row; `image_id` takes precedence if both are there."""

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


def read_row(
    values: Mapping[str, Any], promoted: Mapping[str, pa.DataType], read_file: Callable[[str], bytes]
) -> PredictionRow:
    """The checked row. Raises BadInput with the column, its value and what is expected.

    `promoted`: the lake's typed metadata columns. `read_file`: reads a mask's PNG by the path in the row. Empty text,
    NaN and null mean that the column has no value.
    """
    try:
        return _read(values, promoted, read_file)
    except RecursionError as error:
        raise BadInput("the row is nested too deeply") from error


def _read(
    values: Mapping[str, Any], promoted: Mapping[str, pa.DataType], read_file: Callable[[str], bytes]
) -> PredictionRow:
    rest = {k: v for k, v in values.items() if k is not None and not _missing(v)}
    if None in values:
        raise BadInput("more values than columns")

    def take(*names: str) -> Any:
        for name in names:
            if name in rest:
                return rest.pop(name)
        return None

    row = PredictionRow(
        image=_text("image", take(*IMAGE_NAMES)),
        image_id=_text("image_id", take("image_id")),
        row_id=_text("id", take(*_ALIASES["row_id"])),
        timestamp=parse_time("timestamp", take(*_ALIASES["timestamp"])),
        model=_text("model", take("model")),
        model_version=_text("model_version", take("model_version")),
        task=_text("task", take("task")),
        label=_text("label", take(*_ALIASES["label"])),
        confidence=_fraction("confidence", take(*_ALIASES["confidence"])),
        scores=_scores(take("scores")),
        boxes=read_boxes(take("boxes")),
        source=_text("source", take("source")),
        latency_ms=_number("latency_ms", take("latency_ms")),
    )
    row.masks = read_masks(take("masks", "mask"), row.label, read_file)
    if row.image is None and row.image_id is None:
        raise BadInput(f"no image: the row needs one of {', '.join(IMAGE_NAMES)} or image_id")
    _complete(row)
    extra = rest.pop("metadata", None)
    if extra is not None:
        extra = _parsed("metadata", extra)
        if not isinstance(extra, dict):
            raise BadInput("metadata is not a JSON object")
        rest = extra | rest
    row.promoted = {name: _promoted(name, rest.pop(name, None), kind) for name, kind in promoted.items()}
    row.metadata = {valid_text(str(k)): _plain(v, METADATA_DEPTH) for k, v in rest.items()}
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
    return any(v is not None for v in (row.model, row.label, row.confidence, row.scores, row.boxes, row.masks))


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


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"{name} is {_shown(value)}, not text")
    return valid_text(str(value))


def valid_text(text: str) -> str:
    """The text as valid UTF-8: half a surrogate pair, which JSON may contain, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"{name} is {_shown(value)}, not a number") from error
    if not math.isfinite(number):
        raise BadInput(f"{name} is {_shown(value)}, not a finite number")
    return number + 0.0  # Lance's filters tell -0.0 from 0.0, DuckDB's do not


def _fraction(name: str, value: Any) -> float | None:
    number = _number(name, value)
    if number is not None and not 0.0 <= number <= 1.0:
        raise BadInput(f"{name} is {number:g}, not between 0 and 1")
    return number


def parse_time(name: str, value: Any) -> dt.datetime | None:
    """A time in UTC from ISO 8601 (without a zone: UTC), or seconds or milliseconds since 1970."""
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, dt.datetime):
            parse_time = value
        else:
            try:
                number = float(value)
            except ValueError:
                parse_time = dt.datetime.fromisoformat(str(value).strip())
            else:
                # 1e11 seconds is the year 5138, 1e11 milliseconds is 1973.
                parse_time = dt.datetime.fromtimestamp(number / 1000 if abs(number) >= 1e11 else number, dt.UTC)
        if parse_time.tzinfo is None:
            parse_time = parse_time.replace(tzinfo=dt.UTC)
        return parse_time.astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise BadInput(f"{name} is {_shown(value)}, not an ISO 8601 time or seconds since 1970") from error


def _parsed(name: str, value: Any) -> Any:
    """JSON text parsed; other values unchanged (Parquet and JSONL have lists and objects)."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:  # also a number of more digits than Python reads
        raise BadInput(f"{name} is {_shown(value)}, not JSON") from error


def _scores(value: Any) -> list[dict[str, Any]] | None:
    """{"cat": 0.9, ...}, [{"label": "cat", "score": 0.9}, ...], [["cat", 0.9], ...] or [0.9, ...] (numbered)."""
    if value is None:
        return None
    value = _parsed("scores", value)
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
        pairs = [(v.get("label"), v.get("score", v.get("confidence"))) for v in value]
    elif isinstance(value, list) and all(isinstance(v, list | tuple) and len(v) == 2 for v in value):
        pairs = [(v[0], v[1]) for v in value]
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        raise BadInput(f"scores is {_shown(value)}, not an object or a list")
    if len(pairs) > MOST_SCORES:
        raise BadInput(f"scores has {len(pairs):,} entries; the limit is {MOST_SCORES:,}")
    scores = []
    for label, score in pairs:
        number = _fraction(f"scores of {label}", score)
        if label is None or number is None:
            raise BadInput("scores: an entry lacks its label or score")
        scores.append({"label": valid_text(str(label)), "score": number})
    return scores


def _instances(name: str, value: Any) -> list[Mapping[str, Any]]:
    value = _parsed(name, value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise BadInput(f"{name} is {_shown(value)}, not a list of objects")
    return value


def read_boxes(value: Any) -> list[dict[str, Any]] | None:
    """[{"label", "score", "x", "y", "width", "height"}] or COCO's "bbox": [x, y, width, height]."""
    if value is None:
        return None
    boxes = []
    for values in _instances("boxes", value):
        bbox = values.get("bbox") or [values.get(k) for k in ("x", "y", "width", "height")]
        if not isinstance(bbox, list | tuple) or len(bbox) != 4:
            raise BadInput(f"boxes: bbox is {_shown(bbox)}, not [x, y, width, height]")
        x, y, width, height = (_number("boxes: x, y, width, height", v) for v in bbox)
        if x is None or y is None or width is None or height is None or width < 0 or height < 0:
            raise BadInput("boxes: a box needs x, y and a width and height that are not negative")
        boxes.append(_named(values, "boxes") | {"x": x, "y": y, "width": width, "height": height})
    return boxes


def read_masks(value: Any, label: str | None, read_file: Callable[[str], bytes]) -> list[dict[str, Any]] | None:
    """A list of COCO RLE objects, each with label and score; or the path of a PNG with one instance."""
    if value is None:
        return None
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        counts, height, width, score = masks.from_png(read_file(value))
        return [{"label": label, "score": score, "height": height, "width": width, "counts": counts}]
    out = []
    for values in _instances("masks", value):
        instance = _named(values, "masks")
        if "png" in values:
            counts, height, width, score = masks.from_png(read_file(str(values["png"])))
            instance["score"] = score if instance["score"] is None else instance["score"]
        else:
            rle = values.get("segmentation", values)
            if not isinstance(rle, Mapping):
                raise BadInput(f"masks: segmentation is {_shown(rle)}, not COCO RLE (polygons are not supported)")
            size = rle.get("size") or [rle.get("height"), rle.get("width")]
            if (
                not isinstance(size, list | tuple)
                or len(size) != 2
                or not all(_whole(s) and 0 < s <= 1 << 16 for s in size)
            ):
                raise BadInput(f"masks: size is {_shown(size)}, not [height, width]")
            height, width = size
            stored = rle.get("counts")
            if isinstance(stored, str) and len(stored) > MOST_COUNTS:
                raise BadInput(f"masks: counts has {len(stored):,} characters; the limit is {MOST_COUNTS:,}")
            runs = masks.decompress(stored) if isinstance(stored, str) else stored
            if not isinstance(runs, list) or not all(_whole(r) for r in runs):
                raise BadInput(f"masks: counts is {_shown(stored)}, not COCO RLE")
            masks.check(runs, height, width)
            counts = masks.compress(runs)
        out.append(instance | {"height": height, "width": width, "counts": counts})
    return out


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _named(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    label = values.get("label", values.get("category", values.get("category_id")))
    score = values.get("score", values.get("confidence"))
    return {"label": _text(f"{name}: label", label), "score": _fraction(f"{name}: score", score)}


def _promoted(name: str, value: Any, kind: pa.DataType) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_timestamp(kind):
        return parse_time(name, value)
    if pa.types.is_string(kind):
        return valid_text(str(value))
    if pa.types.is_boolean(kind):
        text = str(value).strip().lower()
        if text not in ("true", "false", "1", "0", "yes", "no"):
            raise BadInput(f"{name} is {_shown(value)}, not true or false")
        return text in ("true", "1", "yes")
    number = _number(name, value)
    if pa.types.is_integer(kind):
        if number is None or number != int(number):
            raise BadInput(f"{name} is {_shown(value)}, not a whole number")
        if not -(2**63) <= number <= 2**63:
            raise BadInput(f"{name} is {_shown(value)}, beyond 64 bits")
        whole = int(number)
        # Beyond 2**53 a float lacks the last digits; they are read from the original value.
        digits = value.strip().lstrip("+-").lstrip("0") if isinstance(value, str) else ""
        if isinstance(value, int):
            whole = value
        elif digits.isdigit():
            whole = int(digits) if number > 0 else -int(digits)
        if not -(2**63) <= whole < 2**63:
            raise BadInput(f"{name} is {_shown(value)}, beyond 64 bits")
        return whole
    return number


def _plain(value: Any, depth: int) -> Any:
    """The value as JSON types. Raises BadInput if it is nested deeper than `depth`."""
    if isinstance(value, Mapping | list | tuple):
        if not depth:
            raise BadInput(f"metadata is nested too deeply; the limit is {METADATA_DEPTH} levels")
        if isinstance(value, Mapping):
            return {valid_text(str(k)): _plain(v, depth - 1) for k, v in value.items()}
        return [_plain(v, depth - 1) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, int | float) or value is None:
        return value
    return valid_text(str(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
