"""The SQLite file of a spool: its tables, their upgrades, its durability, its transactions.

WAL with synchronous=FULL: a commit has reached the disk when it returns.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from lake.errors import NewerLake

# How long ids and Idempotency-Keys are remembered. After it a retry is still stored once, but reported as new.
REMEMBERED_SECONDS = 7 * 86_400.0
# The drainer checkpoints. This limit is for when it cannot: 64 MB of pages.
CHECKPOINT_PAGES = 16_384
BUSY_SECONDS = 20.0

# PRAGMA user_version. 1: receipts hold facts and outcomes; before, they held the status and body of the response.
VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS events(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, event_id TEXT NOT NULL, digest BLOB NOT NULL,
    image_id TEXT NOT NULL, row TEXT NOT NULL, segment TEXT, offset INTEGER, length INTEGER, key_id TEXT,
    received REAL NOT NULL, parked TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS events_by_id ON events(event_id, kind);
CREATE INDEX IF NOT EXISTS events_by_segment ON events(segment);
CREATE INDEX IF NOT EXISTS events_parked ON events(seq) WHERE parked IS NOT NULL;
CREATE TABLE IF NOT EXISTS seen(
    event_id TEXT NOT NULL, kind TEXT NOT NULL, digest BLOB NOT NULL, image_id TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY(event_id, kind)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS seen_by_time ON seen(at);
CREATE TABLE IF NOT EXISTS receipts(
    key TEXT PRIMARY KEY, digest BLOB NOT NULL, facts TEXT NOT NULL, outcomes TEXT NOT NULL, at REAL NOT NULL
    ) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS receipts_by_time ON receipts(at);
"""
COLUMNS = "kind, event_id, digest, image_id, row, segment, offset, length, key_id, received"

# stored: new. known: it was stored before. contradiction: another event is stored under the same id.
Outcome = Literal["stored", "known", "contradiction"]


@dataclass(frozen=True)
class Receipt:
    """What is remembered of a request under its Idempotency-Key, so that a repeat gets the same response.

    `digest` distinguishes a repeat from another request. `facts` is JSON text that the request brought along for its
    response; `outcomes` has one entry for each event it stored.
    """

    digest: bytes
    facts: str
    outcomes: list[Outcome]


def read_receipt(connection: sqlite3.Connection, key: str) -> Receipt | None:
    """The receipt under this key, if it is not older than seven days."""
    query = "SELECT digest, facts, outcomes FROM receipts WHERE key = ? AND at >= ?"
    row = connection.execute(query, (key, time.time() - REMEMBERED_SECONDS)).fetchone()
    return None if row is None else Receipt(row[0], row[1], cast("list[Outcome]", row[2].split()))


def write_receipt(connection: sqlite3.Connection, key: str, receipt: Receipt, at: float) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO receipts VALUES(?,?,?,?,?)",
        (key, receipt.digest, receipt.facts, " ".join(receipt.outcomes), at),
    )


def sync(folder: Path) -> None:
    journal = os.open(folder / "spool.sqlite-wal", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(journal)
    finally:
        os.close(journal)


def connect(folder: Path) -> sqlite3.Connection:
    """Opens the file; creates its tables or brings them up to date. Raises NewerLake if a later release wrote it."""
    connection = sqlite3.connect(
        folder / "spool.sqlite", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")  # erased data must not stay in free pages
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    if _version(connection) < VERSION:
        with transaction(connection):
            _upgrade(connection)
    if _version(connection) > VERSION:
        raise NewerLake(f"a later release of lakeloop has written the spool {folder}; update lakeloop")
    # SQLite silently opens a file read-only when it cannot write to it. This statement raises then.
    connection.execute("DELETE FROM receipts WHERE false")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _upgrade(connection: sqlite3.Connection) -> None:
    if _version(connection) >= VERSION:  # another process was faster
        return
    responses = []
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'receipts'").fetchall():
        responses = connection.execute("SELECT key, digest, status, body, at FROM receipts").fetchall()
        connection.execute("DROP TABLE receipts")
    for statement in TABLES.split(";"):
        connection.execute(statement)
    for key, digest, status, body, at in responses:
        write_receipt(connection, key, Receipt(digest, *_facts(status, json.loads(body))), at)
    connection.execute(f"PRAGMA user_version={VERSION}")


def _facts(status: int, document: dict[str, object]) -> tuple[str, list[Outcome]]:
    """The facts and outcomes from which a route builds this response of a release that kept responses."""
    outcomes: list[object] = []
    if status >= 400:  # only a contradiction was kept; its detail ends with the id
        event_id = str(document["detail"]).rpartition(" ")[2]
        document, outcomes = {"prediction_id": event_id, "event_id": event_id}, ["contradiction"]
    elif "status" in document:
        outcomes = [document.pop("status")]
    return json.dumps(document), cast("list[Outcome]", outcomes)
