"""The spool: where an event is safe from the moment it is acknowledged until it is in the lake.

Lance syncs nothing to a local disk, and a commit for every request would cost a version each. So events go to SQLite
(`journal.py`) and their image bytes to append-only segment files; many requests share one commit (`committer.py`), and
none is answered before it. A drainer (`drain.py`) moves them on. Several processes may write to one spool, on one
machine and a local disk: SQLite's locks are of no use on a network's.

    spool/spool.sqlite      events, in order of arrival; ids seen of late; answers given under an Idempotency-Key
    spool/segments/*.seg    image bytes
    spool/drain.lock        held by the one drainer, while it drains
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import CouldNot
from lake.spool import journal, segments
from lake.spool.committer import Committer, Entry
from lake.spool.journal import Outcome, Receipt
from lake.storage.store import local_folder

if TYPE_CHECKING:
    from lake.spool.events import Event, Kind


@dataclass(frozen=True)
class Waiting:
    """An event in the spool. `received` is when it was accepted, seconds since 1970."""

    seq: int
    kind: Kind
    event_id: str
    digest: bytes
    image_id: str
    row: str
    place: segments.Place | None
    key_id: str | None
    received: float


@dataclass(frozen=True)
class Depth:
    """What waits to be drained. `bytes` are all the spool holds on disk; `oldest` is seconds since 1970.

    `parked` events cannot be drained (a fault of lakeloop's): they stay until a later version can.
    """

    events: int
    bytes: int
    oldest: float | None
    parked: int

    def age(self) -> float:
        """Seconds the oldest has waited."""
        return 0.0 if self.oldest is None else max(0.0, time.time() - self.oldest)

    def as_dict(self) -> dict[str, Any]:
        """As `GET /v1/status` and `lakeloop status` tell it: `oldest_seconds` is the age."""
        return {
            "events": self.events,
            "bytes": self.bytes,
            "oldest_seconds": round(self.age(), 3),
            "parked": self.parked,
        }


def abandoned(folder: Path) -> bool:
    """Whether there is a spool that no server holds: what it has, nobody is going to drain."""
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
    """The default folder of a lake's spool: in the lake's own, when that is on a local disk."""
    folder = local_folder(uri)
    return None if folder is None else folder / "spool"


class Spool:
    """An open spool. Safe between threads; not across fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments = folder / "segments"
        # Each new folder's name stands in the folder above it, which must be synced, too.
        above = {folder.parent, *(path.parent for path in folder.parents if not path.exists())}
        self.segments.mkdir(parents=True, exist_ok=True)
        try:
            connection = journal.connect(folder)
            self._reader = journal.connect(folder)
            # Of what this one writes (`forget`) nothing is lost that a second drain does not repeat.
            self._reader.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.Error as error:
            raise CouldNot(f"the spool {folder} cannot be opened ({error}); see: lakeloop doctor") from error
        # A killed process may have written events that it did not come to sync: they are found here, and will be
        # called known, so they must be on disk.
        journal.sync(folder)
        for path in (folder, *above):
            segments.sync_folder(path)
        self._reading = threading.Lock()
        self._committer = Committer(connection, segments.SegmentWriter(self.segments))
        self._held: int | None = None

    # Accepting ---------------------------------------------------------------------------------------------

    def submit(self, entry: Entry) -> None:
        """Queues the entry; `entry.notify` is called with it, on the spool's thread, when it is safe or has failed."""
        self._committer.submit(entry)

    def put(self, events: Sequence[Event]) -> list[Outcome]:
        """Stores the events and returns what became of each, once they are safe. Waits. Raises what went wrong."""
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
        """`observe(events, seconds)` is called after each commit, on the spool's thread."""
        self._committer.on_commit(observe)

    def hold(self) -> None:
        """Marks the spool as some server's until this is closed or its process dies, see `abandoned`."""
        self._held = _open_lock(self.folder / "serving.lock")
        fcntl.flock(self._held, fcntl.LOCK_SH)

    def close(self) -> None:
        """Stores what is queued, then ends."""
        self._committer.close()
        with self._reading:
            self._reader.close()
        if self._held is not None:
            os.close(self._held)

    # Reading -----------------------------------------------------------------------------------------------

    def event(self, kind: Kind, event_id: str) -> Waiting | None:
        """The event of that id that is not drained yet."""
        rows = self._read(f"SELECT seq, {journal.COLUMNS} FROM events WHERE event_id = ? AND kind = ?", event_id, kind)
        return _waiting(rows[0]) if rows else None

    def image_of(self, prediction_id: str) -> str | None:
        """The image_id of an answer that is waiting or was drained of late."""
        for table in ("events", "seen"):
            rows = self._read(f"SELECT image_id FROM {table} WHERE event_id = ? AND kind = 'prediction'", prediction_id)
            if rows:
                return str(rows[0][0])
        return None

    def image(self, image_id: str) -> bytes | None:
        """The bytes of an image that waits here. Ask for one that probably does: the others cost a look at all.

        An index would double what a commit writes.
        """
        found = self._read("SELECT segment, offset, length FROM events WHERE event_id = ? AND kind = 'image'", image_id)
        found = found or self._read(
            "SELECT segment, offset, length FROM events WHERE image_id = ? AND segment IS NOT NULL LIMIT 1", image_id
        )
        if not found:
            return None
        try:
            return segments.read(self.segments, segments.Place(*found[0]))
        except FileNotFoundError:  # drained in this moment
            return None

    def images(self) -> set[str]:
        """The images whose bytes wait here."""
        return {str(i) for (i,) in self._read("SELECT DISTINCT image_id FROM events WHERE segment IS NOT NULL")}

    def images_from(self, source: str) -> set[str]:
        """The images of waiting events whose source is like the pattern (`*`, `?`, `[a-z]`)."""
        query = "SELECT DISTINCT image_id FROM events WHERE json_extract(row, '$.source') GLOB ?"
        return {str(image_id) for (image_id,) in self._read(query, source)}

    def receipt(self, key: str) -> Receipt | None:
        """What is remembered of a request under this Idempotency-Key, for seven days."""
        with self._reading:
            return journal.read_receipt(self._reader, key)

    def depth(self) -> Depth:
        """What waits. A few milliseconds at most."""
        count, parked, oldest = self._read(
            "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM events WHERE parked IS NOT NULL),"
            " (SELECT received FROM events WHERE parked IS NULL ORDER BY seq LIMIT 1)"
        )[0]
        pages, free, size = (
            self._read(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size")
        )
        journal = self.folder / "spool.sqlite-wal"
        held = segments.size(self.segments) + (pages - free) * size
        held += journal.stat().st_size if journal.exists() else 0
        return Depth(count - parked, held, oldest, parked)

    def accepted(self, since: float, most: int = 10_000) -> tuple[int, float | None]:
        """How many of the waiting answers came after `since` (of the newest `most` events), and when the last did."""
        count, newest = self._read(
            "SELECT count(*), max(received) FROM (SELECT kind, received FROM events ORDER BY seq DESC LIMIT ?)"
            " WHERE kind = 'prediction' AND received > ?", most, since
        )[0]  # fmt: skip
        return count, newest

    def free_bytes(self) -> int:
        """What the disk of the spool has left."""
        return shutil.disk_usage(self.folder).free

    # Draining ----------------------------------------------------------------------------------------------

    def oldest(self, most: int, most_bytes: int) -> list[Waiting]:
        """The events that came first: at most `most`, and beyond the first at most `most_bytes` of images."""
        taken: list[Waiting] = []
        held = 0
        query = f"SELECT seq, {journal.COLUMNS} FROM events WHERE parked IS NULL ORDER BY seq LIMIT ?"
        for row in self._read(query, most):
            found = _waiting(row)
            held += found.place.length if found.place else 0
            if taken and held > most_bytes:
                break
            taken.append(found)
        return taken

    def data(self, event: Waiting) -> bytes | None:
        """The image bytes that came with an event, or None when it had none or the disk lost them."""
        if event.place is None:
            return None
        try:
            found = segments.read(self.segments, event.place)
        except FileNotFoundError:
            return None
        return found if hashlib.sha256(found).hexdigest() == event.image_id else None

    def lost(self) -> list[str]:
        """event_id of each waiting event whose image bytes are not there any more as they came. Reads all of them."""
        query = f"SELECT seq, {journal.COLUMNS} FROM events WHERE segment IS NOT NULL ORDER BY seq"
        return [
            e.event_id
            for e in map(_waiting, self._read(query))
            if self.data(e) is None and self.event(e.kind, e.event_id)
        ]

    def forget(self, drained: Sequence[Waiting]) -> None:
        """Removes events that are safe in the lake, remembering their ids. Losing this to a power cut is harmless."""
        moment = time.time()
        with self._reading:
            connection = self._reader
            for start in range(0, len(drained), 256):  # briefly each: the requests' commits wait meanwhile
                part = drained[start : start + 256]
                with journal.transaction(connection):
                    connection.executemany(
                        "INSERT OR REPLACE INTO seen VALUES(?,?,?,?,?)",
                        sorted((e.event_id, e.kind, e.digest, e.image_id, moment) for e in part),
                    )
                    connection.executemany("DELETE FROM events WHERE seq = ?", [(e.seq,) for e in part])
            with journal.transaction(connection):
                limit = moment - journal.REMEMBERED_SECONDS
                for table, key in (("seen", "event_id, kind"), ("receipts", "key")):
                    connection.execute(
                        f"DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE at < ? LIMIT 5000)",
                        (limit,),
                    )
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self.remove_drained_segments()

    def park(self, event: Waiting, reason: str) -> None:
        """Sets an event aside that cannot be drained, so that those behind it can."""
        with self._reading:
            self._reader.execute("UPDATE events SET parked = ? WHERE seq = ?", (reason, event.seq))

    def parked(self) -> list[tuple[str, str]]:
        """(event_id, reason) of the events set aside."""
        return self._read("SELECT event_id, parked FROM events WHERE parked IS NOT NULL ORDER BY seq LIMIT 1000")

    def unpark(self) -> None:
        """Has the events set aside tried again."""
        with self._reading:
            self._reader.execute("UPDATE events SET parked = NULL WHERE parked IS NOT NULL")

    def remove_drained_segments(self) -> int:
        """Removes segment files no event refers to; returns how many."""
        return segments.remove_unused(
            self.segments, lambda name: bool(self._read("SELECT 1 FROM events WHERE segment = ? LIMIT 1", name))
        )

    def erase(self, image_ids: Sequence[str]) -> int:
        """Removes every event about these images, on the disk too, remembering their ids; returns how many.

        For the holder of the drainer's lock: a drainer might be carrying them to the lake at this moment.
        """
        rows: list[Any] = []
        for start in range(0, len(image_ids), 500):
            part = image_ids[start : start + 500]
            marks = ",".join("?" * len(part))
            rows += self._read(f"SELECT seq, {journal.COLUMNS} FROM events WHERE image_id IN ({marks})", *part)
        found = [_waiting(row) for row in rows]
        for event in found:
            if event.place is not None:
                segments.erase(self.segments, event.place)
        self.forget(found)
        # The journal still has the rows as they were; it is emptied once no reader is in it.
        deadline = time.monotonic() + journal.BUSY_SECONDS
        while True:
            with self._reading:
                busy = self._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                return len(found)
            if time.monotonic() > deadline:
                raise CouldNot(f"the journal of {self.folder} is in use and could not be emptied; try again")
            time.sleep(0.05)

    def erase_drained(self) -> list[str]:
        """Overwrites what no event here refers to any more; returns the files of living writers, which it must not."""

        def used(name: str) -> list[tuple[int, int]]:
            return self._read("SELECT offset, length FROM events WHERE segment = ?", name)

        self.remove_drained_segments()
        names = sorted(path.name for path in self.segments.glob(f"*{segments.SUFFIX}"))
        return [name for name in names if not segments.erase_between(self.segments, name, used)]

    @contextmanager
    def drainer(self, wait: float = 0.0) -> Iterator[bool]:
        """Whether this process is the one that drains, for as long as the block lasts. The lock ends with it.

        Waits for it up to `wait` seconds: a drainer lets go of it after each batch.
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


def _waiting(row: Any) -> Waiting:
    seq, kind, event_id, digest, image_id, text, segment, offset, length, key_id, received = row
    place = None if segment is None else segments.Place(segment, offset, length)
    return Waiting(seq, kind, event_id, digest, image_id, text, place, key_id, received)
