"""Scores, boxes and masks of a row or an event, in the forms that people write them, as the table samples has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lake.errors import BadInput
from lake.prediction_logs.numbers import Numbers
from lake.prediction_logs.texts import class_name, sendable, shown
from lake.regions import masks

MOST_SCORES = 100_000
MOST_COUNTS = 1 << 20  # characters of one mask's RLE: two seconds to read


def parsed(name: str, value: Any) -> Any:
    """JSON text parsed; other values unchanged (Parquet and JSONL have lists and objects)."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:  # also a number of more digits than Python reads
        raise BadInput(f"{name} is {shown(value)}, not JSON") from error


def read_scores(value: Any, numbers: Numbers) -> list[dict[str, Any]] | None:
    """{"cat": 0.9, ...}, [{"label": "cat", "score": 0.9}, ...], [["cat", 0.9], ...] or [0.9, ...] (numbered)."""
    if value is None:
        return None
    value = parsed("scores", value)
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
        pairs = [(_first(v, "label"), _first(v, "score", "confidence")) for v in value]
    elif isinstance(value, list) and all(isinstance(v, list | tuple) and len(v) == 2 for v in value):
        pairs = [(v[0], v[1]) for v in value]
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        raise BadInput(f"scores is {shown(value)}, not an object or a list")
    if len(pairs) > MOST_SCORES:
        raise BadInput(f"scores has {len(pairs):,} entries; the limit is {MOST_SCORES:,}")
    scores = []
    for label, score in pairs:
        name = class_name("scores: label", label)
        number = numbers.fraction(f"scores of {sendable(str(name))}", score)
        if name is None or number is None:
            raise BadInput("scores: an entry lacks its label or score")
        scores.append({"label": name, "score": number})
    if len({s["label"] for s in scores}) < len(scores):
        raise BadInput("scores: a class has two scores")
    return scores


def read_boxes(value: Any, numbers: Numbers | None = None) -> list[dict[str, Any]] | None:
    """[{"label", "score", "x", "y", "width", "height"}] or COCO's "bbox": [x, y, width, height]."""
    if value is None:
        return None
    numbers = numbers or Numbers()
    boxes = []
    for values in _instances("boxes", value):
        bbox = values.get("bbox") or [values.get(k) for k in ("x", "y", "width", "height")]
        if not isinstance(bbox, list | tuple) or len(bbox) != 4:
            raise BadInput(f"boxes: bbox is {shown(bbox)}, not [x, y, width, height]")
        x, y, width, height = (numbers.number("boxes: x, y, width, height", v) for v in bbox)
        if x is None or y is None or width is None or height is None or width < 0 or height < 0:
            raise BadInput("boxes: a box needs x, y and a width and height that are not negative")
        boxes.append(_named(values, "boxes", numbers) | {"x": x, "y": y, "width": width, "height": height})
    return boxes


def read_masks(
    value: Any, label: str | None, read_file: Callable[[str], bytes], numbers: Numbers | None = None
) -> list[dict[str, Any]] | None:
    """A list of COCO RLE objects, each with label and score; or the path of a PNG with one instance."""
    if value is None:
        return None
    numbers = numbers or Numbers()
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        counts, height, width, score = masks.from_png(read_file(value))
        return [{"label": label, "score": score, "height": height, "width": width, "counts": counts}]
    out = []
    for values in _instances("masks", value):
        instance = _named(values, "masks", numbers)
        if "png" in values:
            counts, height, width, score = masks.from_png(read_file(str(values["png"])))
            instance["score"] = score if instance["score"] is None else instance["score"]
        else:
            counts, height, width = _run_lengths(values)
        out.append(instance | {"height": height, "width": width, "counts": counts})
    return out


def check_sizes(masks: Iterable[tuple[int, int]], sizes: Sequence[tuple[int, int]]) -> None:
    """Raises BadInput if a mask has none of the sizes, (width, height), that the upright image may have."""
    for width, height in masks:
        if (width, height) not in sizes:
            image = " or ".join(f"{w} x {h}" for w, h in sizes)
            raise BadInput(f"masks: a mask is {width} x {height}, the image is {image} (width x height)")


def _run_lengths(values: Mapping[str, Any]) -> tuple[str, int, int]:
    rle = values.get("segmentation", values)
    if not isinstance(rle, Mapping):
        raise BadInput(f"masks: segmentation is {shown(rle)}, not COCO RLE (polygons are not supported)")
    size = rle.get("size") or [rle.get("height"), rle.get("width")]
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(_whole(s) and 0 < s <= 1 << 16 for s in size):
        raise BadInput(f"masks: size is {shown(size)}, not [height, width]")
    height, width = size
    stored = rle.get("counts")
    if isinstance(stored, str) and len(stored) > MOST_COUNTS:
        raise BadInput(f"masks: counts has {len(stored):,} characters; the limit is {MOST_COUNTS:,}")
    runs = masks.decompress(stored) if isinstance(stored, str) else stored
    if not isinstance(runs, list) or not all(_whole(r) for r in runs):
        raise BadInput(f"masks: counts is {shown(stored)}, not COCO RLE")
    masks.check(runs, height, width)
    return masks.compress(runs), height, width


def _instances(name: str, value: Any) -> list[Mapping[str, Any]]:
    value = parsed(name, value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise BadInput(f"{name} is {shown(value)}, not a list of objects")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _named(values: Mapping[str, Any], name: str, numbers: Numbers) -> dict[str, Any]:
    label = class_name(f"{name}: label", _first(values, "label", "category", "category_id"))
    return {"label": label, "score": numbers.fraction(f"{name}: score", _first(values, "score", "confidence"))}


def _first(values: Mapping[str, Any], *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)
