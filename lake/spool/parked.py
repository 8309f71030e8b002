"""Accepted events that could not be drained: set aside with the reason, tried again, or dropped."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lake.spool import journal
from lake.version import VERSION

# Before the reason of each parked event, so that another version of lakeloop tries it again.
_VERSION = f"lakeloop {VERSION}: "


@dataclass(frozen=True)
class ParkedEvent:
    """`received` is when it was accepted, seconds since 1970."""

    kind: str
    event_id: str
    image_id: str
    received: float
    reason: str


class ParkedEvents:
    """The parked events of a spool, whose connection and lock it shares."""

    def __init__(self, connection: sqlite3.Connection, lock: threading.Lock) -> None:
        self._connection = connection
        self._lock = lock

    def add(self, seq: int, reason: str) -> None:
        """Sets aside the event of this `seq`, so that later ones can be drained."""
        with self._lock:
            self._connection.execute("UPDATE events SET parked = ? WHERE seq = ?", (_VERSION + reason, seq))

    def list(self, most: int = 1000) -> Sequence[ParkedEvent]:
        """Oldest first, at most `most`."""
        columns = "kind, event_id, image_id, received, parked"
        with self._lock:
            rows: list[Any] = self._connection.execute(
                f"SELECT {columns} FROM events WHERE parked IS NOT NULL ORDER BY seq LIMIT ?", (most,)
            ).fetchall()
        return [
            ParkedEvent(kind, event_id, image_id, received, reason.removeprefix(_VERSION))
            for kind, event_id, image_id, received, reason in rows
        ]

    def retry(self, event_ids: Sequence[str] | None = None) -> int:
        """Lets the next drain try these again, or all with None. Returns their number."""
        return self._change("UPDATE events SET parked = NULL", event_ids)

    def retry_after_upgrade(self) -> None:
        """Lets the next drain try those again that another version of lakeloop parked."""
        with self._lock:
            self._connection.execute(
                "UPDATE events SET parked = NULL WHERE substr(parked, 1, ?) <> ?", (len(_VERSION), _VERSION)
            )

    def drop(self, event_ids: Sequence[str]) -> int:
        """Removes them for good. Returns their number. Their images' bytes go with the next drain."""
        return self._change("DELETE FROM events", event_ids)

    def _change(self, change: str, event_ids: Sequence[str] | None) -> int:
        with self._lock, journal.transaction(self._connection):
            if event_ids is None:
                return self._connection.execute(f"{change} WHERE parked IS NOT NULL").rowcount
            statement = f"{change} WHERE parked IS NOT NULL AND event_id = ?"
            return sum(self._connection.execute(statement, (event_id,)).rowcount for event_id in event_ids)
