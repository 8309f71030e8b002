"""Checks the events of a live system: a model's prediction, an image, or a verdict on a prediction.

An event is checked completely before it is accepted, because an accepted event must never be lost: a fault noticed
later can only be marked. The table row travels through the spool as JSON. The module knows neither HTTP nor storage.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lake import ids
from lake.errors import BadInput
from lake.prediction_logs import prediction_rows, texts
from lake.prediction_logs.instances import check_sizes
from lake.prediction_logs.times import parse_time

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["prediction", "image", "feedback"]
VERDICTS = ("correct", "incorrect", "unsure")
FEEDBACK_FIELDS = {"prediction_id", "verdict", "comment", "ticket", "event_id", "timestamp"}
# Of its row as JSON in UTF-8, however the event came in. Lance refuses rows of 25 MiB.
MOST_BYTES = 4 << 20
TEXT_CHARACTERS = 10_000  # at most, in a comment, a label, a source
TICKET_CHARACTERS = 1_000


@dataclass(slots=True)
class Event:
    """`event_id` identifies it for ever; `digest` distinguishes a repeat from another event under the same id.

    `row` is its table row as JSON, without what the server adds (times of arrival). `data` are the image's bytes, if
    they came with the event. `clamped`: confidences and scores a hair outside of 0 to 1 that were set to 0 or 1.
    `mask_sizes`: (width, height) of its masks, to compare with the image's.
    """

    kind: Kind
    event_id: str
    image_id: str
    row: str
    digest: bytes
    data: bytes | None = None
    key_id: str | None = None
    clamped: int = 0
    mask_sizes: Collection[tuple[int, int]] = ()


def prediction(
    fields: Mapping[str, Any], promoted: Mapping[str, pa.DataType], image: str, data: bytes | None, key_id: str | None
) -> Event:
    """The event of one prediction for the image `image` (an image_id). Without a prediction_id it gets a random one.

    Raises BadInput naming the wrong field.
    """
    if _blank(fields.get("model")):
        raise BadInput("model is missing: name the model that made the prediction")
    if fields.get("prediction_id") == "":
        # Elsewhere empty text means "not given"; here the caller would lose the protection against storing a retry.
        raise BadInput("prediction_id is empty: pass a UUID, or leave it out")
    row = prediction_rows.read_row({**fields, "image_id": image}, promoted, _no_files)
    if all(getattr(row, name) is None for name in prediction_rows.CONTENT):
        names = ", ".join(f"{name:.80}" for name in [*row.metadata][:10])
        other = f"; these fields are metadata: {names}" if names else ""
        raise BadInput(f"the prediction is empty: pass a label, scores, boxes or masks{other}")
    for name in ("model", "model_version", "task", "label", "source"):
        _text(name, getattr(row, name), TEXT_CHARACTERS)
    own = str(uuid.uuid4()) if row.row_id is None else ids.as_uuid(row.row_id)
    if own is None:
        raise BadInput(f"prediction_id is {row.row_id!r:.80}, not a UUID")
    event = _event("prediction", own, image, prediction_rows.columns(row), data, key_id)
    event.clamped = len(row.converted)
    event.mask_sizes = {(mask["width"], mask["height"]) for mask in row.masks or ()}
    return event


def check_masks(event: Event, sizes: Sequence[tuple[int, int]] | None) -> None:
    """Raises BadInput if a mask has none of the sizes, (width, height), that the image may have; None: not known."""
    if sizes is not None:
        check_sizes(event.mask_sizes, sizes)


def image(image_id: str, data: bytes, source: str | None, key_id: str | None) -> Event:
    """The event of an image uploaded by itself. Equal bytes are the same event, whatever their source."""
    event = _event("image", image_id, image_id, {"source": source}, data, key_id)
    event.digest = bytes.fromhex(image_id)
    return event


def feedback(fields: Mapping[str, Any], image_of: Mapping[str, str], key_id: str | None) -> Event:
    """The event of a verdict; `image_of` maps the prediction's id to its image's.

    Without an event_id it gets one derived from its content, so that a repeat adds nothing.
    Raises BadInput naming the wrong field.
    """
    reviewed_id = prediction_id(fields)
    unknown = sorted(set(fields) - FEEDBACK_FIELDS)
    if unknown:
        raise BadInput(f"feedback has no field {unknown[0]!r:.80}; it takes {', '.join(sorted(FEEDBACK_FIELDS))}")
    verdict = fields.get("verdict")
    if verdict not in VERDICTS:
        raise BadInput(f"verdict is {verdict!r:.80}; it must be one of {', '.join(VERDICTS)}")
    row = {
        "prediction_id": reviewed_id,
        "verdict": verdict,
        "comment": _text("comment", fields.get("comment"), TEXT_CHARACTERS),
        "ticket": _text("ticket", fields.get("ticket"), TICKET_CHARACTERS),
        "timestamp": parse_time("timestamp", fields.get("timestamp")),
    }
    own = fields.get("event_id")
    event_id = ids.as_uuid(own) if isinstance(own, str) else None
    if own is not None and event_id is None:
        raise BadInput(f"event_id is {own!r:.80}, not a UUID")
    if event_id is None:
        event_id = ids.feedback_event_id(
            reviewed_id, str(verdict), row["comment"], row["ticket"], _iso(row["timestamp"])
        )
    return _event("feedback", event_id, image_of[reviewed_id], row, None, key_id)


def prediction_id(fields: Mapping[str, Any]) -> str:
    """The id of the prediction that feedback is about. Raises BadInput if it is not a UUID."""
    value = fields.get("prediction_id")
    own = ids.as_uuid(value) if isinstance(value, str) else None
    if own is None:
        raise BadInput(f"prediction_id is {value!r:.80}, not a UUID")
    return own


def as_row(text: str, types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """The table row from its JSON in the spool; `types` of the table's columns distinguish times from text."""
    import pyarrow as pa

    row: dict[str, Any] = json.loads(text)
    for name, value in row.items():
        if value is not None and name in types and pa.types.is_timestamp(types[name]):
            row[name] = dt.datetime.fromisoformat(value)
    return row


def _event(
    kind: Kind, event_id: str, image_id: str, row: Mapping[str, Any], data: bytes | None, key_id: str | None
) -> Event:
    # Nulls are left out, so that a column added by a later version does not change the digest of an old event.
    text = _as_json({k: v for k, v in row.items() if v is not None})
    if len(text) > MOST_BYTES or len(text.encode()) > MOST_BYTES:
        raise BadInput(
            f"the event has {len(text) / 2**20:.1f} MiB without its image; at most {MOST_BYTES >> 20} are allowed"
        )
    digest = hashlib.sha256(f"{kind} {event_id} {image_id} {text}".encode()).digest()
    return Event(kind, event_id, image_id, text, digest, data, key_id)


def _iso(value: dt.datetime | None) -> str | None:
    return None if value is None else value.isoformat()


# One encoder for all events: json.dumps creates one in every call with options.
_as_json = json.JSONEncoder(ensure_ascii=False, default=_iso).encode


def _blank(value: Any) -> bool:
    return value is None or value == ""


def _text(name: str, value: Any, most: int) -> str | None:
    if _blank(value):
        return None
    if not isinstance(value, str):
        raise BadInput(f"{name} is {value!r:.80}, not text")
    if len(value) > most:
        raise BadInput(f"{name} has {len(value):,} characters; at most {most:,} are allowed")
    return texts.sound(name, value)


def _no_files(path: str) -> bytes:
    raise BadInput("masks: the server does not read files; send COCO RLE")
