"""Runs registered models for the server: one process holds the models, others decode the images.

Requests wait in a queue for one thread, which batches those of one model. So a hostile image kills a decoder and
nothing else, loading a model delays only other models, and the event loop never waits. It knows nothing of HTTP and
writes nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import CouldNot, LakeloopError, UnreadableImage
from lake.images import decode
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerDied, WorkerPool
from training.inference import image_preparation, model_process, served_model
from training.tasks.task import Prediction

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.inference.image_preparation import ImagePreparation
    from training.inference.served_model import ServedVersion

# The promoted version is looked up again after this time: then a promotion holds for every request.
LOOK_SECONDS = 1.0
MOST_NAMES = 256
# The number of requests in one batch, and of requests that may wait.
BATCH = 16
MOST_WAITING = 128
DECODE_SECONDS = 20.0
# The first prediction of a model comes after its libraries and weights are loaded.
PREDICT_SECONDS = 180.0
UNLIMITED = -1


class Busy(CouldNot):
    """Too many requests wait already."""


@dataclass(eq=False)
class _Request:
    run: str
    image_id: str
    data: bytes
    prediction: Future[Prediction] = field(default_factory=Future)


class ModelServer:
    """The models of one lake. Its thread and processes start with the first request. Thread-safe."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._sources: dict[str, tuple[float, ServedVersion | LakeloopError]] = {}
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._pools: dict[str, WorkerPool] = {}
        self._preparations: dict[str, ImagePreparation] = {}

    def source(self, name: str) -> ServedVersion:
        """The model version that a name stands for, at most a second old. Raises as `served_model.served_version`."""
        now = time.monotonic()
        cached = self._sources.get(name)
        if cached is None or cached[0] < now:
            if len(self._sources) >= MOST_NAMES:
                self._sources.clear()
            try:
                source: ServedVersion | LakeloopError = served_model.served_version(self._lake, name)
            except LakeloopError as error:
                source = error
            cached = self._sources[name] = (now + LOOK_SECONDS, source)
        if isinstance(cached[1], LakeloopError):
            raise cached[1]
        return cached[1]

    def submit(self, run: str, image_id: str, data: bytes) -> Future[Prediction]:
        """The future prediction. It fails with UnreadableImage, or CouldNot if the model fails.

        Raises Busy if too many requests wait.
        """
        request = _Request(run, image_id, data)
        with self._changed:
            if self._closing:
                raise CouldNot("the server is stopping")
            if len(self._waiting) >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} images wait for a prediction already; try again later")
            self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="predict", daemon=True)
                self._thread.start()
            self._changed.notify()
        return request.prediction

    def close(self) -> None:
        """Ends the processes; waiting requests fail."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        for pool in [*self._pools.values()]:
            pool.close()
        if self._thread is not None:
            self._thread.join(2.0)

    # On the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch = [] if self._closing else self._take()
                left = [*self._waiting] if self._closing else []
            for request in left:
                if request.prediction.set_running_or_notify_cancel():
                    request.prediction.set_exception(CouldNot("the server is stopping"))
            if self._closing:
                return
            running = [request for request in batch if request.prediction.set_running_or_notify_cancel()]
            try:
                self._predict(running)
            except Exception as error:  # every request of the batch needs a result
                reason = error if isinstance(error, LakeloopError) else CouldNot(f"the model failed: {error}")
                for request in running:
                    if not request.prediction.done():
                        request.prediction.set_exception(reason)

    def _take(self) -> list[_Request]:
        """The next batch: the oldest request and others for the same model."""
        run = self._waiting[0].run
        batch = [request for request in self._waiting if request.run == run][:BATCH]
        self._waiting = deque(request for request in self._waiting if request not in batch)
        return batch

    def _predict(self, batch: list[_Request]) -> None:
        if not batch:
            return
        run = batch[0].run
        if run not in self._preparations:
            self._preparations[run], _ = self._run_model(run, [], [])
        preparation = self._preparations[run]
        limit = decode.MAX_MEGAPIXELS_HTTP
        tasks = ((([(request.image_id, request.data)], preparation, limit), request) for request in batch)
        prepared: list[tuple[_Request, Any]] = []
        for result, request in self._decoders().map(tasks):
            image = result.reason if isinstance(result, WorkerDied) else result[0]
            if isinstance(image, str):
                request.prediction.set_exception(UnreadableImage(image))
            else:
                prepared.append((request, image))
        if not prepared:
            return
        image_ids = [request.image_id for request, _ in prepared]
        _, predictions = self._run_model(run, image_ids, [image for _, image in prepared])
        for (request, _), prediction in zip(prepared, predictions, strict=True):
            if isinstance(prediction, str):
                request.prediction.set_exception(CouldNot(prediction))
            else:
                request.prediction.set_result(prediction)

    def _run_model(
        self, run: str, image_ids: list[str], images: list[Any]
    ) -> tuple[ImagePreparation, list[Prediction | str]]:
        """How the model wants images prepared, and its prediction, or the reason why there is none, for each image."""
        if "models" not in self._pools:
            self._keep("models", WorkerPool(model_process.WORK, 1, memory_bytes=UNLIMITED, timeout=PREDICT_SECONDS))
        result = self._pools["models"].run(self._lake.uri, run, image_ids, images)
        if isinstance(result, WorkerDied):
            raise CouldNot(f"the model process ended ({result.reason}); it starts again with the next request")
        if isinstance(result, model_process.ModelUnavailable):
            raise CouldNot(f"the model of run {run} failed: {result.reason}")
        preparation, predictions = result
        return preparation, predictions

    def _decoders(self) -> WorkerPool:
        if "decoders" not in self._pools:
            count = min(2, len(os.sched_getaffinity(0)))
            pool = WorkerPool(image_preparation.WORKER, count, memory_bytes=HTTP_MEMORY_BYTES, timeout=DECODE_SECONDS)
            self._keep("decoders", pool)
        return self._pools["decoders"]

    def _keep(self, name: str, pool: WorkerPool) -> None:
        with self._changed:
            self._pools[name] = pool
            closing = self._closing
        if closing:
            pool.close()
            raise CouldNot("the server is stopping")
