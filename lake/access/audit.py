"""The audit log: a row for every write, with the access key or the user who did it.

The drainer writes a row for each event that came by HTTP, with its access key. A command writes a row with the
operating system's user. Rows are only added. This module does not know what the writes mean.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.storage import schema, store

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence

    from lake.storage.store import Lake

# Rows that a search for the newest entries looks at together.
WINDOW_ROWS = 65_536
_NAMESPACE = uuid.UUID("0d2f5a34-9a4e-5f0c-8a51-3e0f6c1b7d92")


def entry_id(kind: str, event_id: str) -> str:
    """The id of the entry about an event. Writing the same entry twice adds nothing."""
    return str(uuid.uuid5(_NAMESPACE, f"{kind}:{event_id}"))


def entry(
    action: str,
    target: str | None,
    *,
    key_id: str | None = None,
    user: str | None = None,
    detail: dict[str, Any] | None = None,
    event_id: str | None = None,
    timestamp: dt.datetime | None = None,
) -> dict[str, Any]:
    """A row of the table `audit`. The default `event_id` is random, the default `timestamp` is now.

    `detail` must be JSON. For an event that may be written twice, take its `event_id` from `entry_id`.
    """
    return {
        "event_id": event_id or str(uuid.uuid4()),
        "timestamp": timestamp or store.now(),
        "key_id": key_id,
        "user": user,
        "action": action,
        "target": target,
        "detail": None if detail is None else json.dumps(detail, ensure_ascii=False, allow_nan=False),
    }


def rows_to_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The entries as an Arrow table for `Lake.insert("audit", ...)`."""
    return pa.Table.from_pylist(list(rows), schema=schema.AUDIT.arrow())


def record(
    lake: Lake,
    action: str,
    target: str | None,
    *,
    key_id: str | None = None,
    user: str | None = None,
    detail: dict[str, Any] | None = None,
) -> str:
    """Writes an entry and returns its `event_id`. Without `key_id` and `user`, it names the user of this process."""
    if key_id is None and user is None:
        user = os_user()
    row = entry(action, target, key_id=key_id, user=user, detail=detail)
    write(lake, row)
    return str(row["event_id"])


def record_if_writable(
    lake: Lake,
    action: str,
    target: str | None,
    *,
    key_id: str | None = None,
    user: str | None = None,
    detail: dict[str, Any] | None = None,
) -> bool:
    """As `record`, for what changes nothing else in the lake. False, without an entry, if it can only be read."""
    try:
        record(lake, action, target, key_id=key_id, user=user, detail=detail)
    except OSError as error:
        if not is_read_only(error):
            raise
        return False
    return True


def is_read_only(error: OSError) -> bool:
    """Whether writing failed because the disk, or this user, may only read; Lance tells it in its text."""
    numbers = (errno.EROFS, errno.EACCES, errno.EPERM)
    return error.errno in numbers or any(f"(os error {number})" in str(error) for number in numbers)


def newest(lake: Lake, action: str, most: int, before: tuple[dt.datetime, str] | None = None) -> list[dict[str, Any]]:
    """The last `most` entries about an action, newest first; with `before`, of those behind this entry, given by its
    `timestamp` and `event_id`.

    Looks at times and actions from the end of the table, which rows are added to in the order of their times but for
    seconds, until older ones cannot be among the newest. Reads only the chosen rows whole.
    """
    dataset: Any = lake.dataset("audit")
    condition = f"action = '{action}'"
    if before is not None:
        moment = before[0].isoformat()
        condition += f" and (timestamp < timestamp '{moment}' or (timestamp = timestamp '{moment}'"
        condition += f" and event_id > {store.literals([before[1]])}))"
    order: list[tuple[str, Any]] = [("timestamp", "descending"), ("event_id", "ascending")]
    chosen: pa.Table | None = None
    for window in _from_the_end(dataset.get_fragments()):
        columns = ["timestamp", "event_id"]
        rows = dataset.scanner(columns=columns, filter=condition, fragments=window, with_row_id=True).to_table()
        both = rows if chosen is None else pa.concat_tables([chosen, rows])
        page = both.sort_by(order).slice(0, most)
        done = chosen is not None and chosen.num_rows == most and page.equals(chosen)
        chosen = page
        if done:
            break
    if chosen is None or not chosen.num_rows:
        return []
    whole: pa.Table = dataset._take_rows(chosen["_rowid"].to_pylist())
    entries: list[dict[str, Any]] = whole.sort_by(order).to_pylist()
    return entries


def _from_the_end(fragments: Sequence[Any]) -> Iterator[list[Any]]:
    """The fragments, last first, in groups of WINDOW_ROWS rows or one fragment."""
    group: list[Any] = []
    rows = 0
    for fragment in reversed(fragments):
        group.insert(0, fragment)
        rows += fragment.metadata.num_rows
        if rows >= WINDOW_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def write(lake: Lake, row: dict[str, Any]) -> None:
    """Writes an entry as it is: without `key_id` and `user` it names nobody, as on a server that is open to all."""
    lake.insert("audit", rows_to_table([row]))


def os_user() -> str:
    """The name of the user of this process; its number if it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
