"""Events of a live system, for tests."""

from __future__ import annotations

import uuid
from typing import Any

from lake import ids
from lake.spool import events
from lake.spool.events import Event
from tests.pictures import encoded, noise


def picture(seed: int) -> bytes:
    """A small PNG, another for each seed."""
    return encoded(noise(seed, 24, 16))


def name(number: int) -> str:
    """A prediction_id for a number."""
    return str(uuid.UUID(int=number))


def prediction(number: int, data: bytes | None = None, image_id: str | None = None, **fields: Any) -> Event:
    """The prediction of that number, about the picture of its number unless you pass another."""
    payload = {"prediction_id": name(number), "model": "m", "label": "cat", **fields}
    if data is None and image_id is None:
        data = picture(number)
    return events.prediction(payload, {}, image_id or ids.image_id(data or b""), data, None)


def upload(data: bytes) -> Event:
    return events.image(ids.image_id(data), data, None, None)


def verdict(about: Event, value: str = "incorrect", **more: Any) -> Event:
    payload = {"prediction_id": about.event_id, "verdict": value, **more}
    return events.feedback(payload, {about.event_id: about.image_id}, None)
