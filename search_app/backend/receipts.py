"""Receipts of finished writes by Idempotency-Key, in a small SQLite file, so that a repeat changes nothing.

A receipt is written after its write: a server that is killed between the two does a repeated request again. The events
of `search_app/api/service.py` have receipts of their own, in the commit that stores them.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lake.sql import columnar

if TYPE_CHECKING:
    from lake.storage.store import Lake

FILE = "receipts.sqlite"
KEPT_SECONDS = 7 * 86_400.0
MOST_KEPT = 10_000
# A longer response is not kept; its request is done again.
MOST_BYTES = 1 << 20
_BUSY_SECONDS = 5.0
_TABLE = """
    CREATE TABLE IF NOT EXISTS receipts
    (key TEXT PRIMARY KEY, digest BLOB NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL, at REAL NOT NULL)"""


@dataclass(frozen=True)
class Receipt:
    """The response to a write. `digest` identifies the request."""

    digest: bytes
    status: int
    body: bytes


class Receipts:
    """The receipts of a lake's servers on this machine. Any thread may use it."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def find(self, key: str) -> Receipt | None:
        """The receipt under the key; None if there is none, or if it is older than seven days."""
        with closing(self._open()) as connection:
            row = connection.execute(
                "SELECT digest, status, body FROM receipts WHERE key = ? AND at > ?", (key, time.time() - KEPT_SECONDS)
            ).fetchone()
        return None if row is None else Receipt(*row)

    def keep(self, key: str, receipt: Receipt) -> None:
        """Keeps the receipt, and the `MOST_KEPT` newest of the last seven days."""
        if len(receipt.body) > MOST_BYTES:
            return
        now = time.time()
        with closing(self._open()) as connection, connection:
            row = (key, receipt.digest, receipt.status, receipt.body, now)
            connection.execute("INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?, ?)", row)
            connection.execute("DELETE FROM receipts WHERE at <= ?", (now - KEPT_SECONDS,))
            connection.execute(
                "DELETE FROM receipts WHERE key IN (SELECT key FROM receipts ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (MOST_KEPT,),
            )

    def _open(self) -> sqlite3.Connection:
        folder = columnar.folder(self._lake)
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / FILE, timeout=_BUSY_SECONDS)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_TABLE)
        return connection
