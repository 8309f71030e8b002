"""Identity: how an image, an answer and a statement get their ids, and how an id is told apart.

An image is its bytes: `image_id` is their SHA-256 (64 hex digits). A prediction is the caller's UUID, or one
derived from what makes it that answer, so that reading the same log twice gives the same ids.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Literal

from lake.errors import BadInput

_NAMESPACE = uuid.UUID("5e1ab3c8-6f0e-5b7e-9c39-1a9c1f4f7a10")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}\Z")


def image_id(data: bytes) -> str:
    """SHA-256 of the image file's bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def is_image_id(text: str) -> bool:
    return _IMAGE_ID.match(text) is not None


def kind(identifier: str) -> Literal["image", "prediction"]:
    """Tells an `image_id` (64 hex digits) from a `prediction_id` (UUID) by form.

    Raises BadInput when it is neither.
    """
    if is_image_id(identifier):
        return "image"
    if as_uuid(identifier) is not None:
        return "prediction"
    raise BadInput(f"{identifier!r} is no id: expected an image_id (64 hex digits) or a prediction_id (UUID)")


def as_uuid(text: str) -> str | None:
    """The UUID in its usual lower-case form, or None when `text` is not one."""
    if _UUID.match(text):  # nearly always, and ten times as quick
        return text
    if len(text) not in (32, 36):
        return None
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


def bare_prediction_id(image: str) -> str:
    """The id of the one row that makes an unanswered image findable."""
    return _derive("bare", image)


def derived_prediction_id(
    image: str, model: str | None, model_version: str | None, timestamp: str | None, row_id: str | None
) -> str:
    """UUIDv5 of what makes an answer that answer; None and "" are different."""
    return _derive("answer", image, model, model_version, timestamp, row_id)


def label_event_id(image: str, label: str, origin: str) -> str:
    """The id of an imported statement: importing the same folder twice says it once."""
    return _derive("label", image, label, origin)


def feedback_event_id(
    prediction: str, verdict: str, comment: str | None, ticket: str | None, timestamp: str | None
) -> str:
    """The id of a verdict that came without one: saying the same twice says it once."""
    return _derive("feedback", prediction, verdict, comment, ticket, timestamp)


def _derive(*parts: str | None) -> str:
    # Lengths are part of the text, so that no two lists of parts can spell the same name.
    return str(uuid.uuid5(_NAMESPACE, "".join("-" if p is None else f"{len(p)}:{p}" for p in parts)))
