"""Takes the ids of erased images out of what jobs left: their arguments, errors and results, and their logs.

An id gives way to as many letters x, so that a log that a worker writes to at the same time stays whole.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from lake.jobs import live_state
from lake.storage import schema

if TYPE_CHECKING:
    from lake.storage.store import Lake

_TEXTS = ("arguments", "message", "error", "result")
_ID = r"[0-9a-f]{64}"
_IN_TEXT, _IN_FILE = re.compile(_ID), re.compile(_ID.encode())


def erase(lake: Lake, image_ids: Collection[str]) -> int:
    """Erases the ids everywhere. Returns the number of rows and logs that held one; the table still has old versions.

    Of a log that cannot be written to, it raises OSError.
    """
    erased = frozenset(image_ids)
    return _in_table(lake, erased) + _in_logs(lake, frozenset(name.encode() for name in erased))


def _in_table(lake: Lake, erased: frozenset[str]) -> int:
    def without(text: str | None) -> str | None:
        return text and _IN_TEXT.sub(lambda found: "x" * 64 if found[0] in erased else found[0], text)

    changed = []
    for batch in lake.dataset("jobs").scanner(columns=["event_id", *_TEXTS]).to_batches():
        holds = [pc.fill_null(pc.match_substring_regex(batch[name], _ID), False) for name in _TEXTS]
        some = batch.filter(pc.or_(pc.or_(holds[0], holds[1]), pc.or_(holds[2], holds[3]))).to_pylist()
        changed += [row["event_id"] for row in some if any(without(row[name]) != row[name] for name in _TEXTS)]
    if changed:
        rows = lake.look_up("jobs", [c.name for c in schema.JOBS.columns], "event_id", changed).to_pylist()
        rows = [row | {name: without(row[name]) for name in _TEXTS} for row in rows]
        lake.update("jobs", pa.Table.from_pylist(rows, schema=schema.JOBS.arrow()))
    return len(changed)


def _in_logs(lake: Lake, erased: frozenset[bytes]) -> int:
    count = 0
    for path in live_state.log_files(lake):
        with suppress(FileNotFoundError), path.open("r+b") as file:  # maintenance removes old logs
            if not file.seek(0, 2):
                continue
            with mmap.mmap(file.fileno(), 0) as text:
                places = [found.start() for found in _IN_FILE.finditer(text) if found[0] in erased]
                for place in places:
                    text[place : place + 64] = b"x" * 64
                text.flush()
            count += bool(places)
    return count
