"""The client's two threads: one sends queued events, one writes them to disk while sending fails.

There are two, so that a server that hangs does not keep events in memory, where a kill would lose them. Both are
daemons, and no exception ends either. `delivery` interprets the server's responses; `queue` holds the events.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable

from lake.client.delivery import Delivery, NotNow, Server, TooMuch
from lake.client.events import QueuedEvent, Refusal
from lake.client.queue import EventQueue

log = logging.getLogger("lakeloop.client")

# An event that has waited this long goes to disk, so a kill loses no older one.
SPILL_SECONDS = 1.0
# Pause between searches for files of dead processes, and after the disk refused a write.
ADOPT_SECONDS = 30.0
DISK_SECONDS = 5.0
FIRST_PAUSE = 0.2
# A longer Retry-After is cut to this.
LONGEST_AFTER = 300.0
WARN_SECONDS = 30.0


class Sender:
    """Sends the events of a queue to a server. Its threads start with the first event."""

    def __init__(
        self,
        queue: EventQueue,
        server: Server,
        key: Callable[[], str | None],
        *,
        batch_events: int,
        batch_bytes: int,
        linger: float,
        longest_pause: float,
        keeps: bool,
        on_refused: Callable[[Refusal], None] | None,
    ) -> None:
        self._queue = queue
        self._server = server
        self._key = key
        self._most_events = self._events = batch_events
        self._bytes = batch_bytes
        self._linger = linger
        self._longest_pause = longest_pause
        self._keeps = keeps
        self._on_refused = on_refused
        self._threads: list[threading.Thread] = []
        self._lock = threading.RLock()
        self._failures = 0
        self._unreported: deque[Refusal] = deque(maxlen=1000)
        self._warned_at: dict[str, float] = {}
        self._disk_again = self._adopt_at = 0.0
        self._dropped_reported = 0
        self.sent = self.known = self.refused = self.retries = 0
        self.last_error: str | None = None
        # Whether close() need not wait for the server: it failed after the queue was closed, or asked for a long pause.
        self.unreachable = False

    def start(self) -> None:
        """Starts the threads unless they run. Does nothing while the interpreter shuts down."""
        with self._lock:
            if self._threads or self._queue.stopped:
                return
            for name, work in (("send", self._send), ("keep", self._keep)):
                thread = threading.Thread(target=self._repeat, args=(work,), name=f"lakeloop-{name}", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self.warn("thread", f"no thread could be started: {error}")
                    return
                self._threads.append(thread)

    def put(self, event: QueuedEvent) -> None:
        """Queues the event. If there is no room it is dropped, and a thread warns of it later."""
        if self._queue.put(event):
            if not self._threads:
                self.start()
        elif self._queue.closing:
            self.warn("closed", "an event was logged after close(), and dropped")

    def refuse(self, refusal: Refusal) -> None:
        """Counts data that could not become an event; a thread reports it, not the prediction path."""
        self._count_refused()
        self._unreported.append(refusal)
        self._queue.wake()
        if not self._threads:
            self.start()

    def own_thread(self) -> bool:
        return threading.current_thread() in self._threads

    def join(self, timeout: float) -> None:
        """Waits for the threads to end, at most `timeout` seconds for each."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    def leave(self) -> None:
        """At the end: writes waiting events to disk, or drops them with a warning."""
        try:
            self._queue.leave()
        except OSError as error:
            self.warn("spill", f"the disk does not take the events that could not be sent: {error}")
        self._report()

    def warn(self, topic: str, text: str, error: BaseException | None = None) -> None:
        """Logs a warning with the traceback of `error`, at most once in 30 seconds for each topic."""
        self.last_error = text
        now = time.monotonic()
        if now - self._warned_at.get(topic, -WARN_SECONDS) >= WARN_SECONDS:
            self._warned_at[topic] = now
            log.warning("%s", text, exc_info=error)

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._queue.stopped:
            try:
                work()
            except BaseException as error:  # whatever it is, the thread must go on for the next event
                if self._queue.stopped:
                    return
                self.warn("fault", f"the client goes on after {type(error).__name__}: {error}", error)
                self._queue.pause(1.0, firm=True)

    # Sending -----------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        self._queue.wait_for_batch(self._events, self._bytes, self._linger)
        flight = self._queue.take(self._events, self._bytes)
        if flight is None:
            return
        try:
            delivery = self._server.deliver(flight.batch, self._key())
            self._count(delivery)
        except NotNow as reason:
            self._queue.release(flight)
            self._back_off(str(reason), reason.after)
        except TooMuch as reason:
            self._queue.release(flight)
            self._split(reason, len(flight.batch.events), flight.batch.wire_bytes)
        except BaseException:
            self._queue.release(flight)
            raise
        else:
            self._queue.settle(flight, delivery.again)
            self._events = self._most_events
            if not delivery.again:
                if self._failures:
                    log.info("the server takes events again")
                self._failures, self.unreachable = 0, False
            elif len(delivery.again) == len(flight.batch.events):
                self._back_off(delivery.reason, None)
            else:
                self.retries += 1

    def _count(self, delivery: Delivery) -> None:
        self.sent += delivery.stored
        self.known += delivery.known
        for event, code, reason in delivery.refused:
            self._count_refused()
            self._report_refusal(Refusal.of(event.kind, event.fields(), reason, code))

    def _count_refused(self) -> None:
        with self._lock:
            self.refused += 1

    def _split(self, reason: TooMuch, events: int, wire_bytes: int) -> None:
        """Sends smaller batches from now on if this one was too large; halves them until the next success if not."""
        self.retries += 1
        self.warn("split", f"the server refused a batch of {events} events, sending fewer at once: {reason}")
        if reason.by_size:
            self._bytes = max(1, wire_bytes // 2)
        else:
            self._events = events // 2

    def _back_off(self, reason: str, after: float | None) -> None:
        """Pauses: full jitter under an exponential ceiling, but never shorter than the `after` the server asked for."""
        self.retries += 1
        self.warn("server", f"{self._queue.queued} events wait: {reason}")
        self.unreachable = self._queue.closing or after is not None
        if self.unreachable:
            self._queue.wake()
        ceiling = min(self._longest_pause, FIRST_PAUSE * 2.0 ** min(self._failures, 30))
        self._failures += 1
        if after is None:
            self._queue.pause(random.uniform(0, ceiling), firm=False)
        else:
            spread = random.uniform(0, min(ceiling, max(1.0, after)))
            self._queue.pause(min(after, LONGEST_AFTER) + spread, firm=True)

    # Writing to disk ---------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        now = time.monotonic()
        if now >= self._adopt_at:
            self._adopt_at = now + ADOPT_SECONDS
            if self._keeps:
                self.adopt()
        resting = now < self._disk_again
        until = min(self._adopt_at, self._disk_again) if resting else self._adopt_at
        age = SPILL_SECONDS if self._keeps and not resting else None
        if self._queue.wait_until_ripe(age, until - now):
            self.spill()
        self._report()

    def adopt(self) -> int:
        """Takes over the events that dead processes left; returns their number."""
        try:
            return self._queue.adopt()
        except OSError as error:
            self.warn("adopt", f"a file that another process left cannot be sent: {error}")
            return 0

    def spill(self) -> None:
        try:
            self._queue.spill()
        except OSError as error:
            self._disk_again = time.monotonic() + DISK_SECONDS
            self.warn("spill", f"events stay in memory, the disk does not take them: {error}")

    def _report(self) -> None:
        while self._unreported:
            self._report_refusal(self._unreported.popleft())
        if self._queue.dropped > self._dropped_reported:
            self._dropped_reported = self._queue.dropped
            self.warn(
                "dropped", f"{self._dropped_reported:,} events were dropped so far: no room in memory and on disk"
            )

    def _report_refusal(self, refusal: Refusal) -> None:
        self.warn("refused", f"{refusal.kind} {refusal.id} was refused: {refusal.reason}")
        if self._on_refused is not None:
            try:
                self._on_refused(refusal)
            except BaseException as error:  # a callback that calls sys.exit() would otherwise end the thread
                self.warn("callback", f"on_refused failed for {refusal.id}: {error!r}", error)
