"""The audit log: a row for every write, with the access key or the user who did it.

The drainer writes a row for each event that came by HTTP, with its access key. A command writes a row with the
operating system's user. Rows are only added. This module does not know what the writes mean.
"""

from __future__ import annotations

import getpass
import json
import os
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.storage import schema, store

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from lake.storage.store import Lake

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
    lake.insert("audit", rows_to_table([row]))
    return str(row["event_id"])


def os_user() -> str:
    """The name of the user of this process; its number if it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
