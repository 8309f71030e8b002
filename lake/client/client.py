"""`Client` and `AsyncClient`, which a service calls to log predictions and feedback.

`log` turns its arguments into an event, queues it and returns. It does not wait for the server, and no problem of
data, network, server or disk raises. Only mistakes in the calling program raise, at once: a missing `model`, a bad URL.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from lake.client import events, json_requests, model_requests, predictions
from lake.client.core import ClientCore, Stats
from lake.client.data_doors import DataDoors
from lake.client.events import Image, Kind, Refusal
from lake.client.model_doors import ModelDoors
from lake.client.model_requests import Predicted

if TYPE_CHECKING:
    import ssl

P = ParamSpec("P")
R = TypeVar("R")


class _BaseClient:
    """The code that both clients share. `docs/client.md` explains the options and which events can be lost."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        spill: str | os.PathLike[str] | None = "auto",
        spill_bytes: int = 1 << 30,
        buffer_bytes: int = 64 << 20,
        batch_events: int = 64,
        batch_bytes: int = 4 << 20,
        linger: float = 0.2,
        timeout: float = 10.0,
        longest_pause: float = 30.0,
        on_refused: Callable[[Refusal], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """A client of the server at `url`. Raises ValueError if an option is out of range.

        `spill` is the folder for events that the server does not take yet; "auto": one for this URL under
        ~/.local/state; None: no disk at all. Times are in seconds. `on_refused` is called, on a thread of the client,
        with every event that will not be sent again.
        """
        self._core = ClientCore(
            url,
            key,
            spill=spill,
            spill_bytes=spill_bytes,
            buffer_bytes=buffer_bytes,
            batch_events=batch_events,
            batch_bytes=batch_bytes,
            linger=linger,
            timeout=timeout,
            longest_pause=longest_pause,
            on_refused=on_refused,
            ssl_context=ssl_context,
        )
        own_timeout = max(timeout, json_requests.SECONDS)
        self._requests = json_requests.JsonRequests(url, lambda: self.key, own_timeout, ssl_context)
        self._models = model_requests.ModelRequests(url, max(timeout, model_requests.SECONDS), ssl_context)

    @property
    def key(self) -> str | None:
        """The access key. A new one is used from the next request on."""
        return self._core.key

    @key.setter
    def key(self, key: str | None) -> None:
        self._core.key = key

    def log(
        self,
        image: Image,
        *,
        model: str,
        model_version: str | None = None,
        label: str | None = None,
        confidence: float | None = None,
        scores: Any = None,
        boxes: Any = None,
        masks: Any = None,
        task: str | None = None,
        timestamp: Any = None,
        source: str | None = None,
        latency_ms: float | None = None,
        prediction_id: str | uuid.UUID | None = None,
        **metadata: Any,
    ) -> str:
        """Logs one prediction for one image; returns its prediction_id at once.

        `image` is the image file's bytes (JPEG, PNG, ...) or its path, which is read now. Pass at least one of label,
        scores, boxes and masks, in the forms of `docs/prediction-logs.md`; arrays of numpy and torch are fine.
        `timestamp` is the time of the prediction (default: now; a datetime without a zone is UTC). Everything else
        becomes metadata. An event that cannot be sent is counted and reported, never raised. If you may log the same
        prediction twice, pass your own `prediction_id` (a UUID): it is stored once.
        """
        own = str(uuid.uuid4() if prediction_id is None else prediction_id)
        fields = {
            "prediction_id": own,
            "model": model,
            "model_version": model_version,
            "label": label,
            "confidence": confidence,
            "scores": scores,
            "boxes": boxes,
            "masks": masks,
            "task": task,
            "timestamp": timestamp,
            "source": source,
            "latency_ms": latency_ms,
        }
        inner = metadata.get("metadata")
        if isinstance(inner, Mapping):
            del metadata["metadata"]
            metadata = {**inner, **metadata}
        self._put("prediction", fields, lambda: events.prediction(image, fields, metadata, time.monotonic()))
        return own

    def feedback(
        self,
        prediction_id: str | uuid.UUID,
        verdict: Literal["correct", "incorrect", "unsure"],
        comment: str | None = None,
        ticket: str | None = None,
        *,
        timestamp: Any = None,
        event_id: str | uuid.UUID | None = None,
    ) -> str:
        """Logs a verdict on a prediction; returns the verdict's own id at once.

        `timestamp` is the time of the verdict (default: now). If you may log the same verdict twice, pass your own
        `event_id` (a UUID) and the timestamp: it is stored once.

        It is sent after everything this client logged before. There is no order between two clients: the server
        refuses (404) a verdict on a prediction that it does not have yet.
        """
        own = str(uuid.uuid4() if event_id is None else event_id)
        fields = {
            "event_id": own,
            "prediction_id": str(prediction_id),
            "verdict": verdict,
            "comment": comment,
            "ticket": ticket,
            "timestamp": timestamp,
        }
        self._put("feedback", fields, lambda: events.feedback(fields, time.monotonic()))
        return own

    def logged(
        self,
        *,
        model: str,
        model_version: str | None = None,
        image: str | None = None,
        convert: Callable[[Any], Any] | None = None,
        **fields: Any,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """A decorator that logs the predictions a function, sync or async, returns for images, with their duration.

        `image` names the parameter with the image file's bytes or path (default: the first argument that is bytes or a
        Path). The function returns a label, (label, confidence), a mapping of scores, or a mapping of `log`'s fields;
        None logs nothing; `convert` changes any other result to one of these. Results and exceptions pass through
        unchanged. Raises TypeError at once for a generator, or if there is no such parameter.
        """
        fields = {"model": model, "model_version": model_version, **fields}
        return predictions.logged(self._log_fields, self._reject, fields, image, convert)

    def prediction(
        self, image: Image, *, model: str, model_version: str | None = None, **fields: Any
    ) -> predictions.PredictionBlock:
        """A `with` (or `async with`) block that logs the prediction you set in it, with its duration.

        with client.prediction(image, model="cells") as a:
            a.label, a.confidence = predict(image)
        """
        return predictions.PredictionBlock(
            self._log_fields, self._reject, image, {"model": model, "model_version": model_version, **fields}
        )

    def _predict(self, image: Image, model: str, version: int | str | None, fields: dict[str, Any]) -> Predicted:
        data = events.image_bytes(image)
        predicted = self._models.predict(data, model, version, self.key)
        own = fields.pop("prediction_id", None)
        self.log(data, **{**fields, **predicted.event(), "prediction_id": own or predicted.prediction_id})
        return predicted if own is None else replace(predicted, prediction_id=str(own))

    def stats(self) -> Stats:
        """Counts of events so far. Cheap: waits for neither disk nor network."""
        return self._core.stats()

    def _put(self, kind: Kind, fields: dict[str, Any], make: Callable[[], events.QueuedEvent]) -> None:
        try:
            self._core.put(make())
        except Exception as error:  # including what __str__ or tolist of the caller's objects may raise
            reason = str(error) if isinstance(error, events.Unfit) else f"{type(error).__name__}: {error}"
            self._core.refuse(Refusal.of(kind, fields, reason))

    def _log_fields(self, image: Image, fields: dict[str, Any]) -> None:
        self.log(image, **fields)

    def _reject(self, fields: dict[str, Any], reason: str) -> None:
        self._core.refuse(Refusal.of("prediction", fields, reason))


class Client(_BaseClient, DataDoors, ModelDoors):
    """Logs a model's predictions to a lakeloop server in the background, and opens its doors to the lake.

    Make one per process; threads may share it.
    """

    def predict(
        self,
        image: Image,
        *,
        model: str,
        version: int | str | None = None,
        prediction_id: str | uuid.UUID | None = None,
        timestamp: Any = None,
        source: str | None = None,
        **metadata: Any,
    ) -> Predicted:
        """Returns the prediction of the server's promoted version of `model` (or `version`) and logs it, as `log` does.

        Waits for the prediction, not for the log. Raises NotAnswered if none comes: then nothing is logged. Raises
        ValueError if `image` is not an image. `prediction_id`, `timestamp`, `source` and `metadata` are as in `log`.
        """
        fields = {"prediction_id": prediction_id, "timestamp": timestamp, "source": source, **metadata}
        return self._predict(image, model, version, fields)

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until the server has answered for everything logged so far; False after `timeout` seconds."""
        return self._core.flush(timeout)

    def close(self, timeout: float | None = 5.0) -> bool:
        """Sends what it can within `timeout` seconds and keeps the rest on disk for the next client. True: all sent.

        Returns early if the server does not respond and there is a disk. Also called at the interpreter's exit.
        """
        self._models.close()
        self._requests.close()
        return self._core.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(5.0)


class AsyncClient(_BaseClient):
    """`Client` for asyncio: `log` and `feedback` are plain calls, because they never wait; the rest is awaited."""

    async def predict(
        self,
        image: Image,
        *,
        model: str,
        version: int | str | None = None,
        prediction_id: str | uuid.UUID | None = None,
        timestamp: Any = None,
        source: str | None = None,
        **metadata: Any,
    ) -> Predicted:
        """As `Client.predict`; the event loop goes on meanwhile."""
        import asyncio

        fields = {"prediction_id": prediction_id, "timestamp": timestamp, "source": source, **metadata}
        return await asyncio.to_thread(self._predict, image, model, version, fields)

    async def flush(self, timeout: float | None = None) -> bool:
        """As `Client.flush`; the event loop goes on meanwhile."""
        import asyncio  # as heavy as the rest of this package together

        cancelled = threading.Event()
        try:
            return await asyncio.to_thread(self._core.flush, timeout, cancelled.is_set)
        finally:  # a thread that goes on waiting would keep asyncio.run from ending
            cancelled.set()
            self._core.wake()

    async def close(self, timeout: float | None = 5.0) -> bool:
        """As `Client.close`; the event loop goes on meanwhile."""
        import asyncio

        self._models.close()
        return await asyncio.to_thread(self._core.close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
