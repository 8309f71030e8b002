"""Many requests share one commit, and none is answered before it.

A commit costs a sync of the disk whatever is in it, so those that come while one is under way go together into the
next: the more requests, the fewer syncs for each.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lake.errors import CouldNot
from lake.spool import journal

if TYPE_CHECKING:
    from lake.spool.events import Event
    from lake.spool.segments import SegmentWriter

Outcome = Literal["stored", "known", "contradiction"]

# What one commit takes at most: bounds the wait of the requests in it.
GROUP_EVENTS = 256
GROUP_BYTES = 16 << 20
TICK_SECONDS = 1.0
_ONE = "(" + ",".join("?" * 10) + ")"


@dataclass(frozen=True)
class Receipt:
    """An answer given under an Idempotency-Key, to be given again. `digest` tells a repeat from another request."""

    digest: bytes
    status: int
    body: bytes


class AnsweredBefore(Exception):
    """Another process on this spool answered a request under the same key, while this one's waited for its commit."""

    def __init__(self, receipt: Receipt) -> None:
        super().__init__("answered before")
        self.receipt = receipt


@dataclass(slots=True)
class Entry:
    """One request's events on their way: all are stored in the same commit.

    `answer` makes the status and body to remember under `key` once the outcomes are known. After the commit
    `outcomes` has one for each event, or `error` says why nothing was stored.
    """

    events: Sequence[Event]
    notify: Callable[[list[Entry]], None]
    key: str | None = None
    digest: bytes = b""
    answer: Callable[[Sequence[Outcome]], tuple[int, bytes]] | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    error: BaseException | None = None
    waiter: Any = None  # whatever `notify` needs to find whom it concerns


class Committer:
    """The one thread of a process that writes events. Owns the connection and the writer."""

    def __init__(self, connection: sqlite3.Connection, writer: SegmentWriter) -> None:
        self._connection = connection
        self._writer = writer
        self._queue: deque[Entry] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._observers: list[Callable[[int, float], None]] = []
        self._thread: threading.Thread | None = None

    def submit(self, entry: Entry) -> None:
        """Queues the entry; `entry.notify` is called with it, on this thread, when it is safe or has failed."""
        with self._wake:
            if self._closing:
                raise CouldNot("the spool is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
                self._thread.start()
            self._queue.append(entry)
            self._wake.notify()

    def on_commit(self, observe: Callable[[int, float], None]) -> None:
        """`observe(events, seconds)` is called after each commit, on this thread."""
        self._observers.append(observe)

    def close(self) -> None:
        """Stores what is queued, then ends."""
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
            except BaseException as error:  # every waiting request must be answered, whatever happened
                for entry in group:
                    entry.error = error
            seconds = time.perf_counter() - started
            told: dict[Any, list[Entry]] = {}
            for entry in group:
                told.setdefault(entry.notify, []).append(entry)
            for notify, entries in told.items():
                notify(entries)
            for observe in self._observers:
                observe(sum(len(e.events) for e in group), seconds)

    def _next_group(self) -> list[Entry]:
        group: list[Entry] = []
        keys: set[str] = set()
        count = held = 0
        while self._queue:
            entry = self._queue[0]
            count += len(entry.events)
            held += sum(len(e.data) for e in entry.events if e.data is not None)
            # A second entry under a key finds the answer to the first once that is committed.
            if group and (count > GROUP_EVENTS or held > GROUP_BYTES or entry.key in keys):
                break
            if entry.key is not None:
                keys.add(entry.key)
            group.append(self._queue.popleft())
        return group

    def _commit(self, group: list[Entry]) -> None:
        """Bytes first, then the rows that refer to them: a row whose bytes are not there must not exist."""
        events = [event for entry in group for event in entry.events]
        blobs = [e.data for e in events if e.data is not None]
        places = iter(self._writer.append(blobs) if blobs else ())
        moment = time.time()
        nowhere = (None, None, None)
        rows = []
        for e in events:
            place = nowhere if e.data is None else next(places)
            rows.append((e.kind, e.event_id, e.digest, e.image_id, e.row, *place, e.key_id, moment))
        connection = self._connection
        with journal.transaction(connection):
            self._mark_answered(group)
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
                # One statement for many rows: each step lets go of the interpreter, and getting it back takes time.
                values = ",".join([_ONE] * len(part))
                connection.execute(
                    f"INSERT INTO events({journal.COLUMNS}) VALUES {values} ON CONFLICT DO NOTHING",
                    [value for row in part for value in row],
                )
            if connection.total_changes - before == len(rows):
                for entry in group:
                    entry.outcomes = ["stored"] * len(entry.events)
            else:
                self._tell_apart(group, seen, last)
            for entry in group:
                if entry.key is not None and entry.answer is not None:
                    status, body = entry.answer(entry.outcomes)
                    connection.execute(
                        "INSERT OR REPLACE INTO receipts VALUES(?,?,?,?,?)",
                        (entry.key, entry.digest, status, body, moment),
                    )

    def _mark_answered(self, group: list[Entry]) -> None:
        """Gives entries whose key was answered since the caller looked their error: nothing of them is stored."""
        for entry in group:
            if entry.key is not None:
                rows = self._connection.execute(journal.RECEIPT, (entry.key,)).fetchall()
                if rows and rows[0][3] >= time.time() - journal.REMEMBERED_SECONDS:
                    entry.error = AnsweredBefore(Receipt(*rows[0][:3]))

    def _tell_apart(self, group: list[Entry], seen: dict[tuple[str, str], bytes], last: int) -> None:
        """Which events were new (numbered after `last`), which repeats, and which others under a used id."""
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
    """(event_id, kind) -> digest of those among `events` that were drained of late."""
    marks = ",".join("?" * len(events))
    rows = connection.execute(
        f"SELECT event_id, kind, digest FROM seen WHERE event_id IN ({marks})", [e.event_id for e in events]
    )
    return {(event_id, kind): digest for event_id, kind, digest in rows}
