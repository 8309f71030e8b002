"""The client's two threads: one sends what waits, the other keeps it safe on disk while the first is not getting on.

Two, so that a server that hangs does not keep events in memory, where a kill would take them. Both are daemons, and no
exception ends either. Which answer means what is `delivery`'s, where events wait is `queue`'s.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable

from lake.client.delivery import NotNow, Outcome, Server, TooMuch
from lake.client.events import Event, Refusal
from lake.client.queue import Line

log = logging.getLogger("lakeloop.client")

# An event that has waited this long goes to disk: what a kill can take is no older.
SPILL_SECONDS = 1.0
# Between looks for files of dead processes, and after a disk that would not take more.
ADOPT_SECONDS = 30.0
DISK_SECONDS = 5.0
FIRST_PAUSE = 0.2
# The most of a Retry-After that is honoured.
LONGEST_AFTER = 300.0
SAY_SECONDS = 30.0


class Courier:
    """Delivers a line to a server. Threads start with the first event."""

    def __init__(
        self,
        line: Line,
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
        self._line = line
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
        self._unsaid: deque[Refusal] = deque(maxlen=1000)
        self._said: dict[str, float] = {}
        self._disk_again = self._adopt_at = 0.0
        self._dropped_said = 0
        self.sent = self.known = self.refused = self.retries = 0
        self.last_error: str | None = None
        # Whether waiting for the server is in vain: it failed after the line was closed, or asked for a long pause.
        self.in_vain = False

    def start(self) -> None:
        """Starts the threads unless they run. Does nothing when the interpreter is going down."""
        with self._lock:
            if self._threads or self._line.stopped:
                return
            for name, work in (("send", self._send), ("keep", self._keep)):
                thread = threading.Thread(target=self._for_ever, args=(work,), name=f"lakeloop-{name}", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self.say("thread", f"no thread could be started: {error}")
                    return
                self._threads.append(thread)

    def put(self, event: Event) -> None:
        """Puts the event in line; what has no room there is dropped, which a thread will say."""
        if self._line.put(event):
            if not self._threads:
                self.start()
        elif self._line.closing:
            self.say("closed", "an event was logged after close(), and dropped")

    def refuse(self, refusal: Refusal) -> None:
        """For what the prediction path could not make an event of: it is told by a thread, not there."""
        self._count_refused()
        self._unsaid.append(refusal)
        self._line.wake()
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
        """The end: what waits goes to disk, or is dropped and said so."""
        try:
            self._line.leave()
        except OSError as error:
            self.say("spill", f"the disk does not take the events that could not be sent: {error}")
        self._report()

    def say(self, about: str, text: str, error: BaseException | None = None) -> None:
        """A warning in the log, at most one in 30 seconds about the same; with the traceback of `error`."""
        self.last_error = text
        now = time.monotonic()
        if now - self._said.get(about, -SAY_SECONDS) >= SAY_SECONDS:
            self._said[about] = now
            log.warning("%s", text, exc_info=error)

    def _for_ever(self, work: Callable[[], None]) -> None:
        while not self._line.stopped:
            try:
                work()
            except BaseException as error:  # whatever it is, the next event deserves a thread
                if self._line.stopped:
                    return
                self.say("fault", f"the client goes on after {type(error).__name__}: {error}", error)
                self._line.pause(1.0, firm=True)

    # Sending -----------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        self._line.wait_for_batch(self._events, self._bytes, self._linger)
        flight = self._line.take(self._events, self._bytes)
        if flight is None:
            return
        try:
            outcome = self._server.deliver(flight.batch, self._key())
            self._count(outcome)
        except NotNow as reason:
            self._line.release(flight)
            self._not_now(str(reason), reason.after)
        except TooMuch as reason:
            self._line.release(flight)
            self._split(reason, len(flight.batch.events), flight.batch.wire_bytes)
        except BaseException:
            self._line.release(flight)
            raise
        else:
            self._line.settle(flight, outcome.again)
            self._events = self._most_events
            if not outcome.again:
                if self._failures:
                    log.info("the server takes events again")
                self._failures, self.in_vain = 0, False
            elif len(outcome.again) == len(flight.batch.events):
                self._not_now(outcome.reason, None)
            else:
                self.retries += 1

    def _count(self, outcome: Outcome) -> None:
        self.sent += outcome.stored
        self.known += outcome.known
        for event, code, reason in outcome.refused:
            self._count_refused()
            self._tell(Refusal.of(event.kind, event.fields(), reason, code))

    def _count_refused(self) -> None:
        with self._lock:
            self.refused += 1

    def _split(self, reason: TooMuch, events: int, wire_bytes: int) -> None:
        """Smaller from now on when it was too large; in halves until the next success when one event is to blame."""
        self.retries += 1
        self.say("split", f"the server refused a batch of {events} events, sending less at once: {reason}")
        if reason.by_size:
            self._bytes = max(1, wire_bytes // 2)
        else:
            self._events = events // 2

    def _not_now(self, reason: str, after: float | None) -> None:
        """Full jitter under an exponential ceiling; never before the time the server asked for."""
        self.retries += 1
        self.say("server", f"{self._line.queued} events wait: {reason}")
        self.in_vain = self._line.closing or after is not None
        if self.in_vain:
            self._line.wake()
        ceiling = min(self._longest_pause, FIRST_PAUSE * 2.0 ** min(self._failures, 30))
        self._failures += 1
        if after is None:
            self._line.pause(random.uniform(0, ceiling), firm=False)
        else:
            spread = random.uniform(0, min(ceiling, max(1.0, after)))
            self._line.pause(min(after, LONGEST_AFTER) + spread, firm=True)

    # Keeping -----------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        now = time.monotonic()
        if now >= self._adopt_at:
            self._adopt_at = now + ADOPT_SECONDS
            if self._keeps:
                self.adopt()
        resting = now < self._disk_again
        until = min(self._adopt_at, self._disk_again) if resting else self._adopt_at
        age = SPILL_SECONDS if self._keeps and not resting else None
        if self._line.wait_until_ripe(age, until - now):
            self.spill()
        self._report()

    def adopt(self) -> int:
        """Takes over what dead processes left; the number of events."""
        try:
            return self._line.adopt()
        except OSError as error:
            self.say("adopt", f"a file that another process left cannot be sent: {error}")
            return 0

    def spill(self) -> None:
        try:
            self._line.spill()
        except OSError as error:
            self._disk_again = time.monotonic() + DISK_SECONDS
            self.say("spill", f"events stay in memory, the disk does not take them: {error}")

    def _report(self) -> None:
        while self._unsaid:
            self._tell(self._unsaid.popleft())
        if self._line.dropped > self._dropped_said:
            self._dropped_said = self._line.dropped
            self.say(
                "dropped", f"{self._dropped_said:,} events were dropped so far, for want of room in memory and on disk"
            )

    def _tell(self, refused: Refusal) -> None:
        self.say("refused", f"{refused.kind} {refused.id} was refused: {refused.reason}")
        if self._on_refused is not None:
            try:
                self._on_refused(refused)
            except BaseException as error:  # a callback that says sys.exit() would otherwise end the thread
                self.say("callback", f"on_refused failed for {refused.id}: {error!r}", error)
