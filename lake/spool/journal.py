"""The SQLite file of a spool: its tables, its durability, its transactions.

WAL with synchronous=FULL: a commit has reached the disk when it returns.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How long ids and Idempotency-Keys are remembered. After it a retry is still stored once, but answered as if new.
REMEMBERED_SECONDS = 7 * 86_400.0
# The drainer checkpoints. This is for when it cannot: 64 MB of pages.
CHECKPOINT_PAGES = 16_384
BUSY_SECONDS = 20.0

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
    key TEXT PRIMARY KEY, digest BLOB NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL, at REAL NOT NULL
    ) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS receipts_by_time ON receipts(at);
"""
COLUMNS = "kind, event_id, digest, image_id, row, segment, offset, length, key_id, received"
RECEIPT = "SELECT digest, status, body, at FROM receipts WHERE key = ?"


def sync(folder: Path) -> None:
    journal = os.open(folder / "spool.sqlite-wal", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(journal)
    finally:
        os.close(journal)


def connect(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        folder / "spool.sqlite", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")  # what is erased shall not stay in free pages
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    connection.executescript(TABLES)
    # SQLite opens a file that it cannot open for writing for reading, and says nothing. This raises then.
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
