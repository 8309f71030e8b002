"""The spool: it holds events safely on disk from their acknowledgement until they are in the lake.

Lance syncs nothing to a local disk, and a commit for every request would cost a version each. So events go to SQLite
(`journal.py`) and their image bytes to append-only segment files. Many requests share one commit (`committer.py`), and
none is acknowledged before it. A drainer (`drain.py`) moves the events on. Several processes may write to one spool, on
one machine and a local disk: SQLite's locks do not work on a network disk.

    spool/spool.sqlite      events, in order of arrival; ids drained recently; receipts of Idempotency-Keys
    spool/segments/*.seg    image bytes
    spool/drain.lock        held by the one drainer, while it drains
    spool/drain.batch       the batch that the drainer is writing; left behind if it does not survive it
    spool/serving.lock      shared by the servers that take events in
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import CouldNot
from lake.spool import journal, segments
from lake.spool.committer import Committer, Entry
from lake.spool.journal import Outcome, Receipt
from lake.spool.parked import ParkedEvents
from lake.storage.store import local_folder

if TYPE_CHECKING:
    from lake.spool.events import Event, Kind


@dataclass(frozen=True)
class WaitingEvent:
    """An event in the spool. `received` is when it was accepted, seconds since 1970."""

    seq: int
    kind: Kind
    event_id: str
    digest: bytes
    image_id: str
    row: str
    bytes_at: segments.ByteRange | None
    key_id: str | None
    received: float


@dataclass(frozen=True)
class Depth:
    """Counts of events that wait to be drained. `bytes` is the size of the spool on disk; `oldest` is in seconds since
    1970. `parked` events could not be drained because of their content: they stay until you retry or drop them.
    """

    events: int
    bytes: int
    oldest: float | None
    parked: int

    def age(self) -> float:
        """Seconds the oldest has waited."""
        return 0.0 if self.oldest is None else max(0.0, time.time() - self.oldest)

    def as_dict(self) -> dict[str, Any]:
        """In the form of `GET /v1/status` and `lakeloop status`: `oldest_seconds` is the age."""
        return {
            "events": self.events,
            "bytes": self.bytes,
            "oldest_seconds": round(self.age(), 3),
            "parked": self.parked,
        }


def abandoned(folder: Path) -> bool:
    """Whether there is a spool that no server holds, so that no server will drain its events."""
    if not (folder / "spool.sqlite").exists():
        return False
    file = _open_lock(folder / "serving.lock")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def beside(uri: str) -> Path | None:
    """The default folder of a lake's spool, inside the lake's folder; None if the lake is not on a local disk."""
    folder = local_folder(uri)
    return None if folder is None else folder / "spool"


class Spool:
    """An open spool. Thread-safe; not usable after a fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments = folder / "segments"
        # The name of each new folder is an entry of the folder above it, which must be synced, too.
        parents = {folder.parent, *(path.parent for path in folder.parents if not path.exists())}
        self.segments.mkdir(parents=True, exist_ok=True)
        try:
            connection = journal.connect(folder)
            self._reader = journal.connect(folder)
            # If a power cut loses what this connection writes (`forget`), the next drain repeats it.
            self._reader.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.Error as error:
            raise CouldNot(f"the spool {folder} cannot be opened ({error}); see: lakeloop doctor") from error
        # A killed process may have written events without syncing them. They are visible now and will be reported as
        # known, so they must be on disk.
        journal.sync(folder)
        for path in (folder, *parents):
            segments.sync_folder(path)
        self._reading = threading.Lock()
        self.parked = ParkedEvents(self._reader, self._reading)
        self._committer = Committer(connection, segments.SegmentWriter(self.segments))
        self._serving_lock: int | None = None

    # Accepting ---------------------------------------------------------------------------------------------

    def submit(self, entry: Entry) -> None:
        """Queues the entry. `entry.notify` gets it, on the spool's thread, once it is on disk or has failed."""
        self._committer.submit(entry)

    def put(self, events: Sequence[Event]) -> list[Outcome]:
        """Stores the events, waits until they are on disk, and returns the outcome of each. Raises if that failed."""
        future: Future[list[Outcome]] = Future()

        def notify(entries: list[Entry]) -> None:
            for entry in entries:
                if entry.error is None:
                    entry.waiter.set_result(entry.outcomes)
                else:
                    entry.waiter.set_exception(entry.error)

        self.submit(Entry(events, notify, waiter=future))
        return future.result()

    def on_commit(self, observe: Callable[[int, float], None]) -> None:
        """Registers `observe(events, seconds)` to be called after each commit, on the spool's thread."""
        self._committer.on_commit(observe)

    def hold(self) -> None:
        """Marks the spool as in use by a server until `close` or the end of the process; see `abandoned`."""
        self._serving_lock = _open_lock(self.folder / "serving.lock")
        fcntl.flock(self._serving_lock, fcntl.LOCK_SH)

    def close(self) -> None:
        """Stores the queued events, then closes the files."""
        self._committer.close()
        with self._reading:
            self._reader.close()
        if self._serving_lock is not None:
            os.close(self._serving_lock)

    # Reading -----------------------------------------------------------------------------------------------

    def event(self, kind: Kind, event_id: str) -> WaitingEvent | None:
        """The event of this id, if it is not drained yet."""
        rows = self._read(f"SELECT seq, {journal.COLUMNS} FROM events WHERE event_id = ? AND kind = ?", event_id, kind)
        return _waiting(rows[0]) if rows else None

    def image_of(self, prediction_id: str) -> str | None:
        """The image_id of a prediction that waits or was drained recently."""
        for table in ("events", "seen"):
            rows = self._read(f"SELECT image_id FROM {table} WHERE event_id = ? AND kind = 'prediction'", prediction_id)
            if rows:
                return str(rows[0][0])
        return None

    def image(self, image_id: str) -> bytes | None:
        """The bytes of an image that waits here. Use it for images that probably wait: for others it scans all events.

        An index would double the bytes that a commit writes.
        """
        rows = self._read("SELECT segment, offset, length FROM events WHERE event_id = ? AND kind = 'image'", image_id)
        rows = rows or self._read(
            "SELECT segment, offset, length FROM events WHERE image_id = ? AND segment IS NOT NULL LIMIT 1", image_id
        )
        if not rows:
            return None
        try:
            return segments.read(self.segments, segments.ByteRange(*rows[0]))
        except FileNotFoundError:  # drained meanwhile
            return None

    def images(self) -> set[str]:
        """The ids of images whose bytes wait here."""
        return {str(i) for (i,) in self._read("SELECT DISTINCT image_id FROM events WHERE segment IS NOT NULL")}

    def images_from(self, source: str) -> set[str]:
        """The image ids of waiting events whose source matches the pattern (`*`, `?`, `[a-z]`)."""
        query = "SELECT DISTINCT image_id FROM events WHERE json_extract(row, '$.source') GLOB ?"
        return {str(image_id) for (image_id,) in self._read(query, source)}

    def receipt(self, key: str) -> Receipt | None:
        """What is remembered of a request under this Idempotency-Key, for seven days."""
        with self._reading:
            return journal.read_receipt(self._reader, key)

    def depth(self) -> Depth:
        """Counts of waiting events. Takes a few milliseconds at most."""
        count, parked, oldest = self._read(
            "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM events WHERE parked IS NOT NULL),"
            " (SELECT received FROM events WHERE parked IS NULL ORDER BY seq LIMIT 1)"
        )[0]
        pages, free, size = (
            self._read(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size")
        )
        wal = self.folder / "spool.sqlite-wal"
        total = segments.size(self.segments) + (pages - free) * size
        total += wal.stat().st_size if wal.exists() else 0
        return Depth(count - parked, total, oldest, parked)

    def accepted(self, since: float, most: int = 10_000) -> tuple[int, float | None]:
        """The number of waiting predictions received after `since`, and the time of the latest, or None.

        Looks at the newest `most` events only. Times are in seconds since 1970.
        """
        count, newest = self._read(
            "SELECT count(*), max(received) FROM (SELECT kind, received FROM events ORDER BY seq DESC LIMIT ?)"
            " WHERE kind = 'prediction' AND received > ?", most, since
        )[0]  # fmt: skip
        return count, newest

    def free_bytes(self) -> int:
        """The free space on the spool's disk."""
        return shutil.disk_usage(self.folder).free

    # Draining ----------------------------------------------------------------------------------------------

    def oldest(self, most: int, most_bytes: int) -> list[WaitingEvent]:
        """The oldest events: at most `most`, with at most `most_bytes` of rows and images unless the first has more."""
        events: list[WaitingEvent] = []
        size = 0
        query = f"SELECT seq, {journal.COLUMNS} FROM events WHERE parked IS NULL ORDER BY seq LIMIT ?"
        with self._reading, closing(self._reader.execute(query, (most,))) as rows:
            for row in rows:
                event = _waiting(row)
                size += len(event.row) + (event.bytes_at.length if event.bytes_at else 0)
                if events and size > most_bytes:
                    break
                events.append(event)
        return events

    def data(self, event: WaitingEvent) -> bytes | None:
        """The image bytes that came with an event; None if it had none or the disk lost or damaged them."""
        if event.bytes_at is None:
            return None
        try:
            data = segments.read(self.segments, event.bytes_at)
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == event.image_id else None

    def lost(self) -> list[str]:
        """The event_id of each waiting event whose image bytes are lost or damaged. Reads all of them."""
        query = f"SELECT seq, {journal.COLUMNS} FROM events WHERE segment IS NOT NULL ORDER BY seq"
        return [
            e.event_id
            for e in map(_waiting, self._read(query))
            if self.data(e) is None and self.event(e.kind, e.event_id)
        ]

    def forget(self, drained: Sequence[WaitingEvent]) -> None:
        """Removes events that are safe in the lake and remembers their ids. A power cut may undo this without harm."""
        now = time.time()
        with self._reading:
            connection = self._reader
            for start in range(0, len(drained), 256):  # in short steps: the commits of requests wait meanwhile
                part = drained[start : start + 256]
                with journal.transaction(connection):
                    connection.executemany(
                        "INSERT OR REPLACE INTO seen VALUES(?,?,?,?,?)",
                        sorted((e.event_id, e.kind, e.digest, e.image_id, now) for e in part),
                    )
                    connection.executemany("DELETE FROM events WHERE seq = ?", [(e.seq,) for e in part])
            with journal.transaction(connection):
                limit = now - journal.REMEMBERED_SECONDS
                for table, key in (("seen", "event_id, kind"), ("receipts", "key")):
                    connection.execute(
                        f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE at < ? LIMIT 5000)",
                        (limit,),
                    )
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self.remove_drained_segments()

    def remove_drained_segments(self) -> int:
        """Removes the segment files that no event refers to; returns their number."""
        return segments.remove_unused(
            self.segments, lambda name: bool(self._read("SELECT 1 FROM events WHERE segment = ? LIMIT 1", name))
        )

    def erase(self, image_ids: Sequence[str]) -> int:
        """Removes every event of these images, also from the disk, and remembers their ids; returns their number.

        The caller must hold the drainer's lock: a drainer might be moving the events to the lake at this moment.
        """
        rows: list[Any] = []
        for start in range(0, len(image_ids), 500):
            part = image_ids[start : start + 500]
            marks = ",".join("?" * len(part))
            rows += self._read(f"SELECT seq, {journal.COLUMNS} FROM events WHERE image_id IN ({marks})", *part)
        events = [_waiting(row) for row in rows]
        for event in events:
            if event.bytes_at is not None:
                segments.erase(self.segments, event.bytes_at)
        self.forget(events)
        # The journal still holds the old rows; it is emptied once no reader uses it.
        deadline = time.monotonic() + journal.BUSY_SECONDS
        while True:
            with self._reading:
                busy = self._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                return len(events)
            if time.monotonic() > deadline:
                raise CouldNot(f"the journal of {self.folder} is in use and could not be emptied; try again")
            time.sleep(0.05)

    def erase_drained(self) -> list[str]:
        """Overwrites bytes that no event refers to; returns the names of files it may not touch (of living writers)."""

        def used(name: str) -> list[tuple[int, int]]:
            return self._read("SELECT offset, length FROM events WHERE segment = ?", name)

        self.remove_drained_segments()
        names = sorted(path.name for path in self.segments.glob(f"*{segments.SUFFIX}"))
        return [name for name in names if not segments.erase_between(self.segments, name, used)]

    @contextmanager
    def drainer(self, wait: float = 0.0) -> Iterator[bool]:
        """Holds the drainer's lock during the block. Yields False if another process holds it after `wait` seconds.

        A drainer releases it after each batch. The lock ends with its process.
        """
        file = _open_lock(self.folder / "drain.lock")
        deadline = time.monotonic() + wait
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        yield False
                        return
                    time.sleep(0.02)
                else:
                    yield True
                    return
        finally:
            os.close(file)

    def _read(self, query: str, *parameters: Any) -> list[Any]:
        with self._reading:
            return self._reader.execute(query, parameters).fetchall()


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _waiting(row: Any) -> WaitingEvent:
    seq, kind, event_id, digest, image_id, text, segment, offset, length, key_id, received = row
    bytes_at = None if segment is None else segments.ByteRange(segment, offset, length)
    return WaitingEvent(seq, kind, event_id, digest, image_id, text, bytes_at, key_id, received)
