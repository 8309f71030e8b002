"""`Client` and `AsyncClient`: what a service calls.

`log` turns what it is given into an event, puts it in line and returns: it waits for no server, and raises for nothing
that data, network, server or disk can do. Only what is wrong in the program itself raises, at once: a missing `model`,
a URL that is none.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from lake.client import events, model_requests, predictions
from lake.client.core import Post, Stats
from lake.client.events import Image, Kind, Refusal
from lake.client.model_requests import Predicted

if TYPE_CHECKING:
    import ssl

P = ParamSpec("P")
R = TypeVar("R")


class _Doors:
    """What both clients share. `docs/client.md` says what the numbers mean and which events can be lost."""

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
        """A client of the server at `url`. Raises ValueError for an option that makes no sense.

        `spill` is the folder for what the server does not take yet; "auto": one for this URL under ~/.local/state;
        None: no disk at all. Times are in seconds. `on_refused` is called, on a thread of the client, with every event
        that will not be sent again.
        """
        self._post = Post(
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
        self._asker = model_requests.Asker(url, max(timeout, model_requests.SECONDS), ssl_context)

    @property
    def key(self) -> str | None:
        """The access key. A new one is used from the next request on."""
        return self._post.key

    @key.setter
    def key(self, key: str | None) -> None:
        self._post.key = key

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
        """Logs one answer of a model to one image; returns its prediction_id at once.

        `image` is the image file's bytes (JPEG, PNG, ...) or its path, which is read now. One of label, scores, boxes
        and masks is needed, in the forms of `docs/prediction-logs.md`; arrays of numpy and torch are fine. `timestamp`
        is when the model answered (default: now; a datetime without a zone is UTC). Everything else becomes metadata.
        An event that cannot be sent is counted and reported, never raised. Give your own `prediction_id` (a UUID) when
        you may log the same answer twice: it is stored once.
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
        """Says what somebody thinks of an answer; returns the statement's own id at once.

        `timestamp` is when they said it (default: now). Give your own `event_id` (a UUID), and the timestamp, when you
        may pass the same statement on twice: it is stored once.

        It travels behind what this client logged before it. Two clients keep no order between them: the server refuses
        (404) a verdict on an answer that it does not have yet.
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
        answer: Callable[[Any], Any] | None = None,
        **fields: Any,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """A decorator that logs what a function, sync or async, answers to an image, with the time it took.

        `image` names the parameter with the image file's bytes or path (default: the first argument that is bytes or a
        Path). The function returns a label, (label, confidence), a mapping of scores, or a mapping of `log`'s fields;
        None logs nothing; for anything else `answer` makes one of these of it. Results and exceptions pass through
        untouched. Raises TypeError at once for a generator, or when there is no such parameter.
        """
        fields = {"model": model, "model_version": model_version, **fields}
        return predictions.logged(self._log_fields, self._reject, fields, image, answer)

    def answer(
        self, image: Image, *, model: str, model_version: str | None = None, **fields: Any
    ) -> predictions.AnswerBlock:
        """A `with` (or `async with`) block that logs the answer set in it and the time it took.

        with client.answer(image, model="cells") as a:
            a.label, a.confidence = predict(image)
        """
        return predictions.AnswerBlock(
            self._log_fields, self._reject, image, {"model": model, "model_version": model_version, **fields}
        )

    def _predict(self, image: Image, model: str, version: int | str | None, said: dict[str, Any]) -> Predicted:
        data = events.image_bytes(image)
        found = self._asker.ask(data, model, version, self.key)
        own = said.pop("prediction_id", None)
        self.log(data, **{**said, **found.event(), "prediction_id": own or found.prediction_id})
        return found if own is None else replace(found, prediction_id=str(own))

    def stats(self) -> Stats:
        """Where things stand. Cheap: it waits for neither disk nor network."""
        return self._post.stats()

    def _put(self, kind: Kind, fields: dict[str, Any], make: Callable[[], events.Event]) -> None:
        try:
            self._post.put(make())
        except Exception as error:  # also what a caller's own __str__ or tolist may raise
            reason = str(error) if isinstance(error, events.Unfit) else f"{type(error).__name__}: {error}"
            self._post.refuse(Refusal.of(kind, fields, reason))

    def _log_fields(self, image: Image, fields: dict[str, Any]) -> None:
        self.log(image, **fields)

    def _reject(self, fields: dict[str, Any], reason: str) -> None:
        self._post.refuse(Refusal.of("prediction", fields, reason))


class Client(_Doors):
    """Logs a model's answers to a lakeloop server in the background. Threads may share one; make one for a process."""

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
        """Asks the server's promoted version of `model` (or `version`) and logs its answer, as `log` does.

        Waits for the answer, not for the log. Raises NotAnswered when there is none: then nothing is logged. Raises
        ValueError when `image` is none. `prediction_id`, `timestamp`, `source` and `metadata` are those of `log`.
        """
        said = {"prediction_id": prediction_id, "timestamp": timestamp, "source": source, **metadata}
        return self._predict(image, model, version, said)

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until everything logged so far is answered by the server; False after `timeout` seconds."""
        return self._post.flush(timeout)

    def close(self, timeout: float | None = 5.0) -> bool:
        """Sends what it can within `timeout` seconds, and keeps the rest on disk for the next client. True: all sent.

        Returns early when the server does not answer and there is a disk. Called at the interpreter's exit, too.
        """
        self._asker.close()
        return self._post.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(5.0)


class AsyncClient(_Doors):
    """`Client` for asyncio: `log` and `feedback` are the same plain calls, for they never wait; the rest is awaited."""

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

        said = {"prediction_id": prediction_id, "timestamp": timestamp, "source": source, **metadata}
        return await asyncio.to_thread(self._predict, image, model, version, said)

    async def flush(self, timeout: float | None = None) -> bool:
        """As `Client.flush`; the event loop goes on meanwhile."""
        import asyncio  # as heavy as the rest of this package together

        cancelled = threading.Event()
        try:
            return await asyncio.to_thread(self._post.flush, timeout, cancelled.is_set)
        finally:  # a thread that waited on would keep asyncio.run from ending
            cancelled.set()
            self._post.wake()

    async def close(self, timeout: float | None = 5.0) -> bool:
        """As `Client.close`; the event loop goes on meanwhile."""
        import asyncio

        self._asker.close()
        return await asyncio.to_thread(self._post.close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
