"""Asking the server's models, over connections of its own: an answer is waited for, so it does not stand in line.

It asks and reads the answer; logging it is the client's usual business (`client.py`).
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import ssl

    from lake.client.delivery import Server

# Connections that are kept open between questions.
KEPT = 8
# A model's first answer comes after its libraries and weights were loaded.
SECONDS = 60.0


class NotAnswered(Exception):
    """No answer came. `status` is the server's (0: it said nothing), `after` the seconds it asks to wait."""

    def __init__(self, reason: str, status: int = 0, after: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.after = after


@dataclass(frozen=True)
class Predicted:
    """A model's answer. `boxes` and `masks` are in pixels of the upright image, in the forms of prediction logs."""

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
        """What of it is logged; a task that finds things says so too when it found none."""
        said = {name: getattr(self, name) for name in ("model", "model_version", "task", "label", "confidence")}
        said |= {"latency_ms": self.latency_ms, "scores": self.scores or None, "run": self.run}
        said["boxes"] = self.boxes if self.boxes or self.task == "detection" else None
        said["masks"] = self.masks if self.masks or self.task == "segmentation" else None
        return said


class Asker:
    """Questions to the server at `url`, several at once. `timeout` is in seconds, for every wait on a socket."""

    def __init__(self, url: str, timeout: float, ssl_context: ssl.SSLContext | None) -> None:
        self._made = (url, timeout, ssl_context)
        self._lock = threading.Lock()
        self._idle: list[Server] = []
        self._process = os.getpid()

    def ask(self, image: bytes, model: str, version: int | str | None, key: str | None) -> Predicted:
        """The answer of the promoted version of the model, or of `version`. Raises NotAnswered."""
        from lake.client.delivery import NotNow

        name = model if version is None else f"{model}@{version}"
        server = self._take()
        try:
            answer = server.post(f"/v1/models/{quote(name, safe='@')}:predict", "image/*", image, key)
        except NotNow as error:
            raise NotAnswered(str(error), after=error.after) from error
        self._give(server)
        if answer.status != 200:
            raise NotAnswered(f"{answer.status}: {answer.detail()}", answer.status, answer.after)
        try:
            said = json.loads(answer.body)
            return Predicted(**{one.name: said[one.name] for one in fields(Predicted)})
        except (ValueError, TypeError, LookupError) as error:
            raise NotAnswered(
                "the answer is not that of a lakeloop server; is the URL right?", answer.status
            ) from error

    def close(self) -> None:
        """Ends the connections that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for server in idle:
            server.close()

    def _take(self) -> Server:
        from lake.client.delivery import Server

        with self._lock:
            if self._process != os.getpid():  # forked: the connections are the parent's
                self._process, self._idle = os.getpid(), []
            if self._idle:
                return self._idle.pop()
        return Server(*self._made)

    def _give(self, server: Server) -> None:
        with self._lock:
            if len(self._idle) < KEPT:
                self._idle.append(server)
                return
        server.close()
