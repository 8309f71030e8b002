"""Images answered by registered models beside the server: one process has the models, others decode what was sent.

Requests wait in line for one thread, which takes those of one model together: a hostile image kills a decoder and
nothing else, a model that is being loaded holds up models only, and the event loop waits for none. It knows nothing of
HTTP, and writes nothing.
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
    from training.inference.image_preparation import How
    from training.inference.served_model import Source

# What is promoted is looked up again after so long: a promotion holds for every request after it.
LOOK_SECONDS = 1.0
MOST_NAMES = 256
# Requests answered together, and those that may wait.
BATCH = 16
MOST_WAITING = 128
DECODE_SECONDS = 20.0
# A model's first answer comes after its libraries and weights were loaded.
ANSWER_SECONDS = 180.0
UNLIMITED = -1


class Busy(CouldNot):
    """More requests wait than can be answered soon."""


@dataclass(eq=False)
class _Request:
    run: str
    image_id: str
    data: bytes
    answer: Future[Prediction] = field(default_factory=Future)


class ModelServer:
    """The models of one lake. Its thread and processes start with the first request. Safe between threads."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._sources: dict[str, tuple[float, Source | LakeloopError]] = {}
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._pools: dict[str, WorkerPool] = {}
        self._hows: dict[str, How] = {}

    def source(self, name: str) -> Source:
        """Who answers for a name, as it stood at most a second ago. Raises what `serving.source` does."""
        now = time.monotonic()
        held = self._sources.get(name)
        if held is None or held[0] < now:
            if len(self._sources) >= MOST_NAMES:
                self._sources.clear()
            try:
                found: Source | LakeloopError = served_model.source(self._lake, name)
            except LakeloopError as error:
                found = error
            held = self._sources[name] = (now + LOOK_SECONDS, found)
        if isinstance(held[1], LakeloopError):
            raise held[1]
        return held[1]

    def submit(self, run: str, image_id: str, data: bytes) -> Future[Prediction]:
        """The answer to come. It fails with UnreadableImage, or CouldNot when the model cannot answer.

        Raises Busy when too many wait.
        """
        request = _Request(run, image_id, data)
        with self._changed:
            if self._closing:
                raise CouldNot("the server is stopping")
            if len(self._waiting) >= MOST_WAITING:
                raise Busy(f"{MOST_WAITING} images wait for an answer already")
            self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="answer", daemon=True)
                self._thread.start()
            self._changed.notify()
        return request.answer

    def close(self) -> None:
        """Ends the processes; what still waits fails."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        for pool in [*self._pools.values()]:
            pool.close()
        if self._thread is not None:
            self._thread.join(2.0)

    # On the thread --------------------------------------------------------------------------------------------

    def _live(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch = [] if self._closing else self._take()
                left = [*self._waiting] if self._closing else []
            for request in left:
                if request.answer.set_running_or_notify_cancel():
                    request.answer.set_exception(CouldNot("the server is stopping"))
            if self._closing:
                return
            running = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            try:
                self._answer(running)
            except Exception as error:  # nobody else is there to hear it
                why = error if isinstance(error, LakeloopError) else CouldNot(f"the model could not answer: {error}")
                for request in running:
                    if not request.answer.done():
                        request.answer.set_exception(why)

    def _take(self) -> list[_Request]:
        """Those of the first one's model, as many as go together."""
        run = self._waiting[0].run
        taken = [one for one in self._waiting if one.run == run][:BATCH]
        self._waiting = deque(one for one in self._waiting if one not in taken)
        return taken

    def _answer(self, batch: list[_Request]) -> None:
        if not batch:
            return
        run = batch[0].run
        if run not in self._hows:
            self._hows[run], _ = self._asked(run, [], [])
        tasks = ((([(one.image_id, one.data)], self._hows[run], decode.MAX_MEGAPIXELS_HTTP), one) for one in batch)
        good: list[tuple[_Request, Any]] = []
        for result, request in self._decoders().map(tasks):
            found = result.reason if isinstance(result, WorkerDied) else result[0]
            if isinstance(found, str):
                request.answer.set_exception(UnreadableImage(found))
            else:
                good.append((request, found))
        if not good:
            return
        _, answers = self._asked(run, [one.image_id for one, _ in good], [prepared for _, prepared in good])
        for (request, _), answer in zip(good, answers, strict=True):
            if isinstance(answer, str):
                request.answer.set_exception(CouldNot(answer))
            else:
                request.answer.set_result(answer)

    def _asked(self, run: str, names: list[str], prepared: list[Any]) -> tuple[How, list[Prediction | str]]:
        if "models" not in self._pools:
            self._keep("models", WorkerPool(model_process.WORK, 1, memory_bytes=UNLIMITED, timeout=ANSWER_SECONDS))
        found = self._pools["models"].run(self._lake.uri, run, names, prepared)
        if isinstance(found, WorkerDied):
            raise CouldNot(f"the process that answers ended ({found.reason}); it starts again with the next request")
        if isinstance(found, model_process.Failed):
            raise CouldNot(f"the model of run {run} cannot answer: {found.reason}")
        how, answers = found
        return how, answers

    def _decoders(self) -> WorkerPool:
        if "decoders" not in self._pools:
            count = min(2, len(os.sched_getaffinity(0)))
            pool = WorkerPool(image_preparation.WORKER, count, memory_bytes=HTTP_MEMORY_BYTES, timeout=DECODE_SECONDS)
            self._keep("decoders", pool)
        return self._pools["decoders"]

    def _keep(self, name: str, pool: WorkerPool) -> None:
        with self._changed:
            self._pools[name] = pool
            late = self._closing
        if late:
            pool.close()
            raise CouldNot("the server is stopping")
