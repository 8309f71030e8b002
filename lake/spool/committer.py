"""Groups the events of many requests into one durable commit, and reports to each request after it.

A commit costs a sync of the disk, however many events are in it. Requests that arrive during a commit go together
into the next one: the more requests, the fewer syncs for each. The committer knows nothing of HTTP: a request gets the
outcome of each of its events and builds its response from them.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import CouldNot
from lake.spool import journal
from lake.spool.journal import Outcome, Receipt

if TYPE_CHECKING:
    from lake.spool.events import Event
    from lake.spool.segments import SegmentWriter

# The largest group: bounds how long the requests in it wait.
GROUP_EVENTS = 256
GROUP_BYTES = 16 << 20
TICK_SECONDS = 1.0
_ROW = "(" + ",".join("?" * 10) + ")"


class RepeatedKey(Exception):
    """Another process on this spool has stored a request under the same key while this one waited for its commit."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__("a request under this key is stored already")
        self.receipt = receipt


@dataclass(slots=True)
class Entry:
    """The events of one request; all of them are stored in the same commit, with a receipt if there is a `key`.

    After the commit `outcomes` has one entry for each event, or `error` says why nothing was stored.
    """

    events: Sequence[Event]
    notify: Callable[[list[Entry]], None]
    key: str | None = None
    digest: bytes = b""
    facts: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    error: BaseException | None = None
    waiter: Any = None  # whatever `notify` needs to find the waiting request


class Committer:
    """The only thread of a process that writes events. Owns the connection and the segment writer."""

    def __init__(self, connection: sqlite3.Connection, writer: SegmentWriter) -> None:
        self._connection = connection
        self._writer = writer
        self._queue: deque[Entry] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._observers: list[Callable[[int, float], None]] = []
        self._thread: threading.Thread | None = None

    def submit(self, entry: Entry) -> None:
        """Queues the entry. `entry.notify` is called with it, on this thread, once it is on disk or has failed."""
        with self._wake:
            if self._closing:
                raise CouldNot("the spool is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
                self._thread.start()
            self._queue.append(entry)
            self._wake.notify()

    def on_commit(self, observe: Callable[[int, float], None]) -> None:
        """Registers `observe(events, seconds)` to be called after each commit, on this thread."""
        self._observers.append(observe)

    def close(self) -> None:
        """Stores what is queued, then ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._writer.seal()
        self._connection.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._queue and not self._closing:
                    self._wake.wait(TICK_SECONDS)
                group = self._next_group()
                if not group and self._closing:
                    return
            if not group:
                self._writer.seal_if_old()
                continue
            started = time.perf_counter()
            try:
                self._commit(group)
            except BaseException as error:  # every waiting request needs a response, whatever happened
                for entry in group:
                    entry.error = error
            seconds = time.perf_counter() - started
            by_notify: dict[Any, list[Entry]] = {}
            for entry in group:
                by_notify.setdefault(entry.notify, []).append(entry)
            for notify, entries in by_notify.items():
                notify(entries)
            for observe in self._observers:
                observe(sum(len(e.events) for e in group), seconds)

    def _next_group(self) -> list[Entry]:
        group: list[Entry] = []
        keys: set[str] = set()
        count = size = 0
        while self._queue:
            entry = self._queue[0]
            count += len(entry.events)
            size += sum(len(e.data) for e in entry.events if e.data is not None)
            # A second entry under the same key must find the receipt of the first, so it waits for that commit.
            if group and (count > GROUP_EVENTS or size > GROUP_BYTES or entry.key in keys):
                break
            if entry.key is not None:
                keys.add(entry.key)
            group.append(self._queue.popleft())
        return group

    def _commit(self, group: list[Entry]) -> None:
        """Writes the bytes first, then the rows that refer to them: no row may exist without its bytes."""
        events = [event for entry in group for event in entry.events]
        blobs = [e.data for e in events if e.data is not None]
        ranges = iter(self._writer.append(blobs) if blobs else ())
        now = time.time()
        no_bytes = (None, None, None)
        rows = []
        for e in events:
            bytes_at = no_bytes if e.data is None else next(ranges)
            rows.append((e.kind, e.event_id, e.digest, e.image_id, e.row, *bytes_at, e.key_id, now))
        connection = self._connection
        with journal.transaction(connection):
            self._mark_repeated(group)
            if any(entry.error for entry in group):
                group = [entry for entry in group if entry.error is None]
                left = {id(event) for entry in group for event in entry.events}
                rows = [r for r, e in zip(rows, events, strict=True) if id(e) in left]
                events = [e for e in events if id(e) in left]
            seen = _seen(connection, events)
            fresh = [r for r, e in zip(rows, events, strict=True) if (e.event_id, e.kind) not in seen] if seen else rows
            (last,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            before = connection.total_changes
            for start in range(0, len(fresh), 64):
                part = fresh[start : start + 64]
                # One statement for many rows: each step releases the interpreter, and getting it back takes time.
                values = ",".join([_ROW] * len(part))
                connection.execute(
                    f"INSERT INTO events({journal.COLUMNS}) VALUES {values} ON CONFLICT DO NOTHING",
                    [value for row in part for value in row],
                )
            if connection.total_changes - before == len(rows):
                for entry in group:
                    entry.outcomes = ["stored"] * len(entry.events)
            else:
                self._compare(group, seen, last)
            for entry in group:
                if entry.key is not None:
                    receipt = Receipt(entry.digest, entry.facts, entry.outcomes)
                    journal.write_receipt(connection, entry.key, receipt, now)

    def _mark_repeated(self, group: list[Entry]) -> None:
        """Sets `error` on entries whose key has got a receipt since the caller looked: nothing of them is stored."""
        for entry in group:
            if entry.key is not None:
                receipt = journal.read_receipt(self._connection, entry.key)
                if receipt is not None:
                    entry.error = RepeatedKey(receipt)

    def _compare(self, group: list[Entry], seen: dict[tuple[str, str], bytes], last: int) -> None:
        """Sets the outcomes by comparing with what is stored; rows numbered above `last` are from this commit."""
        events = [event for entry in group for event in entry.events]
        marks = ",".join("?" * len(events))
        rows = self._connection.execute(
            f"SELECT event_id, kind, digest, seq FROM events WHERE event_id IN ({marks})", [e.event_id for e in events]
        ).fetchall()
        stored = {(event_id, kind): digest for event_id, kind, digest, _ in rows}
        new = {(event_id, kind) for event_id, kind, _, seq in rows if seq > last}
        for entry in group:
            entry.outcomes = []
            for event in entry.events:
                name = (event.event_id, event.kind)
                if (seen.get(name) or stored[name]) != event.digest:
                    entry.outcomes.append("contradiction")
                elif name in new:
                    entry.outcomes.append("stored")
                    new.discard(name)  # its repeats in this group are known
                else:
                    entry.outcomes.append("known")


def _seen(connection: sqlite3.Connection, events: Sequence[Event]) -> dict[tuple[str, str], bytes]:
    """(event_id, kind) -> digest, for those `events` that were drained recently."""
    marks = ",".join("?" * len(events))
    rows = connection.execute(
        f"SELECT event_id, kind, digest FROM seen WHERE event_id IN ({marks})", [e.event_id for e in events]
    )
    return {(event_id, kind): digest for event_id, kind, digest in rows}
