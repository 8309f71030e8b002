"""Text files of rows: their encoding, and `.gz`. A file is read through once, so that none is half in the lake.

Nothing is ever replaced: bytes that are not of the encoding are an error with their line, never U+FFFD.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from lake.errors import BadInput

CHUNK = 1 << 20
# A row may carry masks as text. A longer line, or a row of that length, is no row of a log.
MOST_ROW = 64 << 20
# Logs of one model that repeat themselves shrink to a fiftieth; a file that was made to fill a disk, to a thousandth.
MOST_RATIO = 200
FREE_BYTES = 64 << 20
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def known_encoding(name: str) -> str:
    """The encoding under Python's name for it. Raises BadInput if there is none."""
    try:
        found = codecs.lookup(name)
        b"aa".decode(name, "ignore")  # not every codec makes text of bytes
    except (LookupError, ValueError) as error:
        raise BadInput(f"--encoding {name!r:.80} is unknown; for example utf-8, utf-16-le, cp1252, latin-1") from error
    return "utf-8-sig" if found.name == "utf-8" else found.name


def checked(path: Path, encoding: str | None = None, *, lines: bool = True) -> str:
    """The encoding that the whole file is in: `encoding`, or by its byte order mark UTF-8 or UTF-16, or UTF-8.

    Raises BadInput with the first line that is in another encoding, for a line longer than MOST_ROW if `lines`, and
    for a .gz file that is broken or unpacks to more than MOST_RATIO times its size.
    """
    with _bytes(path) as file:
        try:
            head = file.read(CHUNK)
            name = known_encoding(encoding) if encoding else _marked(head) or "utf-8"
            decoder = codecs.getincrementaldecoder(name)()
            most = FREE_BYTES + MOST_RATIO * path.stat().st_size if is_gzip(path) else None
            size, line, length = 0, 1, 0
            while True:
                size += len(head)
                if most is not None and size > most:
                    raise BadInput(
                        f"{path} unpacks to more than {MOST_RATIO} times its size: that is no log. If it is, unpack it "
                        "and ingest the unpacked file"
                    )
                try:
                    text = decoder.decode(head, final=not head)
                except UnicodeDecodeError as error:
                    raise _other_encoding(path, name, encoding, line, error) from error
                ends = text.count("\n")
                line += ends
                length = len(text) - text.rfind("\n") - 1 if ends else length + len(text)
                if lines and length > MOST_ROW:
                    raise BadInput(f"{path}:{line} has more than {MOST_ROW >> 20} MiB in one line: that is no row")
                if not head:
                    return name
                head = file.read(CHUNK)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadInput(f"{path} is broken or cut off: {error}") from error


def opened(path: Path, encoding: str, newline: str | None = None) -> TextIO:
    """The file as text, as `checked` found it; `newline` as in `open`."""
    if is_gzip(path):
        return cast("TextIO", gzip.open(path, "rt", encoding=encoding, newline=newline))
    return path.open(encoding=encoding, newline=newline)


def beginning(path: Path) -> str:
    """The first characters of a text file, to tell kinds of files apart; not to be stored."""
    with _bytes(path) as file:
        head = file.read(4_096)
    return head.decode(_marked(head) or "utf-8", "ignore").lstrip("\ufeff")


def _bytes(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if is_gzip(path) else path.open("rb")


def _marked(head: bytes) -> str | None:
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def _other_encoding(path: Path, name: str, said: str | None, line: int, error: UnicodeDecodeError) -> BadInput:
    before = error.object[: error.start]
    newline = "\n".encode(name)[-2 if name.startswith("utf-16") else -1 :]
    line += before.count(newline)
    start = before.rfind(b"\n") + 1
    around = error.object[max(start, error.start - 20) : error.end + 20].split(b"\n")[0]
    way = "name the encoding" if said is None else "name another encoding"
    byte = error.object[error.start]
    return BadInput(
        f"{path}:{line} is not {name.removesuffix('-sig').upper()}: byte 0x{byte:02x} in {around!r}; "
        f"{way}, for example --encoding cp1252 (Windows, western Europe)"
    )
