"""Writes labels that a program or a labelling tool of your own sends: checked as a whole, then written as a whole.

Boxes and masks have the forms of a prediction log (`lake/prediction_logs/prediction_rows.py`). A label of the same
image and task replaces an older one in `labels_current`; the older event stays.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import ids
from lake.errors import BadInput
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, TASKS
from lake.prediction_logs import texts
from lake.prediction_logs.instances import read_boxes, read_masks
from lake.prediction_logs.numbers import Numbers
from lake.prediction_logs.times import parse_time
from lake.storage import schema, store

if TYPE_CHECKING:
    from lake.storage.store import Lake

FIELDS = (
    *("image_id", "task", "label", "boxes", "masks", "incomplete", "origin", "annotator", "model_version", "timestamp"),
    "event_id",
)
ORIGINS = ("human", "import", "pseudo")


@dataclass(frozen=True)
class WrittenLabels:
    """`event_ids`: of all labels, in their order; `new`: how many of them the lake did not have.

    `clamped`: scores less than 0.0001 outside of 0 to 1, stored as 0 or 1.
    """

    event_ids: list[str]
    new: int
    clamped: int = 0


def write(lake: Lake, labels: Sequence[Mapping[str, Any]], annotator: str | None = None) -> WrittenLabels:
    """Writes labels: mappings of FIELDS, of which `image_id` and one of label, boxes and masks are needed.

    `incomplete`, true or false (the default): the image may show more than the label says. `annotator`: of those that
    name none. A label with an `event_id` (a UUID) that the lake has, or with its own
    `timestamp` and the same content, adds nothing. Raises BadInput, naming the first wrong label by its position from
    0; nothing is written then.
    """
    rows = []
    numbers = Numbers()
    for number, label in enumerate(labels):
        try:
            rows.append(_row(label, annotator, numbers))
        except BadInput as error:
            raise BadInput(f"label {number}: {error}") from error
    _check_images(lake, rows)
    distinct = {row["event_id"]: row for row in rows}
    new = lake.insert("labels", pa.Table.from_pylist([*distinct.values()], schema=schema.LABELS.arrow()))
    return WrittenLabels([row["event_id"] for row in rows], new, len(numbers.converted))


def _row(values: Mapping[str, Any], annotator: str | None, numbers: Numbers) -> dict[str, Any]:
    unknown = sorted(set(values) - {*FIELDS})
    if unknown:
        raise BadInput(f"a label has no {unknown[0]!r}; it has {', '.join(FIELDS)}")
    image_id = values.get("image_id")
    if not isinstance(image_id, str) or not ids.is_image_id(image_id):
        raise BadInput(f"image_id is {image_id!r:.80}; it must be 64 hexadecimal digits in lower case")
    text = {name: _text(name, values.get(name)) for name in ("label", "annotator", "model_version")}
    label = text["label"]
    boxes = read_boxes(values.get("boxes"), numbers)
    masks = read_masks(values.get("masks"), label, _no_file, numbers)
    implied = SEGMENTATION if masks is not None else DETECTION if boxes is not None else CLASSIFICATION
    task = values.get("task") or implied
    origin = values.get("origin") or "human"
    if task not in TASKS:
        raise BadInput(f"task is {task!r:.80}; it must be one of {', '.join(TASKS)}")
    if origin not in ORIGINS:
        raise BadInput(f"origin is {origin!r:.80}; it must be one of {', '.join(ORIGINS)}")
    _check_task(task, label, boxes, masks)
    moment = parse_time("timestamp", values.get("timestamp"))
    own = text["annotator"] or annotator
    incomplete = values.get("incomplete") or False
    if not isinstance(incomplete, bool):
        raise BadInput(f"incomplete is {incomplete!r:.80}; it must be true or false")
    content = json.dumps([task, label, boxes, masks, own, str(moment), *([True] * incomplete)], sort_keys=True)
    derived = ids.label_event_id(image_id, content, origin) if moment is not None else str(uuid.uuid4())
    return {
        "event_id": _event_id(values.get("event_id")) or derived,
        "image_id": image_id,
        "timestamp": moment or store.now(),
        "task": task,
        "label": label,
        "boxes": boxes,
        "masks": masks,
        "origin": origin,
        "annotator": own,
        "model_version": text["model_version"],
        "incomplete": incomplete,
    }


def _check_task(task: str, label: str | None, boxes: Any, masks: Any) -> None:
    match task:
        case "classification" if label is None or boxes is not None or masks is not None:
            raise BadInput("a classification has a label, and neither boxes nor masks")
        case "detection" if boxes is None or masks is not None:
            raise BadInput("a detection has boxes (an empty list: no object), and no masks")
        case "segmentation" if masks is None:
            raise BadInput("a segmentation has masks (an empty list: no object)")


def _check_images(lake: Lake, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises BadInput for images that the lake does not have or that were erased, and for masks of another size."""
    names = sorted({row["image_id"] for row in rows})
    stored = lake.look_up("images", ["image_id", "width", "height"], "image_id", names).to_pylist()
    size_of = {row["image_id"]: [row["height"], row["width"]] for row in stored}
    known = size_of.keys() | lake.known("samples", "image_id", [n for n in names if n not in size_of])
    erased = lake.erased(names)
    for number, row in enumerate(rows):
        name = row["image_id"]
        if name not in known or name in erased:
            raise BadInput(f"label {number}: the lake has no image {name}")
        sizes = [[mask["height"], mask["width"]] for mask in row["masks"] or ()]
        wrong = [size for size in sizes if size != size_of.get(name, size)]
        if wrong:
            raise BadInput(f"label {number}: a mask's size is {wrong[0]}, the image's is {size_of[name]}")


def _event_id(value: Any) -> str | None:
    event_id = ids.as_uuid(value) if isinstance(value, str) else None
    if value is not None and event_id is None:
        raise BadInput(f"event_id is {value!r:.80}; it must be a UUID")
    return event_id


def _text(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadInput(f"{name} is {value!r:.80}; it must be text")
    return texts.class_name(name, value) if name == "label" else texts.sound(name, value)


def _no_file(path: str) -> bytes:
    raise BadInput("masks: pass COCO RLE; no file is read")
