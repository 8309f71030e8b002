"""What a live system tells the lake: an answer of a model, an image, somebody's verdict on an answer. Checked.

An event is checked completely before it is accepted, because an accepted event must never be lost: what is found wrong
later can only be marked. The row it becomes travels through the spool as JSON. It knows neither HTTP nor storage.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lake import ids
from lake.errors import BadInput
from lake.formats import prediction_rows

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["prediction", "image", "feedback"]
VERDICTS = ("correct", "incorrect", "unsure")
FEEDBACK_FIELDS = {"prediction_id", "verdict", "comment", "ticket", "event_id", "timestamp"}
TEXT_CHARACTERS = 10_000  # of a comment, a label, a source; a ticket has a tenth of it


@dataclass(slots=True)
class Event:
    """`event_id` names it for ever; `digest` tells a repeat from another event under the same id.

    `row` is the table row it becomes, JSON, without what the server itself adds (times of arrival). `data` are the
    image's bytes, when they came with it.
    """

    kind: Kind
    event_id: str
    image_id: str
    row: str
    digest: bytes
    data: bytes | None = None
    key_id: str | None = None


def prediction(
    given: Mapping[str, Any], promoted: Mapping[str, pa.DataType], image: str, data: bytes | None, key_id: str | None
) -> Event:
    """The event of one answer about the image `image` (an image_id). Without an id of its own it gets a random one.

    Raises BadInput naming the field that is wrong.
    """
    if _blank(given.get("model")):
        raise BadInput("model is missing: say which model answered")
    if given.get("prediction_id") == "":
        # Elsewhere empty text means "not given"; here it would cost the caller that a retry is stored once.
        raise BadInput("prediction_id is empty: give a UUID, or leave it out")
    row = prediction_rows.read_row({**given, "image_id": image}, promoted, _no_files)
    if row.label is None and row.scores is None and row.boxes is None and row.masks is None:
        raise BadInput("the answer is missing: give a label, scores, boxes or masks")
    for name in ("model", "model_version", "task", "label", "source"):
        _text(name, getattr(row, name), TEXT_CHARACTERS)
    own = str(uuid.uuid4()) if row.row_id is None else ids.as_uuid(row.row_id)
    if own is None:
        raise BadInput(f"prediction_id is {row.row_id!r:.80}, not a UUID")
    return _event("prediction", own, image, prediction_rows.columns(row), data, key_id)


def image(image_id: str, data: bytes, source: str | None, key_id: str | None) -> Event:
    """The event of an image that came by itself. The same bytes are the same event, wherever they came from."""
    event = _event("image", image_id, image_id, {"source": source}, data, key_id)
    event.digest = bytes.fromhex(image_id)
    return event


def feedback(given: Mapping[str, Any], image_of: Mapping[str, str], key_id: str | None) -> Event:
    """The event of a verdict; `image_of` maps the answer's id to its image's.

    Without an id of its own it gets one from what it says, so that saying it again adds nothing.
    Raises BadInput naming the field that is wrong.
    """
    answer = prediction_id(given)
    unknown = sorted(set(given) - FEEDBACK_FIELDS)
    if unknown:
        raise BadInput(f"feedback has no field {unknown[0]!r:.80}; it takes {', '.join(sorted(FEEDBACK_FIELDS))}")
    verdict = given.get("verdict")
    if verdict not in VERDICTS:
        raise BadInput(f"verdict is {verdict!r:.80}, none of {', '.join(VERDICTS)}")
    row = {
        "prediction_id": answer,
        "verdict": verdict,
        "comment": _text("comment", given.get("comment"), TEXT_CHARACTERS),
        "ticket": _text("ticket", given.get("ticket"), TEXT_CHARACTERS // 10),
        "timestamp": prediction_rows.parse_time("timestamp", given.get("timestamp")),
    }
    own = given.get("event_id")
    event_id = ids.as_uuid(own) if isinstance(own, str) else None
    if own is not None and event_id is None:
        raise BadInput(f"event_id is {own!r:.80}, not a UUID")
    if event_id is None:
        event_id = ids.feedback_event_id(answer, str(verdict), row["comment"], row["ticket"], _iso(row["timestamp"]))
    return _event("feedback", event_id, image_of[answer], row, None, key_id)


def prediction_id(given: Mapping[str, Any]) -> str:
    """The answer that feedback is about. Raises BadInput when it is no UUID."""
    said = given.get("prediction_id")
    own = ids.as_uuid(said) if isinstance(said, str) else None
    if own is None:
        raise BadInput(f"prediction_id is {said!r:.80}, not a UUID")
    return own


def as_row(text: str, kinds: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """The table row that JSON in the spool says; `kinds` are the table's columns, to tell times from text."""
    import pyarrow as pa

    row: dict[str, Any] = json.loads(text)
    for name, value in row.items():
        if value is not None and name in kinds and pa.types.is_timestamp(kinds[name]):
            row[name] = dt.datetime.fromisoformat(value)
    return row


def _event(
    kind: Kind, event_id: str, image_id: str, row: Mapping[str, Any], data: bytes | None, key_id: str | None
) -> Event:
    # Nulls are left out: a column that a later version adds must not make an old event another one.
    text = _as_json({k: v for k, v in row.items() if v is not None})
    digest = hashlib.sha256(f"{kind} {event_id} {image_id} {text}".encode()).digest()
    return Event(kind, event_id, image_id, text, digest, data, key_id)


def _iso(value: dt.datetime | None) -> str | None:
    return None if value is None else value.isoformat()


# json.dumps makes an encoder for every call that wants anything special.
_as_json = json.JSONEncoder(ensure_ascii=False, default=_iso).encode


def _blank(value: Any) -> bool:
    return value is None or value == ""


def _text(name: str, value: Any, most: int) -> str | None:
    if _blank(value):
        return None
    if not isinstance(value, str):
        raise BadInput(f"{name} is {value!r:.80}, not text")
    if len(value) > most:
        raise BadInput(f"{name} has {len(value):,} characters; {most:,} are the most")
    return prediction_rows.valid_text(value)


def _no_files(path: str) -> bytes:
    raise BadInput("masks: the server reads no files; send COCO RLE")
