"""The events that the client sends: one prediction with its image, or one verdict, as JSON.

An event becomes JSON at once, because the caller may change its lists afterwards and every retry must be equal. The
image stays raw until it is sent. The server checks the content; this module refuses only what could never be sent. It
knows nothing of files on disk, threads or HTTP.
"""

from __future__ import annotations

import binascii
import datetime as dt
import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Image: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str]"
Kind = Literal["prediction", "feedback"]

# A prediction has at least one of these fields.
CONTENT = ("label", "scores", "boxes", "masks")
# The server's limit for one image.
IMAGE_BYTES = 32 << 20
# The memory an event takes beyond its bytes, measured roughly: its objects and its slot in the queue.
OVERHEAD_BYTES = 256


class Unfit(ValueError):
    """The data cannot become an event. The message is the reason."""


@dataclass(slots=True)
class QueuedEvent:
    """`head` is the event as an ASCII JSON object, without the image. `since` is a time.monotonic()."""

    kind: Kind
    head: bytes
    image: bytes
    since: float

    @property
    def held_bytes(self) -> int:
        return len(self.head) + len(self.image) + OVERHEAD_BYTES

    @property
    def wire_bytes(self) -> int:
        """Length of the event's line in a batch."""
        return len(self.head) + (len(self.image) + 2) // 3 * 4 + len(b',"image_base64":""\n')

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.head)
        return fields

    def line(self) -> bytes:
        """The event as a line of NDJSON, with the image as base64."""
        text = binascii.b2a_base64(self.image, newline=False)
        return b'%s,"image_base64":"%s"}\n' % (self.head[:-1], text)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An event that will not be sent again. `code` is the HTTP status; None if the client itself refused the data."""

    kind: Kind
    id: str
    reason: str
    code: int | None
    event: dict[str, Any]

    @staticmethod
    def of(kind: Kind, event: dict[str, Any], reason: str, code: int | None = None) -> Refusal:
        own = event.get("prediction_id" if kind == "prediction" else "event_id")
        return Refusal(kind, str(own), reason, code, event)


@dataclass(slots=True)
class EventBatch:
    """The events of one request: predictions, or a single verdict."""

    events: list[QueuedEvent] = field(default_factory=list)
    wire_bytes: int = 0

    def take(self, event: QueuedEvent, most: int, most_bytes: int) -> bool:
        """Adds the event and returns True, or False if it must go into a later request. The first one always fits."""
        if self.events and (
            event.kind == "feedback"
            or self.events[0].kind == "feedback"
            or len(self.events) >= most
            or self.wire_bytes + event.wire_bytes > most_bytes
        ):
            return False
        self.events.append(event)
        self.wire_bytes += event.wire_bytes
        return True


def prediction(image: Image, fields: Mapping[str, Any], metadata: Mapping[str, Any], since: float) -> QueuedEvent:
    """The event of one prediction. Fields that are None are left out; `timestamp` defaults to now.

    `metadata` stays nested, so that no name in it can be mistaken for a field. Raises Unfit.
    """
    if all(fields.get(name) is None for name in CONTENT):
        raise Unfit("the prediction is empty: pass a label, scores, boxes or masks")
    event = {name: value for name, value in fields.items() if value is not None}
    event["timestamp"] = _timestamp(fields.get("timestamp"))
    if metadata:
        event["metadata"] = metadata
    return QueuedEvent("prediction", _json(event), image_bytes(image), since)


def feedback(fields: Mapping[str, Any], since: float) -> QueuedEvent:
    """The event of one verdict; `timestamp` defaults to now. Raises Unfit."""
    event = {name: value for name, value in fields.items() if value is not None}
    return QueuedEvent("feedback", _json(event | {"timestamp": _timestamp(fields.get("timestamp"))}), b"", since)


def image_bytes(image: Image) -> bytes:
    """The image file's bytes; a path is read now. Raises Unfit."""
    if isinstance(image, str | os.PathLike):
        return _file_bytes(image)
    if not isinstance(image, bytes | bytearray | memoryview):
        raise Unfit(f"the image is a {type(image).__name__}; pass the image file's bytes, or its path")
    size = image.nbytes if isinstance(image, memoryview) else len(image)
    _check_size(size)
    return image if isinstance(image, bytes) else bytes(image)


def _file_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        # Without O_NONBLOCK, opening a pipe without a writer would never return.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unfit(f"{os.fspath(path)} is not a regular file")
            _check_size(status.st_size)
            return file.read(IMAGE_BYTES)
    except OSError as error:
        raise Unfit(f"{os.fspath(path)} could not be read: {error.strerror or error}") from error


def _check_size(size: int) -> None:
    if size == 0:
        raise Unfit("the image is empty")
    if size > IMAGE_BYTES:
        raise Unfit(f"the image has {size / 2**20:.1f} MB; at most {IMAGE_BYTES >> 20} MB are allowed")


def _timestamp(value: Any) -> Any:
    """The value; now if it is None; UTC if it is a datetime without a zone, as everywhere in lakeloop."""
    if value is None:
        value = dt.datetime.now(dt.UTC)
    if isinstance(value, dt.datetime) and value.tzinfo is None:
        value = value.replace(tzinfo=dt.UTC)
    return value


def _json(event: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(_plain(event), allow_nan=False, separators=(",", ":")).encode("ascii")
    except (ValueError, TypeError, RecursionError) as error:
        raise Unfit(f"the event cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: arrays and scalars of numpy and torch as lists and numbers, NaN as None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
