"""The queue of events that the server has not taken yet; the oldest may be on disk.

`put` is called on the prediction path: it takes one short lock and never waits for disk or network. Everything that may
wait (taking, spilling, adopting, settling) is done by the client's two threads under a second lock, so that only one
of them moves an event at a time. The module knows nothing of HTTP and starts no thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lake.client.events import EventBatch, QueuedEvent
from lake.client.spill import Segment, Spill


@dataclass(slots=True)
class Flight:
    """A batch that is being sent. Until it is settled, its events stay in memory or at the front of `segment`."""

    batch: EventBatch
    segment: Segment | None = None
    records: int = 0
    at: int = 0
    held_bytes: int = 0


class EventQueue:
    """Holds at most `most_bytes` in memory. Events beyond that are dropped and counted in `dropped`."""

    def __init__(self, most_bytes: int, spill: Spill | None) -> None:
        # Re-entrant, because a signal handler may log or close while its own thread holds the lock.
        self._changed = threading.Condition(threading.RLock())
        self._moving = threading.RLock()
        self._most = most_bytes
        self._step = max(1, min(1 << 20, most_bytes // 8))
        self._spill = spill
        self._queue: deque[QueuedEvent] = deque()
        self._bytes = 0
        self._on_disk = 0
        self._flight: Flight | None = None
        # Counts of events since the start: added, finished, and added when somebody last waited for all of them.
        self._added = self._finished = self._awaited = 0
        self._hurried = self._woken = False
        self.closing = self.stopped = False
        self.dropped = self.spilled = 0

    # On the prediction path --------------------------------------------------------------------------------------

    def put(self, event: QueuedEvent) -> bool:
        """Adds an event at the end. Returns False if it was dropped: there is no room, or the queue is closed."""
        with self._changed:
            if self.closing or self._bytes + event.held_bytes > self._most:
                self.dropped += 1
                if self.dropped == 1:
                    self.wake()
                return False
            before = self._bytes
            self._append(event)
            self._added += 1
            # Waking a thread costs more than the rest of `put`, so do it only when there may be work for it.
            count = len(self._queue)
            if count == 1 or count % 64 == 0 or before // self._step != self._bytes // self._step:
                self._changed.notify_all()
            return True

    # For callers of flush and close ------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Number of events in the queue, including those in flight."""
        with self._changed:
            flight = self._flight
            return len(self._queue) + self._on_disk + (len(flight.batch.events) if flight and not flight.segment else 0)

    def wait_until_gone(self, deadline: float | None, given_up: Callable[[], bool]) -> bool:
        """Waits until the server has answered for every event in the queue now.

        Returns False at the deadline (a time.monotonic()), or once `given_up()` is true.
        """
        with self._changed:
            mark = self._added
            self._awaited = max(self._awaited, mark)
            # Ends one pause: the current one or, if there is none, the next one.
            self._hurried = True
            self._changed.notify_all()
            while self._finished < mark:
                left = None if deadline is None else deadline - time.monotonic()
                if self.stopped or given_up() or (left is not None and left <= 0):
                    return False
                self._changed.wait(left)
            return True

    def close(self) -> None:
        with self._changed:
            self.closing = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends every wait in this class, now and later."""
        with self._changed:
            self.closing = self.stopped = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Makes `wait_until_ripe` return, now or when it is next called, because there is something to report."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    # For the thread that sends -----------------------------------------------------------------------------------

    def wait_for_batch(self, most: int, most_bytes: int, linger: float) -> None:
        """Returns when a batch is full, its oldest event has waited `linger` seconds, a caller waits, or at the end."""
        with self._changed:
            while not (self.stopped or self._on_disk):
                if self._queue:
                    if len(self._queue) >= most or self._bytes >= most_bytes:
                        return
                    left = self._queue[0].since + linger - time.monotonic()
                    if left <= 0 or self.closing or self._finished < self._awaited:
                        return
                    self._changed.wait(left)
                else:
                    self._changed.wait()

    def pause(self, seconds: float, firm: bool) -> None:
        """Waits. A call of flush or close ends the pause early unless it is `firm`."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self.stopped and (left := until - time.monotonic()) > 0:
                if self._hurried and not firm:
                    break
                self._changed.wait(left)
            self._hurried = False

    def take(self, most: int, most_bytes: int) -> Flight | None:
        """The next batch, or None if there is none. Settle or release it before you take another."""
        with self._moving:
            if self.stopped:
                return None
            flight = None if self._spill is None else self._from_disk(self._spill, most, most_bytes)
            with self._changed:
                if flight is None:
                    flight = self._from_memory(most, most_bytes)
                self._flight = flight
            return flight

    def settle(self, flight: Flight, again: Iterable[QueuedEvent] = ()) -> None:
        """Removes the events of an answered flight. Those in `again` go to the end of the queue for another try."""
        again = list(again)
        with self._moving:
            if self._flight is not flight:  # `leave` was called meanwhile
                return
            with self._changed:
                for event in again:
                    self._append(event)
            if flight.segment is not None and self._spill is not None:
                flight.segment.advance(flight.records, flight.at)
                self._spill.next()
            with self._changed:
                self._flight = None
                self._bytes -= flight.held_bytes
                self._on_disk -= flight.records if flight.segment is not None else 0
                self.dropped += flight.records - len(flight.batch.events)
                self._finished += flight.records - len(again)
                self._changed.notify_all()

    def release(self, flight: Flight) -> None:
        """Puts the events of a flight that was not answered back to the front of the queue."""
        with self._moving, self._changed:
            if self._flight is not flight:
                return
            self._flight = None
            if flight.segment is None:
                self._queue.extendleft(reversed(flight.batch.events))
            else:
                self._bytes -= flight.held_bytes
            self._changed.notify_all()

    # For the thread that writes to disk --------------------------------------------------------------------------

    def wait_until_ripe(self, age: float | None, at_most: float) -> bool:
        """Waits until events in memory should go to disk: one is `age` seconds old, or half the memory is used.

        With `age` None they never should. Returns False after `at_most` seconds, or after any other change.
        """
        with self._changed:
            if self.stopped:
                return False
            left = self._ripe_in(age)
            if left > 0 and not self._woken:
                self._changed.wait(min(left, at_most))
                left = self._ripe_in(age)
            self._woken = False
            return left <= 0

    def spill(self) -> None:
        """Moves the events in memory to disk, those in flight first. On OSError the rest is still in memory."""
        if self._spill is None:
            return
        with self._moving:
            with self._changed:
                flight, waiting = self._flight, list(self._queue)
            moved = 0
            try:
                if flight is not None and flight.segment is None:
                    self._spill_flight(flight, self._spill)
                for event in waiting:
                    self._spill.append(event)
                    moved += 1
                self._spill.sync()
            finally:
                with self._changed:
                    for _ in range(moved):
                        self._bytes -= self._queue.popleft().held_bytes
                    self._on_disk += moved
                    self.spilled += moved
                    self._changed.notify_all()

    def adopt(self) -> int:
        """Takes over the events that dead processes left in the folder; returns their number. May raise OSError."""
        with self._moving:
            if self._spill is None or self.stopped:
                return 0
            before = self._spill.waiting()
            try:
                return self._spill.adopt()
            finally:
                adopted = self._spill.waiting() - before
                with self._changed:
                    self._on_disk += adopted
                    self._added += adopted
                    self._changed.notify_all()

    def leave(self) -> None:
        """At the end: writes what it can to disk for the next client and drops the rest. Raises OSError if any."""
        # A thread of this client may hold the lock for ever, if the disk hangs.
        if not self._moving.acquire(timeout=5.0):
            raise TimeoutError("the disk does not respond")
        try:
            self.spill()
        finally:
            with self._changed:
                self.dropped += self.queued - self._on_disk
                self._queue.clear()
                self._flight = None
            if self._spill is not None:
                self._spill.leave()
            self._moving.release()

    def forget(self) -> None:
        """In a forked child: leaves files and events to the parent. Takes no lock: its owner may not exist here."""
        if self._spill is not None:
            self._spill.leave()

    # -------------------------------------------------------------------------------------------------------------

    def _append(self, event: QueuedEvent) -> None:
        self._queue.append(event)
        self._bytes += event.held_bytes

    def _ripe_in(self, age: float | None) -> float:
        """Seconds until the events in memory should go to disk."""
        if age is None:
            return math.inf
        if self._flight is not None and self._flight.segment is None:
            oldest = self._flight.batch.events[0].since
        elif self._queue:
            oldest = self._queue[0].since
        else:
            return math.inf
        return 0.0 if self._bytes * 2 > self._most else oldest + age - time.monotonic()

    def _from_disk(self, spill: Spill, most: int, most_bytes: int) -> Flight | None:
        while (segment := spill.next()) is not None:
            batch, records, at = segment.peek(most, most_bytes)
            if batch.events:
                return Flight(batch, segment, records, at)
            segment.advance(records, at)
            with self._changed:
                self.dropped += records
                self._on_disk -= records
                self._finished += records
                self._changed.notify_all()
        return None

    def _from_memory(self, most: int, most_bytes: int) -> Flight | None:
        if not self._queue:
            return None
        batch = EventBatch()
        while self._queue and batch.take(self._queue[0], most, most_bytes):
            self._queue.popleft()
        return Flight(batch, records=len(batch.events), held_bytes=sum(e.held_bytes for e in batch.events))

    def _spill_flight(self, flight: Flight, spill: Spill) -> None:
        segment = spill.append_apart(flight.batch)
        with self._changed:
            flight.segment, flight.records, flight.at = segment, segment.waiting, segment.end
            self._on_disk += flight.records
            self.spilled += flight.records
