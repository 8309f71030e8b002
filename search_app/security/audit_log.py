"""Collects the audit entries of a server's reads and writes them in one commit a second.

The drainer records writes. A commit for every query would cost more than most queries.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Any

from lake.access import audit

if TYPE_CHECKING:
    from lake.storage.store import Lake

_log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
# Entries held in memory while the lake cannot be written.
MOST_WAITING = 10_000


class AuditLog:
    """Takes entries from any thread. They are in the lake one second later, and after `close`."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(MOST_WAITING)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, entry: dict[str, Any]) -> None:
        """Adds an entry of `lake.access.audit.entry`."""
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            _log.error("an audit entry is lost, because the lake could not be written for too long: %s", entry)
        with self._lock:
            if self._thread is None and not self._ending.is_set():
                self._thread = threading.Thread(target=self._write_all, name="audit log", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Writes the remaining entries and ends the thread."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(10.0)
        self.flush()

    def flush(self) -> None:
        """Writes the waiting entries now."""
        entries = []
        while not self._waiting.empty():
            entries.append(self._waiting.get_nowait())
        if not entries:
            return
        try:
            self._lake.insert("audit", audit.rows_to_table(entries))
        except Exception as error:  # a full disk may have room again later
            _log.warning("the audit log could not be written: %s", error)
            for entry in entries:
                if not self._waiting.full():
                    self._waiting.put_nowait(entry)

    def _write_all(self) -> None:
        while not self._ending.wait(EVERY_SECONDS):
            self.flush()
