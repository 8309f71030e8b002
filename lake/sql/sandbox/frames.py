"""The messages between a pool and its child: one letter, eight bytes of length (big-endian), the payload."""

from __future__ import annotations

import struct
from typing import BinaryIO

HEAD = struct.Struct(">cQ")
# To the child: a query (JSON), then each of its own tables (Arrow IPC).
QUERY, TABLE = b"Q", b"T"
# From the child: it is ready (JSON); a query's columns (JSON), its rows, and its end (JSON) or its failure (JSON).
READY, COLUMNS, ROWS, END, FAILURE = b"R", b"H", b"D", b"E", b"X"


def read(source: BinaryIO) -> tuple[bytes, bytes]:
    """The next frame: its letter and its payload. Raises EOFError at the end."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        raise EOFError
    letter, size = HEAD.unpack(head)
    return letter, source.read(size)


def write(sink: BinaryIO, letter: bytes, payload: bytes | memoryview) -> None:
    sink.write(HEAD.pack(letter, len(payload)))
    sink.write(payload)
    sink.flush()
