"""Ids of images, predictions and label events, and how to tell the kinds of ids apart.

An `image_id` is the SHA-256 of the image file's bytes, 64 hex digits. A `prediction_id` is the caller's UUID, or a
UUID derived from the prediction's fields, so that reading the same log twice gives the same ids.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Literal

from lake.errors import BadInput

_NAMESPACE = uuid.UUID("5e1ab3c8-6f0e-5b7e-9c39-1a9c1f4f7a10")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_BEGINNING = re.compile(r"[0-9a-f-]{6,64}\Z")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}\Z")


def image_id(data: bytes) -> str:
    """SHA-256 of the image file's bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def is_image_id(text: str) -> bool:
    return _IMAGE_ID.match(text) is not None


def is_beginning(text: str) -> bool:
    """Whether an id may begin so: at least 6 hex digits, with the hyphens of a UUID."""
    return _BEGINNING.match(text) is not None


def kind(identifier: str) -> Literal["image", "prediction"]:
    """Tells an `image_id` (64 hex digits) from a `prediction_id` (UUID) by form.

    Raises BadInput if it is neither.
    """
    if is_image_id(identifier):
        return "image"
    if as_uuid(identifier) is not None:
        return "prediction"
    raise BadInput(f"{identifier!r} is not an id; expected an image_id (64 hex digits) or a prediction_id (UUID)")


def as_uuid(text: str) -> str | None:
    """The UUID in its usual lower-case form, or None if `text` is not a UUID."""
    if _UUID.match(text):  # nearly always true, and ten times as fast
        return text
    if len(text) not in (32, 36):
        return None
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def bare_prediction_id(image: str) -> str:
    """The id of the sample that makes an image without a prediction findable."""
    return _derive("bare", image)


def derived_prediction_id(
    image: str, model: str | None, model_version: str | None, timestamp: str | None, row_id: str | None
) -> str:
    """UUIDv5 of the fields that identify a prediction; None and "" are different."""
    return _derive("answer", image, model, model_version, timestamp, row_id)


def label_event_id(image: str, label: str, origin: str) -> str:
    """The id of a label event that is derived from its content: sending it twice adds it once."""
    return _derive("label", image, label, origin)


def imported_label_id(image: str, content: str, source: str | None, before: str | None) -> str:
    """The id of an imported label event; `before` is the id of the source's event before it, None for its first."""
    return _derive("statement", image, content, source, before)


def feedback_event_id(
    prediction: str, verdict: str, comment: str | None, ticket: str | None, timestamp: str | None
) -> str:
    """The id of a verdict that came without an id: sending the same verdict twice adds it once."""
    return _derive("feedback", prediction, verdict, comment, ticket, timestamp)


def _derive(*parts: str | None) -> str:
    # Lengths are part of the text, so that two different lists of parts never give the same name.
    return str(uuid.uuid5(_NAMESPACE, "".join("-" if p is None else f"{len(p)}:{p}" for p in parts)))
