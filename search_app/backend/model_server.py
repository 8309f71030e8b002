"""Runs registered models for the server: one process holds the models, others decode the images.

Requests wait in a queue for one thread, which batches those of one model. So a hostile image kills a decoder and
nothing else, loading a model delays only other models, and the event loop never waits. Beside a canary it asks the
promoted version about a sample of the same images. It knows nothing of HTTP.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import CouldNot, LakeloopError, UnreadableImage
from lake.images import decode
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerDied, WorkerPool
from search_app.backend.canaries import Canaries
from training.inference import image_preparation, model_process
from training.tasks.task import Prediction

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from search_app.backend.canaries import Source, Trial
    from training.inference.image_preparation import ImagePreparation

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
# Of an answer: the pixels of an image that the model wants whole, and little else; the predictions of a batch.
PREPARED_BYTES = int(3 * decode.MAX_MEGAPIXELS * 1e6) + (1 << 20)
PREDICTION_BYTES = 128 << 20
# Comparing a canary takes at most a fifth of the thread's time: after each comparison it rests four times as long.
COMPARISON_REST = 4.0


class Busy(CouldNot):
    """Too many requests wait already."""


@dataclass(eq=False)
class _Request:
    run: str
    image_id: str
    data: bytes
    trial: Trial | None = None
    prediction: Future[tuple[str, Prediction]] = field(default_factory=Future)

    def finish(self, run: str, outcome: Prediction | LakeloopError) -> None:
        if isinstance(outcome, LakeloopError):
            self.prediction.set_exception(outcome)
        else:
            self.prediction.set_result((run, outcome))


class ModelServer:
    """The models of one lake. Its thread and processes start with the first request. Thread-safe."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self.canaries = Canaries(lake)
        self._sources: dict[str, tuple[float, Source | LakeloopError]] = {}
        self._compare_at = 0.0
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._pools: dict[str, WorkerPool] = {}
        self._preparations: dict[str, ImagePreparation] = {}

    def source(self, name: str) -> Source:
        """What a name stands for, at most a second old. Raises as `served_model.served_version`."""
        now = time.monotonic()
        cached = self._sources.get(name)
        if cached is None or cached[0] < now:
            if len(self._sources) >= MOST_NAMES:
                self._sources.clear()
            try:
                source: Source | LakeloopError = self.canaries.source(name)
            except LakeloopError as error:
                source = error
            cached = self._sources[name] = (now + LOOK_SECONDS, source)
        if isinstance(cached[1], LakeloopError):
            raise cached[1]
        return cached[1]

    def submit(
        self, run: str, image_id: str, data: bytes, trial: Trial | None = None
    ) -> Future[tuple[str, Prediction]]:
        """The future prediction, and before it its run. It fails with UnreadableImage, or CouldNot if the model fails.

        `trial`: that of the canary whose run it is. If the canary fails, the promoted version predicts instead.
        Raises Busy if too many requests wait.
        """
        request = _Request(run, image_id, data, trial)
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
        self.canaries.close()
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(1.0)  # a batch that is nearly done ends by itself
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
                self._serve(running)
            except Exception as error:  # every request of the batch needs a result
                reason = error if isinstance(error, LakeloopError) else CouldNot(f"the model failed: {error}")
                for request in running:
                    if not request.prediction.done():
                        request.prediction.set_exception(reason)

    def _take(self) -> list[_Request]:
        """The next batch: the oldest request and others for the same model, and the same trial."""
        first = self._waiting[0]
        batch = [r for r in self._waiting if r.run == first.run and r.trial is first.trial][:BATCH]
        self._waiting = deque(request for request in self._waiting if request not in batch)
        return batch

    def _serve(self, batch: list[_Request]) -> None:
        if not batch:
            return
        run, trial = batch[0].run, batch[0].trial
        outcomes, seconds = self._predict(run, batch)
        failed = []
        for request, outcome in zip(batch, outcomes, strict=True):
            if trial is not None and isinstance(outcome, CouldNot):
                failed.append(request)
            else:
                request.finish(run, outcome)
        if trial is None:
            return
        if failed:
            self._serve_instead(trial, failed)
        elif time.monotonic() >= self._compare_at and not trial.evidence.complete and not self._closing:
            self._compare(trial, batch, outcomes, seconds)
        trial.evidence.add_results(sum(isinstance(outcome, Prediction) for outcome in outcomes))
        self.canaries.judge(trial)

    def _serve_instead(self, trial: Trial, requests: list[_Request]) -> None:
        """Predicts with the promoted version what the canary failed to predict: a canary must not cost a prediction."""
        outcomes, _ = self._predict(trial.promoted.run, requests)
        for request, outcome in zip(requests, outcomes, strict=True):
            request.finish(trial.promoted.run, outcome)
        # If both fail, the reason is not the canary.
        trial.evidence.add_results(0, failed=sum(isinstance(outcome, Prediction) for outcome in outcomes))

    def _compare(
        self, trial: Trial, batch: list[_Request], outcomes: Sequence[Prediction | LakeloopError], seconds: float
    ) -> None:
        """Predicts the same batch with the promoted version: its times are comparable, since the load is the same."""
        promoted, promoted_seconds = self._predict(trial.promoted.run, batch)
        self._compare_at = time.monotonic() + COMPARISON_REST * promoted_seconds
        for request, own, other in zip(batch, outcomes, promoted, strict=True):
            if isinstance(own, Prediction) and isinstance(other, Prediction):
                trial.evidence.add_comparison(request.image_id, own, other)
        if not any(isinstance(outcome, LakeloopError) for outcome in [*outcomes, *promoted]):
            trial.evidence.add_times(seconds, promoted_seconds)

    def _predict(self, run: str, batch: list[_Request]) -> tuple[list[Prediction | LakeloopError], float]:
        """What became of each request, and the seconds it took, without loading the model."""
        try:
            if run not in self._preparations:
                self._preparations[run], _ = self._run_model(run, [], [])
            started = time.perf_counter()
            return self._predict_loaded(run, batch), time.perf_counter() - started
        except Exception as error:  # every request needs a result
            reason = error if isinstance(error, LakeloopError) else CouldNot(f"the model failed: {error}")
            return [reason for _ in batch], 0.0

    def _predict_loaded(self, run: str, batch: list[_Request]) -> list[Prediction | LakeloopError]:
        preparation = self._preparations[run]
        limit = decode.MAX_MEGAPIXELS
        tasks = ((([(request.image_id, request.data, None)], preparation, limit), request) for request in batch)
        outcomes: dict[_Request, Prediction | LakeloopError] = {}
        prepared: list[tuple[_Request, Any]] = []
        for result, request in self._decoders().map(tasks):
            image = result.reason if isinstance(result, WorkerDied) else result[0]
            if isinstance(image, str):
                outcomes[request] = UnreadableImage(image)
            else:
                prepared.append((request, image))
        if prepared:
            image_ids = [request.image_id for request, _ in prepared]
            _, predictions = self._run_model(run, image_ids, [image for _, image in prepared])
            for (request, _), prediction in zip(prepared, predictions, strict=True):
                outcomes[request] = CouldNot(prediction) if isinstance(prediction, str) else prediction
        return [outcomes[request] for request in batch]

    def _run_model(
        self, run: str, image_ids: list[str], images: list[Any]
    ) -> tuple[ImagePreparation, list[Prediction | str]]:
        """How the model wants images prepared, and its prediction, or the reason why there is none, for each image."""
        if "models" not in self._pools:
            pool = WorkerPool(
                model_process.WORK, 1, memory_bytes=UNLIMITED, timeout=PREDICT_SECONDS, structure_bytes=PREDICTION_BYTES
            )
            self._keep("models", pool)
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
            pool = WorkerPool(
                image_preparation.WORKER, count, memory_bytes=HTTP_MEMORY_BYTES, timeout=DECODE_SECONDS,
                answer_bytes=PREPARED_BYTES,
            )  # fmt: skip
            self._keep("decoders", pool)
        return self._pools["decoders"]

    def _keep(self, name: str, pool: WorkerPool) -> None:
        with self._changed:
            self._pools[name] = pool
            closing = self._closing
        if closing:
            pool.close()
            raise CouldNot("the server is stopping")
