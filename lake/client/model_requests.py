"""Requests predictions from the server's models, over connections apart from the queue.

It sends the image and reads the prediction; `client.py` logs it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lake.client.json_requests import Connections

if TYPE_CHECKING:
    import ssl

# The first prediction of a model comes after its libraries and weights are loaded.
SECONDS = 60.0


class NotAnswered(Exception):
    """No prediction came. `status` is the server's (0: it did not respond), `after` the seconds it asks to wait."""

    def __init__(self, reason: str, status: int = 0, after: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.after = after


@dataclass(frozen=True)
class Predicted:
    """A model's prediction. `boxes` and `masks` are in pixels of the upright image, in the forms of prediction logs."""

    prediction_id: str
    image_id: str
    model: str
    model_version: str
    run: str
    task: str
    label: str | None
    confidence: float | None
    scores: list[dict[str, Any]]
    boxes: list[dict[str, Any]]
    masks: list[dict[str, Any]]
    latency_ms: float

    def event(self) -> dict[str, Any]:
        """The fields to log. A detection without boxes, or a segmentation without masks, keeps its empty list."""
        fields = {name: getattr(self, name) for name in ("model", "model_version", "task", "label", "confidence")}
        fields |= {"latency_ms": self.latency_ms, "scores": self.scores or None, "run": self.run}
        fields["boxes"] = self.boxes if self.boxes or self.task == "detection" else None
        fields["masks"] = self.masks if self.masks or self.task == "segmentation" else None
        return fields


class ModelRequests:
    """Sends requests to the server at `url`, several at once. `timeout` is in seconds, for a whole request."""

    def __init__(self, url: str, timeout: float, ssl_context: ssl.SSLContext | None) -> None:
        self._timeout = timeout
        self._connections = Connections(url, timeout, ssl_context)

    def predict(self, image: bytes, model: str, version: int | str | None, key: str | None) -> Predicted:
        """The prediction of the model's promoted version, or of `version`. Raises NotAnswered."""
        from lake.client.delivery import NotNow

        name = model if version is None else f"{model}@{version}"
        server = self._connections.take()
        try:
            with server.within(self._timeout):
                response = server.post(f"/v1/models/{quote(name, safe='@')}:predict", "image/*", image, key)
        except NotNow as error:
            raise NotAnswered(str(error), after=error.after) from error
        self._connections.give(server)
        if response.status != 200:
            raise NotAnswered(f"{response.status}: {response.detail()}", response.status, response.after)
        try:
            document = json.loads(response.body)
            return Predicted(**{field.name: document[field.name] for field in fields(Predicted)})
        except (ValueError, TypeError, LookupError) as error:
            raise NotAnswered(
                "the response is not from a lakeloop server; is the URL right?", response.status
            ) from error

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._connections.close()
